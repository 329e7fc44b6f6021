"""Parts of an ingest worked side by side; a process that dies is found, with the file it died on."""

from collections import Counter, deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

from data.ingest_part import PartRecord, make_part
from data.ingest_plan import IngestConfig, Part
from data.ingest_progress import IngestProgress
from data.processes import Crew, Died

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
