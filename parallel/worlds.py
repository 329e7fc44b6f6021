"""Many process groups, one after another, in one set of processes: starting engines takes seconds, a group does not."""

import gc
import multiprocessing
import os
import signal
import tempfile
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist

STOPPING_S = 5.0


@dataclass(frozen=True)
class Outcome:
    """What one rank returned, and what its process holds afterwards."""

    value: Any
    threads: int
    files: int


class WorldFailed(RuntimeError):
    """A rank raised, ended or took too long; the message holds its traceback."""


class Worlds:
    """Processes on this machine that run functions in worlds of up to `size` ranks. Use as a context manager."""

    def __init__(self, size: int, *, timeout_s: float = 60.0) -> None:
        """Starts the processes; what is imported by now is shared with them, except on a GPU, which forbids forks.

        Threads at work in this process may leave a fork a lock that nobody opens: open worlds before there are any.
        """
        self.size, self.timeout_s = size, timeout_s
        forked, fresh = multiprocessing.get_context("fork"), multiprocessing.get_context("spawn")
        forks = not torch.cuda.is_available()
        method = forked if forks else fresh
        self._folder = tempfile.TemporaryDirectory(prefix="tessera-worlds-")
        self._count = 0
        self._processes: list[BaseProcess] = []
        self._connections: list[Connection] = []
        for rank in range(size):
            ours, theirs = method.Pipe()
            # A fork has these too, and would keep the other processes from seeing that this one is gone.
            others = [*self._connections, ours] if forks else []
            process = method.Process(target=_serve, args=(theirs, others, rank, timeout_s), daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)
            self._connections.append(ours)

    def run(self, world_size: int, function: Callable[..., Any], *arguments: Any) -> list[Outcome]:
        """Call a function on every rank of a new world; returns what the ranks returned.

        Raises:
            WorldFailed: one of them raised or ended. Nothing more can be run.
        """
        assert world_size <= self.size, f"{world_size} ranks wanted of {self.size}"
        store = str(Path(self._folder.name) / f"store{self._count}")
        self._count += 1
        ours = self._connections[:world_size]
        for connection in ours:
            connection.send((function, arguments, store, world_size))
        outcomes: dict[int, Outcome] = {}
        while len(outcomes) < world_size:
            ready = wait([connection for rank, connection in enumerate(ours) if rank not in outcomes])
            for rank, connection in enumerate(ours):
                if connection in ready:
                    outcomes[rank] = self._receive(connection, rank)
        return [outcomes[rank] for rank in range(world_size)]

    def _receive(self, connection: Connection, rank: int) -> Outcome:
        try:
            outcome, failure = connection.recv()
        except EOFError:
            outcome, failure = None, "the process ended without a word"
        if failure is not None:
            self.close()
            raise WorldFailed(f"rank {rank}: {failure}")
        return outcome

    def close(self) -> None:
        """End the processes, and those that do not end by themselves."""
        for connection in self._connections:
            connection.close()
        for process in self._processes:
            process.join(STOPPING_S if not self._failed() else 0.0)
            if process.is_alive():
                process.kill()
                process.join()
        self._folder.cleanup()

    def _failed(self) -> bool:
        return any(process.exitcode for process in self._processes)

    def __enter__(self) -> "Worlds":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _serve(connection: Connection, others: list[Connection], rank: int, timeout_s: float) -> None:
    """What a process does: one task after another until the other side closes."""
    for other in others:
        other.close()
    # Ctrl-C reaches the whole terminal: the parent answers it, and ends these.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What is imported lives as long as the process; DeepSpeed collects garbage several times for each engine.
    gc.freeze()
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)
    if not torch.cuda.is_available():
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    while True:
        try:
            function, arguments, path, world_size = connection.recv()
        except EOFError:
            return
        outcome, failure = None, None
        try:
            outcome = _in_world(dist.FileStore(path, world_size), rank, world_size, timeout_s, function, arguments)
        except BaseException:  # noqa: BLE001 - told to the parent, which ends all
            failure = traceback.format_exc()
        with suppress(BrokenPipeError):  # the other side has given up on all
            connection.send((outcome, failure))
        if failure is not None:
            # Peers may be waiting for this rank, and leaving in good order would wait for them.
            os._exit(1)


def _in_world(
    store: dist.Store, rank: int, world_size: int, timeout_s: float, function: Callable[..., Any], arguments: Any
) -> Outcome:
    is_gpu = torch.cuda.is_available()
    dist.init_process_group(
        "nccl" if is_gpu else "gloo",
        store=store,
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=timeout_s),
    )
    value = function(*arguments)
    gc.collect()
    dist.destroy_process_group()
    return Outcome(value, threads=_entries("/proc/self/task"), files=_entries("/proc/self/fd"))


def _entries(folder: str) -> int:
    return len(os.listdir(folder)) if os.path.isdir(folder) else 0
