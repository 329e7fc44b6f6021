"""The list of a collection, media with captions: a folder with side-cars, or a CSV, JSONL or Parquet file."""

import csv
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import pyarrow
import pyarrow.parquet

from data.decode import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS

_LONGEST_FIELD = 1 << 20
_READERS = 16
_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_LISTS = (*_SEPARATORS, ".jsonl", ".ndjson", ".parquet")
_PLAIN_CAPTIONS = (("descriptive", "descriptive"), ("short", "short"), ("descriptive", "caption"))
"""Caption kind and column where none are named; the first column there gives a kind its text."""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Names of columns in a list, and of fields in a side-car KEY.json."""

    path: str = "path"
    captions: tuple[tuple[str, str], ...] = ()
    """(caption kind, column) pairs. Without any: `descriptive` (or `caption`) and `short`."""
    source: str = "source"
    start_s: str = "start_s"
    end_s: str = "end_s"

    @property
    def caption_columns(self) -> tuple[tuple[str, str], ...]:
        return self.captions or _PLAIN_CAPTIONS


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One row of a list; `problem` says why it cannot be used, if so. Times in seconds of the media."""

    number: int
    path: str
    captions: dict[str, str] = field(default_factory=dict)
    source: str = ""
    start_s: float = 0.0
    end_s: float = math.inf
    problem: str | None = None

    @property
    def is_whole(self) -> bool:
        return self.start_s == 0.0 and self.end_s == math.inf


@dataclass(frozen=True, kw_only=True)
class Listing:
    """All rows in order; paths that are neither absolute nor URLs are relative to `folder`."""

    folder: Path
    rows: list[Row]
    ignored: Counter[str]
    """Files of a folder that are no media, by extension."""


def read_listing(source: str | Path, columns: Columns) -> Listing:
    """Read a list, or make one of a folder; ValueError where it cannot be one."""
    source = Path(source)
    if source.is_dir():
        return _of_folder(source, columns)
    if not source.is_file():
        raise ValueError(f"{source} is neither a folder nor a file: give a folder of media, or a list of them")
    kind = source.suffix.lower()
    if kind not in _LISTS:
        raise ValueError(f"{source} is no list that can be read: give a folder, or one of {', '.join(_LISTS)}")
    records = _table(source, columns) if kind == ".parquet" else _text(source, columns, kind)
    rows = [_row(number, record, columns) for number, record in enumerate(records, start=1)]
    if not rows:
        raise ValueError(f"{source} has no rows: give a list with at least one")
    return Listing(folder=source.parent, rows=rows, ignored=Counter())


def is_url(path: str) -> bool:
    """Whether a listed path is for fsspec."""
    return "://" in path


def extension_of(path: str) -> str:
    """Lower-case, without the dot; of a URL's path, not of its query."""
    return PurePosixPath(urlsplit(path).path if is_url(path) else path).suffix.lower().removeprefix(".")


def _text(source: Path, columns: Columns, kind: str) -> Iterator[dict[str, Any]]:
    try:
        with open(source, newline="", encoding="utf-8-sig") as file:
            if kind in _SEPARATORS:
                csv.field_size_limit(_LONGEST_FIELD)
                table = csv.DictReader(file, delimiter=_SEPARATORS[kind])
                _check_columns(source, table.fieldnames or [], columns)
                yield from table
            else:
                yield from (_parsed(line) for line in file if line.strip())
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{source} cannot be read as UTF-8 {kind} ({error}): correct the list") from error


