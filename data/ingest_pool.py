"""Processes that work the parts of an ingest, one part each; one that dies is found, with the file it died on."""

import multiprocessing
import os
import signal
import threading
import traceback
from collections import Counter, deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from data.clips import ClipSource
from data.ingest_part import PartRecord, make_part
from data.ingest_plan import IngestConfig, Part
from data.ingest_progress import IngestProgress

_TICK_S = 0.5
_DEATHS_OF_A_FILE = 2
"""A worker that dies on a file may have been killed for another's sake; the second time it was the file."""
_FILE, _CLIP, _DONE, _FAILED = "file", "clip", "done", "failed"


@dataclass(frozen=True, kw_only=True)
class PoolConfig:
    """Where the parts are worked, and by how many processes."""

    ingest: IngestConfig
    folder: Path
    workers: int
    strict: bool = False


class _Worker:
    """A process with the part it works."""

    def __init__(self, part: Part, pool: PoolConfig, crashed: dict[int, str]) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["data.ingest_part"])
        self.part, self.index, self.clips = part, 0, 0
        self.connection, theirs = context.Pipe(duplex=False)
        self.process: ForkServerProcess = context.Process(target=_serve, args=(theirs, part, pool, crashed))
        self.process.start()
        theirs.close()

    def stop(self) -> None:
        if self.process.is_alive():
            self.process.kill()
        self.process.join()
        self.connection.close()


def work_parts(
    parts: Sequence[Part], pool: PoolConfig, progress: IngestProgress
) -> Generator[tuple[Part, PartRecord], None, None]:
    """Work all parts, each yielded when it stands, in any order.

    Raises ValueError, OSError or RuntimeError where a worker could not go on; all workers are gone when this ends.
    """
    waiting = deque(parts)
    running: dict[Connection, _Worker] = {}
    deaths: dict[int, Counter[int]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < pool.workers:
                part = waiting.popleft()
                worker = _Worker(part, pool, _condemned(deaths.get(part.number, Counter())))
                running[worker.connection] = worker
            for ready in wait(list(running), _TICK_S):
                assert isinstance(ready, Connection)
                worker = running[ready]
                finished = _listen(worker, progress)
                if finished is None:
                    continue
                del running[ready]
                worker.stop()
                if isinstance(finished, PartRecord):
                    yield worker.part, finished
                else:
                    deaths.setdefault(worker.part.number, Counter())[worker.index] += 1
                    waiting.appendleft(worker.part)
            progress.show()
    finally:
        for worker in running.values():
            worker.stop()


def _condemned(deaths: Counter[int]) -> dict[int, str]:
    reason = "crashed: the process that decoded it died, twice"
    return {index: reason for index, count in deaths.items() if count >= _DEATHS_OF_A_FILE}


def _listen(worker: _Worker, progress: IngestProgress) -> PartRecord | str | None:
    """One message of a worker: its record at the end, a word where it died, None where it goes on."""
    try:
        kind, value = worker.connection.recv()
    except EOFError:
        return "died"
    if kind == _DONE:
        return value
    if kind == _FAILED:
        raise value
    if kind == _FILE:
        worker.index = value
    worker.clips += kind == _CLIP
    progress.hear(worker.part, worker.index, worker.clips)
    return None


def _serve(connection: Connection, part: Part, pool: PoolConfig, crashed: dict[int, str]) -> None:
    """What a worker does: its part, and then no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it too, and stops this process
    threading.Thread(target=_leave_with_parent, daemon=True).start()

    def begins(index: int) -> None:
        connection.send((_FILE, index))

    def made(clip: ClipSource) -> None:
        connection.send((_CLIP, clip.key))

    try:
        record = make_part(
            part, pool.ingest, pool.folder, begins=begins, made=made, crashed=crashed, strict=pool.strict
        )
    except (OSError, ValueError) as error:
        connection.send((_FAILED, error))
    except Exception:
        connection.send((_FAILED, RuntimeError(f"part {part.number} failed:\n{traceback.format_exc()}")))
        raise
    else:
        connection.send((_DONE, record))


def _leave_with_parent() -> None:
    """A worker whose parent is gone must not go on writing: another run may have begun."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
