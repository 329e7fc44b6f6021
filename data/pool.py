"""Worker processes that read for a loader: each with a line of its own, replaced once when it fails."""

import json
import logging
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np

from data.arena import Arena, Region
from data.reads import Reads
from data.worker import Files, Work, describe, do_work, read_of_word

log = logging.getLogger(__name__)

_ROOT = Path(__file__).resolve().parents[1]
_BYTES_PER_JOB, _READS_PER_JOB, _MEMBERS_PER_JOB = 8 << 20, 64, 512
_JOBS_AT_ONCE = 2
"""For each worker, so that it never waits for the next; few enough that sending never blocks."""
_POLL_S = 0.1
_PATIENCE_S = 5.0


class Job:
    """Some reads of one region, done by one worker."""

    def __init__(self, number: int, reads: Reads, region: Region, chosen: slice) -> None:
        self.number, self.reads, self.region, self.chosen = number, reads, region, chosen
        ends = np.cumsum(reads.count)
        self.first_member = int(ends[chosen.start] - reads.count[chosen.start])
        self._members = slice(self.first_member, int(ends[chosen.stop - 1]))
        self.damaged: list[int] | None = None
        """Members of `reads` that are not what they should be, once it is done."""
        self.failure: str | None = None
        """Why it cannot be done."""
        self.attempts = 0

    @property
    def is_over(self) -> bool:
        return self.damaged is not None or self.failure is not None

    def work(self) -> Work:
        """What a worker is told."""
        reads, chosen, start = self.reads, self.chosen, self.region.start
        used, shard = np.unique(reads.shard[chosen], return_inverse=True)
        ranges = [shard, reads.start[chosen], reads.size[chosen], reads.at[chosen] + start, reads.count[chosen]]
        checks = [reads.member_at[self._members] + start, reads.member_size[self._members]]
        return Work(
            job=self.number,
            shards=[(reads.shards[number].root, reads.shards[number].name) for number in used],
            reads=_words(ranges),
            checks=_words([*checks, reads.member_xxh3[self._members]]),
            own_memory=self.region.own_descriptor is not None,
        )

    def where(self, read: int) -> str:
        """Shard and sample that a read of this job begins with."""
        member = int(self.reads.count[: self.chosen.start + read].sum())
        return self.reads.places.where(int(self.reads.owner[member]))

    def finish(self, damaged: Sequence[int]) -> None:
        """Take down what came out."""
        self.damaged = [self.first_member + number for number in damaged]


def cut_into_jobs(reads: Reads, region: Region) -> list[Job]:
    """Jobs of a few reads each, in their order."""
    jobs: list[Job] = []
    first, size, members = 0, 0, 0
    for number, (length, count) in enumerate(zip(reads.size.tolist(), reads.count.tolist(), strict=True)):
        size, members = size + length, members + count
        is_full = size >= _BYTES_PER_JOB or number + 1 - first >= _READS_PER_JOB or members >= _MEMBERS_PER_JOB
        if is_full or number + 1 == len(reads.size):
            jobs.append(Job(len(jobs) + 1, reads, region, slice(first, number + 1)))
            first, size, members = number + 1, 0, 0
    return jobs


