"""Parts of an ingest, side by side: files to shards, and a record at last, with which a part stands."""

import json
import tempfile
import time
from collections import Counter, deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from data.clips import ClipShardWriter
from data.decode import IMAGE_EXTENSIONS
from data.ingest_media import SHORT_PIECES, clips_of
from data.ingest_plan import IngestConfig, Part, Plan, Problem
from data.processes import Crew, Died
from data.progress import Progress
from data.shards import ShardInfo, write_whole

RECORDS = "parts"


@dataclass(frozen=True, kw_only=True)
class PartRecord:
    """What became of a part."""

    hash: str
    files: int
    files_used: int
    """Those that gave at least one clip."""
    clips: int = 0
    images: int = 0
    """Counted in `clips` too."""
    video_s: float = 0.0
    shards: tuple[ShardInfo, ...] = ()
    problems: tuple[Problem, ...] = field(default=())


def read_record(folder: Path, part: Part) -> PartRecord | None:
    """The record of a part that stands, made from the same files; else None."""
    path = _record_path(folder, part.number)
    if not path.is_file():
        return None
    try:
        found: dict[str, Any] = json.loads(path.read_text())
        shards = tuple(ShardInfo(**shard) for shard in found.pop("shards"))
        problems = tuple(Problem(**problem) for problem in found.pop("problems"))
        record = PartRecord(**found, shards=shards, problems=problems)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}): remove it, and its part is made again") from error
    return record if record.hash == part.hash and all(_is_there(folder, shard) for shard in shards) else None


def _is_there(folder: Path, shard: ShardInfo) -> bool:
    path = folder / shard.name
    return path.is_file() and path.stat().st_size == shard.bytes


def _record_path(folder: Path, number: int) -> Path:
    return folder / RECORDS / f"{number:06d}.json"


def make_part(
    part: Part, config: IngestConfig, folder: Path, *, crashed: Mapping[int, str], strict: bool = False
) -> Iterator[tuple[int, int] | PartRecord]:
    """Work all files of a part; gives (index of the file at hand, clips so far) on the way, and at last the record.

    Files in `crashed` are left out for the reason given there. Raises ValueError at the first problem if `strict`.
    """
    record_path = _record_path(folder, part.number)
    record_path.unlink(missing_ok=True)
    prefix = f"clips-{part.number:06d}"
    for stale in folder.glob(f"{prefix}-*.tar"):
        stale.unlink()
    problems: list[Problem] = []
    clips = images = used = 0
    video_s = 0.0
    writer = ClipShardWriter(folder, clips_per_shard=config.clips_per_shard, prefix=prefix)
    with tempfile.TemporaryDirectory(dir=folder, prefix="fetch-") as scratch:
        for index, file in enumerate(part.files):
            yield index, clips
            if index in crashed:
                problems.append(Problem(path=file.path, reason=crashed[index]))
            before = clips
            found = clips_of(file, config, problems=problems, scratch=Path(scratch)) if index not in crashed else ()
            for clip in found:
                writer.write(clip)
                clips += 1
                images += clip.extension in IMAGE_EXTENSIONS
                video_s += clip.meta["end_s"] - clip.meta["start_s"]
                yield index, clips
            used += clips > before
            if strict:
                refuse_problems(problems)
    record = PartRecord(
        hash=part.hash,
        files=len(part.files),
        files_used=used,
        clips=clips,
        images=images,
        video_s=round(video_s, 3),
        shards=tuple(writer.close()),
        problems=tuple(problems),
    )
    write_whole(record_path, json.dumps(asdict(record), indent=1).encode())
    yield record


def refuse_problems(problems: Iterable[Problem]) -> None:
    """ValueError at the first that cost a whole file or row."""
    for problem in problems:
        if problem.kind != SHORT_PIECES:
            raise ValueError(f"--strict: {problem}: mend it, or go on without --strict; the finished parts are kept")


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
    with Crew[Part](pool.workers, preload=__name__) as crew:
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
                        died = deaths.setdefault(part.number, Counter())
                        died[at[part.number]] += 1
                        if died[at[part.number]] > _DEATHS_OF_A_FILE:  # though the file was left out
                            raise said
                        waiting.appendleft(part)
                    case index, clips:
                        at[part.number] = index
                        progress.hear(part, index, clips)
            progress.show()
