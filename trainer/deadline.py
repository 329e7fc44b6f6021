"""The time limit of a job: nothing is begun that could not be finished, and saved, before it."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from parallel.launch import SlurmJob
from trainer.goodput import clock, duration

_MARGIN_S = 10.0
_SLOWER = 1.5
"""How much longer than its longest yet a thing may take."""


class Deadline:
    """When a job ends, and how long each kind of thing took at most."""

    def __init__(self, end_time: float | None, *, closing_s: float = 0.0) -> None:
        """`end_time` in seconds since 1970; None where there is no limit. Leaving may take `closing_s` at most."""
        self._end_time, self._margin_s = end_time, _MARGIN_S + closing_s
        self._longest_s: dict[str, float] = {}

    @classmethod
    def of_job(cls, *, closing_s: float = 0.0) -> "Deadline":
        """That of the SLURM job this process belongs to; without a limit outside of one."""
        job = SlurmJob.from_environment()
        return cls(None if job is None else job.end_time, closing_s=closing_s)

    @contextmanager
    def measured(self, kind: str) -> Iterator[None]:
        """Remember how long the block takes."""
        start = time.perf_counter()
        yield
        self._longest_s[kind] = max(self._longest_s.get(kind, 0.0), time.perf_counter() - start)

    def told(self) -> str | None:
        """When time is up, for the log; None where there is no limit."""
        if self._end_time is None:
            return None
        left = duration(max(0.0, self._end_time - time.time()))
        return f"the job's time is up at {clock(self._end_time)}, in {left}: the run saves and leaves before that"

    def forbids(self, kinds: Iterable[str]) -> str | None:
        """Why things of these kinds, done one after the other, would end too late; None where they would not.

        A kind that was not seen yet counts nothing: SLURM's signal before the limit is the second net.
        """
        if self._end_time is None:
            return None
        left = self._end_time - time.time()
        needed = _SLOWER * sum(self._longest_s.get(kind, 0.0) for kind in kinds) + self._margin_s
        if needed <= left:
            return None
        return f"the job's time limit ({left:.0f} s are left, {needed:.0f} s may be needed)"
