"""What an ingest will do: its settings, the files with their keys and captions, and the parts they are worked in."""

import hashlib
import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath
from stat import S_ISREG
from typing import Any
from urllib.parse import urlsplit

from data.listing import Columns, Listing, Row, extension_of, is_url

_LONGEST_KEY = 56
"""Leaves room, within a sample's key, for the numbers of row, piece and window."""
_UNSAFE = re.compile(r"[^A-Za-z0-9_/-]+|--+")
"""Two dashes stand before the numbers of row and piece alone, so that no file's key can be another's piece."""
_PART_BYTES = 256 << 20
_STATS_AT_ONCE = 16
_VERSION = 1
"""Goes up when the same settings begin to give other clips."""


@dataclass(frozen=True, kw_only=True)
class IngestConfig:
    """Everything but the media that decides what is written."""

    columns: Columns = field(default_factory=Columns)
    whole: bool = False
    """Keep each file or time range in one piece; bytes are copied where neither range nor size asks for more."""
    min_s: float = 1.0
    max_s: float = 20.0
    """Longer shots are cut into pieces of this length. Not asked where files are kept whole."""
    short_side: int | None = None
    """Pixels above which the shorter side is scaled down; None keeps every size."""
    crf: int = 16
    clips_per_shard: int = 256
    files_per_part: int = 32
    """A part is this many files, or fewer if they are large; work that was interrupted goes on with the next part."""

    def __post_init__(self) -> None:
        for name, least in (("clips_per_shard", 1), ("files_per_part", 1), ("crf", 0), ("min_s", 0)):
            if not getattr(self, name) >= least:
                raise ValueError(f"{_option(name)} {getattr(self, name)} must be at least {least}")
        if not self.max_s >= max(self.min_s, 0.1):
            raise ValueError(f"--max-s {self.max_s} must be at least 0.1 and not below --min-s {self.min_s}")
        if self.short_side is not None and self.short_side < 16:
            raise ValueError(f"--short-side {self.short_side} must be at least 16 pixels")

    def to_json(self) -> dict[str, Any]:
        return json.loads(json.dumps(asdict(self) | {"version": _VERSION}))


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Something of the collection that did not become a clip, or not whole; `reason` is KIND or KIND: DETAILS."""

    path: str
    reason: str
    row: int | None = None

    @property
    def kind(self) -> str:
        return self.reason.split(":")[0]

    def __str__(self) -> str:
        return f"{self.path}{f' (row {self.row})' if self.row else ''}: {self.reason}"


@dataclass(frozen=True, kw_only=True)
class MediaFile:
    """One video or image with its rows, which all can be used."""

    key: str
    path: str
    """As listed."""
    location: str
    """Where to open it: an absolute path, or a URL."""
    extension: str
    rows: tuple[Row, ...]
    bytes: int | None = None
    """None where it is not known beforehand: a URL, or a file that is not there."""
    mtime_ns: int | None = None


@dataclass(frozen=True, kw_only=True)
class Part:
    """Files that are worked together; `hash` names them, their captions and their state."""

    number: int
    files: tuple[MediaFile, ...]
    hash: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All parts, and what is known to be no good before any file is opened."""

    config: IngestConfig
    parts: list[Part]
    problems: list[Problem]
    ignored: Counter[str]

    @property
    def files(self) -> int:
        return sum(len(part.files) for part in self.parts)

    def inputs(self) -> str:
        """Names all files and captions in their present state."""
        problems = [str(problem) for problem in self.problems]
        return _hash([[part.hash for part in self.parts], problems])


def make_plan(listing: Listing, config: IngestConfig) -> Plan:
    """Group rows by file, give keys, cut into parts. The same list and files give the same plan."""
    problems: list[Problem] = []
    files = _with_state(_with_keys(_group(listing, problems), listing.folder, problems))
    parts = [
        Part(number=number, files=tuple(some), hash=_hash([_VERSION, [_state(file) for file in some]]))
        for number, some in enumerate(_cut(files, config))
    ]
    return Plan(config=config, parts=parts, problems=problems, ignored=listing.ignored)


def _group(listing: Listing, problems: list[Problem]) -> dict[str, list[Row]]:
    """Location -> its rows, in order of first appearance."""
    groups: dict[str, list[Row]] = {}
    ranges: dict[tuple[str, float, float], int] = {}
    for row in listing.rows:
        if row.problem:
            problems.append(Problem(path=row.path, row=row.number, reason=row.problem))
            continue
        location = row.path if is_url(row.path) else os.path.abspath(listing.folder / row.path)
        first = ranges.setdefault((location, row.start_s, row.end_s), row.number)
        if first != row.number:
            reason = f"duplicate row: row {first} gives the same media and time range"
            problems.append(Problem(path=row.path, row=row.number, reason=reason))
            continue
        groups.setdefault(location, []).append(row)
    return groups


def _with_keys(groups: dict[str, list[Row]], folder: Path, problems: list[Problem]) -> list[MediaFile]:
    files: dict[str, MediaFile] = {}
    for location, rows in groups.items():
        path = rows[0].path
        key = key_of(location if is_url(location) else _relative(location, folder))
        if key in files:
            reason = f"duplicate key: {key} is taken by {files[key].path}; rename one of them"
            problems += [Problem(path=path, row=row.number, reason=reason) for row in rows]
            continue
        files[key] = MediaFile(
            key=key, path=path, location=location, extension=extension_of(location), rows=tuple(rows)
        )
    return list(files.values())


def _relative(location: str, folder: Path) -> str:
    root = os.path.abspath(folder)
    return os.path.relpath(location, root) if location.startswith(root.rstrip("/") + "/") else location


def key_of(path: str) -> str:
    """A safe key for a file: its path without extension; a hash is added where letters had to change, or go."""
    parts = urlsplit(path) if is_url(path) else None
    plain = f"{parts.netloc}{parts.path}" if parts else path
    stem = str(PurePosixPath(plain).with_suffix("")).strip("/")
    safe = _UNSAFE.sub("_", stem)
    if safe == stem and len(safe) <= _LONGEST_KEY and not (parts and parts.query):
        return safe
    digest = hashlib.sha256(path.encode("utf-8", "surrogateescape")).hexdigest()[:10]
    return f"{safe[-(_LONGEST_KEY - 11) :].lstrip('/')}-{digest}"


def _with_state(files: Sequence[MediaFile]) -> list[MediaFile]:
    """Sizes and times of change; asked for together, since a network's file system takes its time for each."""
    with ThreadPoolExecutor(_STATS_AT_ONCE) as pool:
        return list(pool.map(_with_own_state, files, chunksize=64))


def _with_own_state(file: MediaFile) -> MediaFile:
    if is_url(file.location):
        return file
    try:
        state = os.stat(file.location)
    except OSError:
        return file  # whoever opens it will say what is wrong
    return replace(file, bytes=state.st_size, mtime_ns=state.st_mtime_ns) if S_ISREG(state.st_mode) else file


def _cut(files: Sequence[MediaFile], config: IngestConfig) -> Iterator[list[MediaFile]]:
    some: list[MediaFile] = []
    size = 0
    for file in files:
        if some and (len(some) >= config.files_per_part or size + (file.bytes or 0) > _PART_BYTES):
            yield some
            some, size = [], 0
        some.append(file)
        size += file.bytes or 0
    if some:
        yield some


def _state(file: MediaFile) -> list[Any]:
    rows = [
        [row.number, row.captions, row.source, row.start_s, row.end_s if row.end_s < math.inf else None]
        for row in file.rows
    ]
    return [file.key, file.path, file.bytes, file.mtime_ns, rows]


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