def _parsed(line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        return {"": f"bad row: not JSON ({error})"}
    return record if isinstance(record, dict) else {"": "bad row: not a JSON object"}


def _table(source: Path, columns: Columns) -> Iterator[dict[str, Any]]:
    try:
        with pyarrow.parquet.ParquetFile(source) as table:
            names = table.schema_arrow.names
            _check_columns(source, names, columns)
            wanted = {columns.path, "captions", columns.source, columns.start_s, columns.end_s}
            wanted |= {column for _, column in columns.caption_columns}
            for batch in table.iter_batches(columns=[name for name in names if name in wanted]):
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{source} cannot be read as Parquet ({error}): correct the list") from error


def _check_columns(source: Path, names: Iterable[str], columns: Columns) -> None:
    names = list(names)
    captions = [column for _, column in columns.caption_columns]
    if columns.path not in names:
        raise ValueError(f"{source} has no column {columns.path!r} but {', '.join(names)}: name it with --path-column")
    missing = [column for column in captions if column not in names] if columns.captions else []
    if missing or not {*captions, "captions"} & set(names):
        wanted = missing[0] if missing else "caption"
        raise ValueError(
            f"{source} has no column {wanted!r} but {', '.join(names)}: name it with --caption KIND=COLUMN"
        )


def _of_folder(folder: Path, columns: Columns) -> Listing:
    media, ignored = _media_in(folder)
    with ThreadPoolExecutor(_READERS) as readers:
        records = [record for found in readers.map(lambda path: _side_car(folder, path), media) for record in found]
    if not records:
        raise ValueError(f"{folder} holds no videos or images: is it the right folder?")
    rows = [
        _row(number, record | {columns.path: path}, columns) for number, (path, record) in enumerate(records, start=1)
    ]
    return Listing(folder=folder, rows=rows, ignored=ignored)


def _media_in(folder: Path) -> tuple[list[str], Counter[str]]:
    """Media by relative path, sorted; hidden files and folders are left alone."""
    media: list[str] = []
    others: list[PurePosixPath] = []

    def refuse(error: OSError) -> None:
        raise ValueError(f"{error.filename} cannot be read ({error.strerror}): give a folder that can be") from error

    for place, folders, files in os.walk(folder, onerror=refuse):
        relative = PurePosixPath(Path(place).relative_to(folder).as_posix())
        # A link to a folder may lead in a circle: it is not followed, and listed so that it is missed.
        media += [f"{relative / name}" for name in folders if os.path.islink(os.path.join(place, name))]
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            path = relative / name
            if name.startswith("."):
                continue
            if extension_of(name) in VIDEO_EXTENSIONS + IMAGE_EXTENSIONS:
                media.append(str(path))
            else:
                others.append(path)
    stems = {str(PurePosixPath(path).with_suffix("")) for path in media}
    side_cars = [path for path in others if path.suffix in (".txt", ".json") and str(path.with_suffix("")) in stems]
    return sorted(media), Counter(path.suffix or path.name for path in set(others) - set(side_cars))


def _side_car(folder: Path, path: str) -> list[tuple[str, dict[str, Any]]]:
    """(path, record) of a media file: one, or as many as its KEY.json lists."""
    media = folder / path
    if media.is_dir():
        return [(path, {"": "link to a folder: it is not followed; give that folder itself, or a list"})]
    text, described = media.with_suffix(".txt"), media.with_suffix(".json")
    record: dict[str, Any] = {}
    try:
        if text.is_file():
            record["caption"] = text.read_text(encoding="utf-8-sig")
        if not described.is_file():
            missing = "no caption: it has neither KEY.txt nor KEY.json beside it"
            return [(path, record | {"captions": {"descriptive": record["caption"]}} if record else {"": missing})]
        found = json.loads(described.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        return [(path, {"": f"bad side-car: {error}"})]
    found = found if isinstance(found, list) else [found]
    if not found or not all(isinstance(item, dict) for item in found):
        return [(path, {"": f"bad side-car: {described.name} is no object and no list of objects"})]
    return [(path, record | item) for item in found]


def _row(number: int, record: dict[str, Any], columns: Columns) -> Row:
    path = str(record.get(columns.path) or "").strip()
    problem = record.get("") or _path_problem(path)  # no column has an empty name
    path = path.encode("utf-8", "backslashreplace").decode()
    if problem:
        return Row(number=number, path=path, problem=str(problem))
    captions = _captions(record, columns)
    if not captions:
        return Row(number=number, path=path, problem="empty caption: no text is given for it")
    try:
        start_s, end_s = _range(record.get(columns.start_s), record.get(columns.end_s))
    except ValueError as error:
        return Row(number=number, path=path, problem=f"bad time range: {error}")
    source = _clean(str(record.get(columns.source) or path))
    return Row(number=number, path=path, captions=captions, source=source, start_s=start_s, end_s=end_s)


def _path_problem(path: str) -> str | None:
    if not path:
        return "no path: the row names no media"
    if path.encode("utf-8", "replace").decode() != path or "\0" in path:
        return "bad name: the path is not UTF-8 text"
    if path.lower().startswith("pipe:"):
        return "refused path: pipe: would run a command"
    extension = extension_of(path)
    if extension not in VIDEO_EXTENSIONS + IMAGE_EXTENSIONS:
        return f"unknown kind: .{extension} is none of {', '.join(VIDEO_EXTENSIONS + IMAGE_EXTENSIONS)}"
    return None


def _captions(record: dict[str, Any], columns: Columns) -> dict[str, str]:
    """Caption kind -> text, without empty ones."""
    found: dict[str, str] = {}
    nested = record.get("captions")
    given = [(kind, record.get(column)) for kind, column in columns.caption_columns]
    given += list(nested.items()) if isinstance(nested, dict) else []
    for kind, text in given:
        if isinstance(text, str) and text.strip():
            found.setdefault(str(kind), _clean(text).strip())
    return found


def _clean(text: str) -> str:
    """Without half characters, which JSON can hold and UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode()


def _range(start: object, end: object) -> tuple[float, float]:
    start_s, end_s = _seconds(start, 0.0), _seconds(end, math.inf)
    if not 0.0 <= start_s < end_s:
        raise ValueError(f"{start} to {end} is no stretch of time")
    return start_s, end_s


def _seconds(value: object, default: float) -> float:
    """Seconds of a number, of text, or of HOURS:MINUTES:SECONDS."""
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return default
    try:
        seconds = 0.0
        for part in str(value).split(":"):
            seconds = 60 * seconds + float(part)
    except ValueError as error:
        raise ValueError(f"{value!r} is neither seconds nor HH:MM:SS") from error
    return seconds
