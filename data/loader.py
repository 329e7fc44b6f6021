"""The training loader: planned packs read as byte ranges of plain tars, ahead of the step that needs them."""

import math
import os
import queue
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import TracebackType

import numpy as np
import torch
from torch import Tensor

from data.arena import Arena, Region
from data.balance import imbalance
from data.curriculum import Curriculum
from data.pack import PackPlan, Position
from data.places import Abandoned, Places
from data.pool import Job, ReaderPool, cut_into_jobs
from data.reads import Reads, damage, packed_starts, plan_reads
from data.sample import Memory, Sample, build_sample, wanted_members
from data.step import RankShare, ReadAhead, StepData

_POLL_S = 0.05
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


@dataclass(frozen=True, kw_only=True)
class _Planned:
    """A step before its samples are there."""

    step: StepData
    mine: tuple[tuple[int, ...], ...]
    """Rows of this rank's packs."""
    places: Places
    """Of these rows."""
    failure: str | None = None
    """Why one of them cannot be had; `places` are then empty."""


@dataclass(frozen=True, kw_only=True)
class _Chunk:
    """Steps that are read together."""

    steps: list[_Planned]
    reads: Reads
    region: Region
    jobs: list[Job]


@dataclass(frozen=True, kw_only=True)
class _Ready:
    """A step with its samples, or with memory that they will be handed to."""

    planned: _Planned
    packs: tuple[tuple[Sample, ...], ...] | None
    memory: Tensor | None
    """All its bytes, where they are handed on."""


