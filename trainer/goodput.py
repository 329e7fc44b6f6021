"""Where the hours of a run went, over all its starts: training, what goes with it, and what was lost."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

PARTS = ("start", "data", "step", "evaluation", "samples", "checkpoints", "lost")
"""Seconds until the loop begins; waiting for data; steps; three things along the way; and steps done again."""
_PREFIX = "goodput/"
_IMPORTED = time.monotonic()
P = ParamSpec("P")
T = TypeVar("T")


class Goodput:
    """Seconds by part; those of earlier starts are in the record of the run."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.carried = dict.fromkeys(PARTS, 0.0)

    def carry(self, before: dict[str, Any], undone: dict[str, Any]) -> None:
        """Go on from the last row before the step a run resumes from; what came after that row was lost.

        `undone` is the last row of all. What a start did after its last row, and the time in between, nobody knows.
        """
        for part in PARTS:
            self.carried[part] = float(before.get(f"{_PREFIX}{part}_s", 0.0))
        if undone:
            spent = sum(float(undone.get(f"{_PREFIX}{part}_s", 0.0)) for part in PARTS)
            self.carried["lost"] += max(0.0, spent - sum(self.carried.values()))

    @contextmanager
    def measured(self, part: str) -> Iterator[None]:
        """Add the seconds of a `with` block to a part."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] += time.perf_counter() - start

    def row(self) -> dict[str, float]:
        """Seconds of each part so far, and the share that was training."""
        total = {part: self.carried[part] + self.seconds[part] for part in PARTS}
        whole = sum(total.values())
        row = {f"{_PREFIX}{part}_s": round(seconds, 3) for part, seconds in total.items()}
        return row | {f"{_PREFIX}share": round(total["step"] / whole, 4) if whole else 0.0}

    def told(self) -> str:
        """`3 h 05 min: step 91 %, data 4 %, ...`, the longest first."""
        total = {part: self.carried[part] + self.seconds[part] for part in PARTS}
        whole = sum(total.values())
        largest = sorted(total, key=lambda part: -total[part])
        shares = [f"{part} {total[part] / whole:.0%}" for part in largest if total[part] >= 0.005 * whole]
        return f"{duration(whole)}: {', '.join(shares)}"


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 05 min`, `2 d 4 h`."""
    minutes = round(seconds / 60)
    if seconds < 60:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"


def clock(at: float) -> str:
    """`05:24`, and the day before it where that is not today."""
    today = time.localtime()[:3] == time.localtime(at)[:3]
    return time.strftime("%H:%M" if today else "%a %d %b %H:%M", time.localtime(at))


def is_counted(row: dict[str, Any]) -> bool:
    """Whether a row of the record says where time went."""
    return f"{_PREFIX}step_s" in row


def counted(part: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """A function of a run whose seconds count as this part."""

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @wraps(function)
        def measured(*args: P.args, **kwargs: P.kwargs) -> T:
            run: Any = args[0]
            with run.metrics.goodput.measured(part):
                return function(*args, **kwargs)

        return measured

    return decorate


def process_age_s() -> float:
    """Seconds since this process began, its imports among them; where the system does not say, since this import."""
    stat, uptime = Path("/proc/self/stat"), Path("/proc/uptime")
    if not stat.exists():
        return time.monotonic() - _IMPORTED
    started = int(stat.read_text(encoding="utf-8").rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    return float(uptime.read_text(encoding="utf-8").split()[0]) - started
