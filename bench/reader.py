"""Our loader and plain reads of the same bytes, served as the others are; memory over a long run.

python -m bench.reader read                 serve (bench/source.py)
python -m bench.reader tessera|stored N     the same, with N workers
python -m bench.reader memory FOLDER N     print this process's memory over N steps
"""

import argparse
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from bench import mixture, shelf
from bench.plan import simulated_plan
from bench.source import Item, serve
from data.loader import Loader, ReadAhead
from data.manifest import Manifest
from data.mixture import DataSet
from data.pack import PackPlan, Position

CHUNK = 1 << 20
DEMO_TOKENS = 1120
"""Tokens of a pack in conf/experiment/demo.yaml."""
ORDER_ROWS = 1_000_000


def open_plan(folder: str) -> PackPlan:
    manifest = Manifest.read(Path(folder, "shards"))
    # Packs as in training: one largest sample of many sizes, or what the demo takes of its small ones.
    tokens = max(DEMO_TOKENS, int(manifest.column("video_tokens").max()))
    return PackPlan(DataSet.of(manifest), seed=0, tokens_per_pack=tokens)


def open_loader(plan: PackPlan, start: Position | None = None, *, workers: int = 1) -> Loader:
    """The only place that knows how to make our loader. A step here is one small pack, so many are read ahead."""
    return Loader(plan, start=start, packs_per_step=1, ahead=ReadAhead(steps=64, workers=workers))


class Tessera:
    """Our loader; `as_stored` leaves values in the type they are stored in, as training takes them."""

    def __init__(self, *, workers: int, as_stored: bool = False) -> None:
        self._workers, self._as_stored = workers, as_stored
        self._loader: Loader | None = None

    def open(self, folder: str, state: Position | None) -> Iterator[list[Item]]:
        self._loader = open_loader(open_plan(folder), state, workers=self._workers)
        return (_items(step.packs[0], as_stored=self._as_stored) for step in self._loader)

    def state_at(self, folder: str, steps: int) -> Position:
        plan, position = open_plan(folder), Position()
        for _ in range(steps):
            _, position = plan.step(position, 1)
        return position

    def close(self) -> None:
        if self._loader is not None:
            self._loader.close()
            self._loader = None


def _items(pack: Any, *, as_stored: bool) -> list[Item]:
    items = [(sample.key, sample.latent_CTHW, next(iter(sample.text.values()))) for sample in pack]
    return items if as_stored else [(key, latent.float(), text.float()) for key, latent, text in items]


class Read:
    """`read()` of the shards from end to end, a megabyte at a time."""

    def open(self, folder: str, state: None) -> Iterator[list[Item]]:
        manifest = Manifest.read(Path(folder, "shards"))
        values_a_byte = shelf.count_values(manifest) / shelf.stored_bytes(manifest)
        while True:
            for shard in manifest.shards:
                file = os.open(manifest.storage.where(shard.name), os.O_RDONLY)
                read = 0
                while block := os.read(file, CHUNK):
                    read += len(block)
                os.close(file)
                assert read == shard.bytes
                # Stands for the values in what was read; an expanded tensor takes no memory.
                yield [("", torch.zeros(()).expand(round(read * values_a_byte)), torch.zeros(0))]

    def state_at(self, folder: str, steps: int) -> None:
        return None

    def close(self) -> None:
        pass


def memory(folder: str, steps: int, lines: int = 5) -> None:
    """Resident memory while our loader reads `steps` steps, then while the order of a larger set is planned."""

    def report(what: str, step: int, started: float) -> None:
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        passed = time.perf_counter() - started
        print(f"    {what:48s} {step:7,d} steps {resident / 2**20:8.1f} MiB {passed:7.1f} s", flush=True)

    marks = {round(steps * line / lines) for line in range(1, lines + 1)} | {min(100, steps)}
    started = time.perf_counter()
    with open_loader(open_plan(folder)) as loader:
        for step in range(1, steps + 1):
            next(loader)
            if step in marks:
                report("loader", step, started)
    tokens_n = mixture.draw(ORDER_ROWS).tokens_n
    plan, position = simulated_plan(tokens_n, budget=mixture.LARGEST, window=1024)[0], Position()
    started = time.perf_counter()
    for step in range(1, steps + 1):
        _, position = plan.step(position, 4)
        if step in marks:
            report(f"order of {ORDER_ROWS:,} samples, 4 packs a step", step, started)


def main() -> None:
    parser = argparse.ArgumentParser(description="Our loader and plain reads, for bench.data.")
    parser.add_argument("kind", choices=["tessera", "stored", "read", "memory"])
    parser.add_argument("place", nargs="?", help="folder, or number of workers")
    parser.add_argument("steps", nargs="?", type=int)
    arguments = parser.parse_args()
    if arguments.kind == "memory":
        memory(arguments.place, arguments.steps)
    elif arguments.kind == "read":
        serve(Read())
    else:
        serve(Tessera(workers=int(arguments.place), as_stored=arguments.kind == "stored"))


if __name__ == "__main__":
    main()