class Loader(Iterator[StepData]):
    """Steps from a position on, read ahead by worker processes. Use as a context manager.

    What goes wrong is raised by `wait` or `next` at the step that it concerns. The steps do not depend on the workers.
    """

    def __init__(
        self,
        plan: Curriculum | PackPlan,
        *,
        start: Position | None = None,
        packs_per_step: int,
        steps: int | None = None,
        share: RankShare | None = None,
        ahead: ReadAhead | None = None,
        hand_on: Callable[[Tensor], None] | None = None,
    ) -> None:
        """`hand_on` gives the bytes (uint8) of the rank that reads to those that share its packs, in place.

        After `steps` it ends, and reads no further; None has no end.
        """
        self.share, self.ahead = share or RankShare(), ahead or ReadAhead()
        ranks = self.share.data_size
        if packs_per_step < 1 or packs_per_step % ranks:
            raise ValueError(
                f"data.packs_per_step={packs_per_step} must be a multiple of the {ranks} data-parallel ranks: "
                f"take {max(1, round(packs_per_step / ranks)) * ranks}"
            )
        assert self.share.reads or hand_on is not None
        self.plan = Curriculum([plan]) if isinstance(plan, PackPlan) else plan
        self.packs_per_step, self._data, self._hand_on = packs_per_step, self.plan.plans[0].data, hand_on
        self._members = wanted_members(latents=self.share.latents)
        self._arena = None
        if self.share.reads:
            self._arena = Arena(self.ahead.num_bytes, workers=self.ahead.workers)
        self._position = start or Position()
        self._unplanned: float = math.inf if steps is None else steps
        """Steps that are wanted and not planned yet."""
        self._unasked = self._unplanned
        # Samples that are made cost far more than they cost to read: each step is handed out before the next is made.
        self._makes = any(manifest.supply is not None for manifest in self._data.manifests)
        self._places = Places.of(self._data, [])
        self._began = False
        self._unread: list[_Planned] = []
        """Steps that wait for room."""
        self._queue: queue.SimpleQueue[_Ready | Exception] = queue.SimpleQueue()
        self._stop, self._taken = threading.Event(), threading.Event()
        self._failed: Exception | None = None
        self._ready: _Ready | None = None
        self._waited_s = 0.0
        self._put_bytes = self._taken_bytes = 0
        """To be handed on; the thread counts the one, whoever takes steps the other."""
        self._thread = threading.Thread(target=self._read_ahead, name="loader", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Until the next step is read, where one follows; raises what went wrong with it.

        With `hand_on`, before that is called.
        """
        if self._failed is not None:
            raise self._failed
        assert not self._stop.is_set(), "the loader is closed"
        if self._ready is not None or not self._unasked:
            return
        started = time.perf_counter()
        item = self._queue.get()
        self._waited_s = time.perf_counter() - started
        self._taken.set()
        if isinstance(item, Exception):
            self._failed = item
            raise item
        self._ready = item
        self._taken_bytes += 0 if item.memory is None else item.memory.nbytes

    def __next__(self) -> StepData:
        if not self._unasked:
            raise StopIteration
        self.wait()
        assert self._ready is not None
        ready, self._ready, self._unasked = self._ready, None, self._unasked - 1
        packs = ready.packs
        if self._hand_on is not None:
            assert ready.memory is not None
            self._hand_on(ready.memory)
            packs = packs or self._packs_in(ready.planned, ready.memory)
        assert packs is not None
        return replace(ready.planned.step, packs=packs, waited_s=self._waited_s)

    def __enter__(self) -> "Loader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop reading ahead, end the workers and close the shards. Samples that were handed out stay."""
        self._stop.set()
        self._taken.set()
        self._thread.join()
        self._ready = None
        while not self._queue.empty():
            self._queue.get()
        if self._arena is not None:
            self._arena.close()
            self._arena = None

    def _read_ahead(self) -> None:
        # Ctrl-C and a scheduler's signals are for the trainer, which may still need some steps: neither this thread nor
        # the workers, which inherit what it blocks, take them.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            if self._arena is None:
                self._plan_ahead()
                return
            pool = ReaderPool(self._arena, workers=self.ahead.workers, timeout_s=self.ahead.timeout_s)
            try:
                self._keep_reading(self._arena, pool)
            finally:
                pool.close()
        except Abandoned:
            assert self._stop.is_set()
        except OSError as error:
            self._queue.put(ValueError(f"the loader cannot read ({error}): see that the machine has what it needs"))
        except Exception as error:  # noqa: BLE001 - handed to the consumer, which raises it
            self._queue.put(error)

    def _plan_ahead(self) -> None:
        """Steps whose bytes come from another rank."""
        while not self._stop.is_set():
            while self._unplanned and self._queue.qsize() < self.ahead.steps and not self._is_full:
                planned = self._plan_step()
                memory = torch.empty(packed_starts(planned.places, self._members)[1], dtype=torch.uint8)
                self._put(planned, packs=None, memory=memory)
            self._rest()

    def _put(self, planned: _Planned, *, packs: tuple[tuple[Sample, ...], ...] | None, memory: Tensor | None) -> None:
        self._put_bytes += 0 if memory is None else memory.nbytes
        self._queue.put(_Ready(planned=planned, packs=packs, memory=memory))

    @property
    def _is_full(self) -> bool:
        """Of bytes that are to be handed on, which lie outside of the arena."""
        return not self._queue.empty() and self._put_bytes - self._taken_bytes >= self.ahead.num_bytes

    def _keep_reading(self, arena: Arena, pool: ReaderPool) -> None:
        pending: deque[_Chunk] = deque()
        while not self._stop.is_set():
            while self._has_room(pending) and (chunk := self._begin(arena, pool, pending)):
                pending.append(chunk)
                del chunk
            if not pending:
                self._rest()
                continue
            pool.wait(pending[0].jobs, self._stop)
            if not self._stop.is_set():
                self._deliver(pending.popleft())

    def _rest(self) -> None:
        """Until a step is taken; not for long where memory is waited for."""
        self._taken.wait(_POLL_S if self._unread else None)
        self._taken.clear()

    @property
    def _chunk_steps(self) -> int:
        """Steps read together: neighbours are found among more samples. The first comes alone, to be there soon."""
        return max(1, self.ahead.steps // 2) if self._began and not self._makes else 1

    def _has_room(self, pending: Sequence[_Chunk]) -> bool:
        if self._is_full or (pending and self._makes):
            return False
        ahead = self._queue.qsize() + sum(len(chunk.steps) for chunk in pending)
        following = len(self._unread) or min(self._chunk_steps, self._unplanned)
        return 0 < following <= self.ahead.steps - ahead

    def _begin(self, arena: Arena, pool: ReaderPool, pending: Sequence[_Chunk]) -> _Chunk | None:
        """Have the next steps read; None where others are to be handed out first.

        These are others that lie ready where there is no memory, and those before one that cannot be planned.
        """
        try:
            steps = self._unread or self._plan_steps(arena.size // 2)
        except ValueError:
            if not pending:
                raise
            return None  # it is raised again once they are handed out
        places = Places.joined([planned.places for planned in steps])
        urgency = np.full(len(places), len(steps))
        for number, planned in reversed(list(enumerate(steps))):
            urgency[np.searchsorted(places.rows, planned.places.rows)] = number
        reads = plan_reads(places, self._members, urgency=urgency)
        num_bytes = max(1, reads.num_bytes)  # of a step that cannot be had nothing is read
        region = arena.allocate(num_bytes)
        if region is None and (pending or not self._queue.empty()):
            self._unread = steps
            return None
        region = region or arena.allocate_apart(num_bytes)
        jobs = cut_into_jobs(reads, region)
        pool.submit(jobs)
        self._unread, self._began = [], True
        return _Chunk(steps=steps, reads=reads, region=region, jobs=jobs)

    def _plan_steps(self, limit_bytes: int) -> list[_Planned]:
        steps = [self._plan_step()]
        size = sum(int(steps[0].places.columns[f"{member}_size"].sum()) for member in self._members)
        most = min(self._chunk_steps, len(steps) + self._unplanned)
        while len(steps) < most and size * (len(steps) + 1) <= limit_bytes:
            try:
                steps.append(self._plan_step())
            except ValueError:
                break  # it is raised when these were handed out, and it comes first
        return steps

    def _plan_step(self) -> _Planned:
        packs, after = self.plan.step(self._position, self.packs_per_step)
        share = self.packs_per_step // self.share.data_size
        mine = packs[self.share.data_rank * share : (self.share.data_rank + 1) * share]
        step = StepData(
            position_after=after,
            packs=(),
            visits=tuple(pack.visits for pack in mine),
            rows=tuple(pack.rows for pack in packs),
            video_tokens=sum(pack.video_tokens for pack in packs),
            token_budget=self.packs_per_step * self.plan.plans[0].tokens_per_pack,
            imbalance=imbalance([pack.cost for pack in packs], self.share.data_size),
            data=self._data,
        )
        rows = tuple(pack.rows for pack in mine)
        places, failure = self._places_of(np.array([row for pack in rows for row in pack]), after), None
        self._position, self._unplanned = after, self._unplanned - 1
        if self._arena is not None:
            try:
                places = places.supplied(self._members, lambda: not self._stop.is_set())
            except ValueError as error:  # raised at its step
                places, failure = places.take(np.empty(0, dtype=np.int64)).supplied(self._members), str(error)
                self._unplanned = 0  # nothing comes after it
        return _Planned(step=step, mine=rows, places=places, failure=failure)

    def _places_of(self, rows: np.ndarray, after: Position) -> Places:
        """Look up rows; with them all of the window that is planned from, whose rows are all over the manifest."""
        if not self._places.has(rows):
            window = self.plan.plan(after).window_packs(after.epoch, after.window)
            self._places = Places.of(self._data, np.concatenate([rows, *(pack.rows for pack in window)]))
        return self._places.take(rows)

    def _deliver(self, chunk: _Chunk) -> None:
        """Make samples and put them into the queue, step by step up to the first that something is wrong with."""
        if chunk.region.own_descriptor is not None:
            os.close(chunk.region.own_descriptor)
        wrong = _wrong_samples(chunk)
        starts = chunk.reads.starts()
        for planned in chunk.steps:
            if planned.failure is not None:
                raise ValueError(planned.failure)
            # In the order of the packs: which one is told then does not depend on the number of ranks.
            for number in np.searchsorted(chunk.reads.places.rows, [row for pack in planned.mine for row in pack]):
                if int(number) in wrong:
                    raise ValueError(wrong[int(number)])
            numbers = np.searchsorted(chunk.reads.places.rows, planned.places.rows).tolist()
            memory = chunk.region.tensor
            where = [starts[number] for number in numbers]
            if self._hand_on is not None:
                memory, where = self._packed(planned, memory, where)
            packs = _packs(planned, memory, where)
            handed_on = memory if self._hand_on is not None else None
            self._put(planned, packs=packs, memory=handed_on)

    def _packed(
        self, planned: _Planned, memory: Tensor, where: list[dict[str, int]]
    ) -> tuple[Tensor, list[dict[str, int]]]:
        """A copy of a step's members without what lies between them, as ranks that do not read expect it."""
        starts, size = packed_starts(planned.places, self._members)
        packed = torch.zeros(size, dtype=torch.uint8)
        for number, (old, new) in enumerate(zip(where, starts, strict=True)):
            for member in self._members:
                length = int(planned.places.columns[f"{member}_size"][number])
                packed[new[member] : new[member] + length] = memory[old[member] : old[member] + length]
        return packed, starts

    def _packs_in(self, planned: _Planned, memory: Tensor) -> tuple[tuple[Sample, ...], ...]:
        return _packs(planned, memory, packed_starts(planned.places, self._members)[0])


def _packs(planned: _Planned, memory: Tensor, starts: list[dict[str, int]]) -> tuple[tuple[Sample, ...], ...]:
    """Samples of a step, those that come twice made once; `starts` in the order of its places."""
    rows, viewed = planned.places.rows.tolist(), Memory(memory)
    samples = {row: build_sample(planned.places, number, viewed, starts[number]) for number, row in enumerate(rows)}
    return tuple(tuple(samples[row] for row in pack) for pack in planned.mine)


def _wrong_samples(chunk: _Chunk) -> dict[int, str]:
    """Of the samples of a chunk that cannot be used: why."""
    wrong: dict[int, str] = {}
    members = np.cumsum(chunk.reads.count)
    for job in chunk.jobs:
        for member in job.damaged or ():
            wrong.setdefault(int(chunk.reads.owner[member]), damage(chunk.reads, member))
        if job.failure is not None:
            first = job.first_member
            for member in range(first, int(members[job.chosen.stop - 1])):
                wrong[int(chunk.reads.owner[member])] = job.failure
    return wrong