class ReaderPool:
    """Does jobs, in any order. Without workers, in this thread when they are waited for; then nothing ends a read."""

    def __init__(self, arena: Arena, *, workers: int, timeout_s: float) -> None:
        self.arena, self.timeout_s = arena, timeout_s
        self._files, self._queue = Files(), deque[Job]()
        self._selector = selectors.DefaultSelector()
        self._jobs = 0
        self.workers: list[_Worker] = []
        for number in range(workers):
            self.workers.append(_Worker(number, arena))
            self._selector.register(self.workers[-1].channel, selectors.EVENT_READ, self.workers[-1])

    def submit(self, jobs: list[Job]) -> None:
        """Put jobs into the queue; their memory must stay until they are over."""
        for job in jobs:
            self._jobs = job.number = self._jobs + 1
        self._queue.extend(jobs)
        self._hand_out()

    def wait(self, jobs: list[Job], stop: Event) -> None:
        """Until all of these are over, or `stop` is set."""
        while not stop.is_set() and not all(job.is_over for job in jobs):
            if not self.workers:
                self._do(self._queue.popleft())
                continue
            self._hand_out()
            heard = [key.data for key, _ in self._selector.select(_POLL_S)]
            for worker in heard:
                self._listen(worker)
            for worker in list(self.workers):
                if worker not in heard and worker.silent_s > self.timeout_s:
                    self._replace(worker, f"did not answer for data.read_timeout_s={self.timeout_s:g}")

    def close(self) -> None:
        """End all workers."""
        self._selector.close()
        for worker in self.workers:
            worker.end()
        self._files.close()

    def _do(self, job: Job) -> None:
        at = 0

        def begins(read: int) -> None:
            nonlocal at
            at = read

        try:
            job.finish(do_work(job.work(), job.region.memory, self._files, begins))
        except Exception as error:  # noqa: BLE001 - raised at the step that needs it
            job.failure = f"{job.where(at)} cannot be read ({describe(error)}): restore the shard"

    def _hand_out(self) -> None:
        # Evenly: one job each before a second for any.
        for depth in range(_JOBS_AT_ONCE):
            for number in range(len(self.workers)):
                worker = self.workers[number]
                if not self._queue:
                    return
                if len(worker.jobs) <= depth and not worker.take(self._queue.popleft()):
                    self._listen(worker)  # it may have said why before it ended

    def _listen(self, worker: "_Worker") -> None:
        answer = worker.hear()
        if answer is None:
            self._replace(worker, worker.fate())
        elif "error" in answer:
            self._replace(worker, f"failed ({answer['error']})")
        else:
            worker.jobs.popleft().finish(answer["damaged"])
            worker.alive()

    def _replace(self, worker: "_Worker", reason: str) -> None:
        """A new worker in its place with the same work; the job it was at is given up if that was tried before."""
        name = f"data worker {worker.number} (pid {worker.process.pid}) {reason}"
        self._selector.unregister(worker.channel)
        has_ended = worker.end()
        jobs = list(worker.jobs)
        if jobs:
            name += f" at {jobs[0].where(read_of_word(worker.progress(), jobs[0].number))}"
            jobs[0].attempts += 1
        if jobs and (jobs[0].attempts > 1 or not has_ended):
            again = ", as did the one before it with the same work" if jobs[0].attempts > 1 else ""
            stays = "" if has_ended else ", and it cannot be ended"
            jobs.pop(0).failure = f"{name}{again}{stays}: see that its storage answers, or restore the shard"
        else:
            # Every rank says this, and of ranks that are not the first only errors are shown.
            log.error("%s: a new one %s", name, "has its work" if jobs else "takes its place")
        self._queue.extendleft(reversed(jobs))
        new = _Worker(worker.number, self.arena)
        self.workers[worker.number] = new
        self._selector.register(new.channel, selectors.EVENT_READ, new)


class _Worker:
    """A process and what it has to do."""

    def __init__(self, number: int, arena: Arena) -> None:
        self.number, self._progress = number, arena.progress
        arena.progress[number] = 0
        self.jobs: deque[Job] = deque()
        # A socket of packets keeps messages apart.
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        descriptors = (theirs.fileno(), arena.descriptor)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "data.worker", *map(str, descriptors), str(number)],
            cwd=_ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=descriptors,
        )
        theirs.close()
        self.alive()

    def alive(self) -> None:
        """It was heard of just now."""
        self._heard, self._word = time.monotonic(), self._progress[self.number]

    def progress(self) -> int:
        """The word it left last."""
        return self._progress[self.number]

    @property
    def silent_s(self) -> float:
        """Since when nothing of its work has come on; 0 where it has none."""
        if not self.jobs or self.progress() != self._word:
            self.alive()
        return time.monotonic() - self._heard

    def take(self, job: Job) -> bool:
        """Hand on a job; False where nobody takes it."""
        if not self.jobs:
            self.alive()
        self.jobs.append(job)
        own = job.region.own_descriptor
        try:
            socket.send_fds(self.channel, [job.work().encode()], [] if own is None else [own])
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def hear(self) -> dict[str, Any] | None:
        """Its next message; None where it is no more."""
        message = b""
        for _ in range(2):
            # One that ends with work unread resets the line: that is told once, then what it had sent before.
            with suppress(ConnectionResetError):
                message = self.channel.recv(1 << 16)
                break
        return json.loads(message) if message else None

    def fate(self) -> str:
        """What became of one that closed its end."""
        try:
            code = self.process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            return "closed its line"
        return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"

    def end(self) -> bool:
        """Kill it; False where it stays, as one does that hangs inside the system."""
        self.channel.close()
        self.process.kill()
        try:
            self.process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            log.error("data worker %d (pid %d) cannot be ended", self.number, self.process.pid)
            return False
        return True


def _words(columns: list[np.ndarray]) -> memoryview:
    # Each by itself: signed and unsigned ones together would become floating point.
    words = np.stack([column.astype(np.uint64) for column in columns], axis=1)
    return memoryview(words.tobytes()).cast("Q")
