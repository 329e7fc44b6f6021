"""One part of an ingest: its files to shards and a record. The record comes last: a part stands when it is there."""

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from data.clips import ClipShardWriter
from data.decode import IMAGE_EXTENSIONS
from data.ingest_media import SHORT_PIECES, clips_of
from data.ingest_plan import IngestConfig, Part, Problem
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
    found: dict[str, Any] = json.loads(path.read_text())
    shards = tuple(ShardInfo(**shard) for shard in found.pop("shards"))
    problems = tuple(Problem(**problem) for problem in found.pop("problems"))
    record = PartRecord(**found, shards=shards, problems=problems)
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
