"""A process that hands out stored samples, and answers how fast: one protocol for our loader and for all others.

Imported by two interpreters, so it needs torch alone. Commands and answers are lines of JSON on stdin and stdout.
"""

import gc
import json
import os
import sys
import time
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

Item = tuple[str, Tensor, Tensor]
"""Key, latent and text of a sample, both float32."""


class Source(Protocol):
    """Endless samples of one folder: webdataset, mosaicml-streaming, megatron-energon, plain reads and ours."""

    def open(self, folder: str, state: Any | None) -> Iterator[list[Item]]:
        """Batches from the start, or from where `state` says."""

    def state_at(self, folder: str, steps: int) -> Any | None:
        """What is saved after this many steps; None where nothing can be."""

    def close(self) -> None:
        """Stop whatever still reads."""


def serve(source: Source) -> None:
    """Answer commands until stdin ends."""
    # Libraries print to stdout: answers keep it for themselves, everything else goes to stderr.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.set_num_threads(1)
    server = _Server(source)
    for line in sys.stdin:
        command = json.loads(line)
        answer = getattr(server, "do_" + command.pop("do"))(**command)
        print(json.dumps(answer), file=answers, flush=True)
    server.do_close()


class _Server:
    def __init__(self, source: Source) -> None:
        self.source = source
        self._batches: Iterator[list[Item]] = iter(())
        self._states: dict[str, Any] = {}

    def do_open(self, folder: str) -> float:
        """Seconds until the first batch is there."""
        return self._start(folder, None)

    def do_prepare(self, folder: str, steps: int) -> bool:
        """Run so many steps and keep the state; False where it cannot be resumed."""
        self.do_close()
        self._states[folder] = self.source.state_at(folder, steps)
        self.do_close()
        return self._states[folder] is not None

    def do_resume(self, folder: str) -> float:
        """Seconds until the first batch after the kept state is there."""
        return self._start(folder, self._states[folder])

    def do_pull(self, skip: int, seconds: float) -> dict[str, float]:
        """Samples and float values handed out in about this time, after `skip` samples that may lie ready."""
        skipped = 0
        while skipped < skip:
            skipped += len(next(self._batches))
        samples = values = 0
        started = time.perf_counter()
        while (passed := time.perf_counter() - started) < seconds:
            for _, latent, text in next(self._batches):
                samples += 1
                values += latent.numel() + text.numel()
        return {"seconds": passed, "samples": samples, "values": values}

    def do_look(self, samples: int) -> dict[str, list[float]]:
        """What the next samples hold, so that all can be seen to hand out the same."""
        seen: dict[str, list[float]] = {}
        while len(seen) < samples:
            for key, *tensors in next(self._batches):
                assert all(tensor.dtype == torch.float32 for tensor in tensors), key
                seen[key] = [float(value) for t in tensors for value in (t.numel(), t.double().sum())]
        return seen

    def do_close(self) -> None:
        """Let go of what reads."""
        self._batches = iter(())
        self.source.close()
        gc.collect()  # loaders stop their workers where they are deleted

    def _start(self, folder: str, state: Any | None) -> float:
        self.do_close()
        started = time.perf_counter()
        self._batches = self.source.open(folder, state)
        next(self._batches)
        return time.perf_counter() - started
