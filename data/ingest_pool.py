"""Parts of an ingest worked side by side; a process that dies is found, with the file it died on."""

import time
from collections import Counter, deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

from data.ingest_part import PartRecord, make_part
from data.ingest_plan import IngestConfig, Part, Plan
from data.processes import Crew, Died
from data.progress import Progress

_TICK_S = 0.5
_CRASHED = "crashed: the process that decoded it died, twice"
_DEATHS_OF_A_FILE = 2
"""A worker that dies on a file may have been killed for another's sake; the second time it was the file."""


@dataclass(frozen=True, kw_only=True)
class PoolConfig:
    """Where the parts are worked, and by how many processes."""

    ingest: IngestConfig
    folder: Path
    workers: int
    strict: bool = False


class IngestProgress(Progress):
    """Counts files and clips; time left goes by bytes where the sizes of all files are known, else by files."""

    columns = ("{task.fields[line]}",)

    def __init__(self, plan: Plan, standing: dict[int, PartRecord]) -> None:
        super().__init__("", plan.files, "file")
        self._by_bytes = all(file.bytes is not None for part in plan.parts for file in part.files)
        self._amount_total = sum(self._amount(part, len(part.files)) for part in plan.parts)
        self._heard: dict[int, tuple[float, int, int]] = {}
        """Part -> amount done, files done and clips made in it."""
        for part in plan.parts:
            if part.number in standing:
                self.hear(part, standing[part.number].files, standing[part.number].clips)
        self._before = self._sums()[0]

    def hear(self, part: Part, files: int, clips: int) -> None:
        """So many files of a part are done, with so many clips."""
        self._heard[part.number] = (self._amount(part, files), files, clips)

    def line(self) -> str:
        """Files done of all, clips, rate, time left."""
        amount, files, clips = self._sums()
        rate = (amount - self._before) / max(time.monotonic() - self._started, 1e-9)
        left = f", {_duration((self._amount_total - amount) / rate)} left" if rate > 0 else ""
        shown = f"{rate / 2**20:.1f} MiB/s" if self._by_bytes else f"{rate:.1f} files/s"
        return f"{files} of {self.total} files, {clips} clips, {shown}{left}"

    def _sums(self) -> tuple[float, int, int]:
        amounts, files, clips = zip(*self._heard.values(), strict=True) if self._heard else ((), (), ())
        return sum(amounts), sum(files), sum(clips)

    def _amount(self, part: Part, files: int) -> float:
        """Bytes of the first files of a part, or their number."""
        return sum(file.bytes or 0 for file in part.files[:files]) if self._by_bytes else files


def _duration(seconds: float) -> str:
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    return f"{seconds:.0f} s" if seconds < 120 else f"{minutes} min" if seconds < 7200 else f"{hours} h"


def work_parts(
    parts: Sequence[Part], pool: PoolConfig, progress: IngestProgress
) -> Generator[tuple[Part, PartRecord], None, None]:
    """Work all parts, each yielded when it stands, in any order.

    Raises ValueError, OSError or RuntimeError where a worker could not go on; all workers are gone when this ends.
    """
    waiting = deque(parts)
    at: dict[int, int] = {}
    """Part -> file that it was heard of at last."""
    deaths: dict[int, Counter[int]] = {}
    with Crew[Part](pool.workers, preload=make_part.__module__) as crew:
        while waiting or len(crew):
            while waiting and crew.has_room:
                part = waiting.popleft()
                died = deaths.get(part.number, Counter())
                crashed = {index: _CRASHED for index, count in died.items() if count >= _DEATHS_OF_A_FILE}
                at[part.number] = 0
                crew.start(part, make_part, part, pool.ingest, pool.folder, crashed=crashed, strict=pool.strict)
            for part, said in crew.hear(_TICK_S):
                match said:
                    case PartRecord():
                        yield part, said
                    case Died():
                        deaths.setdefault(part.number, Counter())[at[part.number]] += 1
                        waiting.appendleft(part)
                    case index, clips:
                        at[part.number] = index
                        progress.hear(part, index, clips)
            progress.show()
