"""Whether latent shards are what their manifest says: sizes and structure, and every byte where asked for."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import xxhash

from data.latent_shard import ShardContents, parse_tensors, read_latent_shard
from data.manifest import FILE_NAME, NULL_TEXT_NAME, Manifest
from data.processes import in_processes
from data.progress import Progress
from data.report import Problems
from data.rows import MEMBERS, PLACE_COLUMNS
from data.shards import ShardInfo
from data.storage import Storage
from data.tar_scan import split_name

QUICK_SAMPLES = 10_000
"""Of a set that is looked through before each start."""
_COLUMNS = ("key", "grid_t", "grid_h", "grid_w", "text_tokens", *PLACE_COLUMNS)


@dataclass(frozen=True, kw_only=True)
class ShardRows:
    """A shard, and what the manifest says of the samples in it."""

    info: ShardInfo
    rows: tuple[dict[str, Any], ...]


def check_set(manifest: Manifest, problems: Problems, *, deep: bool = False, workers: int = 1) -> None:
    """Find all that is wrong with a manifest's shards. `manifest` must be whole, and opened without a check of sizes.

    `deep` reads every byte; otherwise damage inside a member is not noticed.
    """
    _check_null_text(manifest, problems)
    _check_keys(manifest, problems)
    known = {shard.name for shard in manifest.shards}
    for name in manifest.storage.names("tar"):
        if name not in known:
            problems.add(name, "", "not in the manifest: nothing in it is trained on; index again, or delete it")
    check = partial(check_shard, manifest.folder, deep)
    with Progress("checking", len(manifest.shards), "shard") as progress:
        for found in in_processes(check, _rows_by_shard(manifest), min(workers, len(manifest.shards))):
            problems.extend(found.found, found.count)
            progress.advance(f"{problems.count} problems" if problems.count else "")


def quick_problems(manifest: Manifest) -> Problems:
    """What is wrong with the structure of a small local set; nothing is told of any other. It never raises."""
    problems = Problems()
    if manifest.supply is not None or not manifest.storage.is_local or len(manifest) > QUICK_SAMPLES:
        return problems
    try:
        check_set(manifest, problems)
    except (OSError, ValueError) as error:
        problems.add(FILE_NAME, "", f"the set could not be looked through: {error}")
    return problems


def _rows_by_shard(manifest: Manifest) -> Iterator[ShardRows]:
    chunks = manifest.chunks
    for number, info in enumerate(manifest.shards):
        here = np.flatnonzero(chunks.shard == number)
        ranges = [np.arange(chunks.first[n], chunks.first[n] + chunks.count[n]) for n in here]
        rows = np.concatenate(ranges) if ranges else np.empty(0, np.int64)
        columns = {name: manifest.column(name, rows).tolist() for name in _COLUMNS}
        yield ShardRows(
            info=info, rows=tuple(dict(zip(_COLUMNS, row, strict=True)) for row in zip(*columns.values(), strict=True))
        )


def _check_null_text(manifest: Manifest, problems: Problems) -> None:
    storage = manifest.storage
    if not storage.exists(NULL_TEXT_NAME):
        problems.add(NULL_TEXT_NAME, "", "missing")
        return
    data = storage.read(NULL_TEXT_NAME)
    tensors = parse_tensors(data)
    if xxhash.xxh3_64_intdigest(data) != manifest.identity.null_text_xxh3:
        problems.add(NULL_TEXT_NAME, "", "damaged (wrong checksum)")
    elif isinstance(tensors, str) or tensors.shapes.get("text", (0, 0))[-1] != manifest.identity.text_dim:
        problems.add(NULL_TEXT_NAME, "", f"has no tensor `text` of width {manifest.identity.text_dim}")


def _check_keys(manifest: Manifest, problems: Problems) -> None:
    """Keys are told apart, and a source is on one side of the split."""
    rows, names = manifest.row_numbers, [shard.name for shard in manifest.shards]
    keys = manifest.column("key", rows)
    seen: set[str] = set()
    for row, key in enumerate(keys):
        if key in seen:
            problems.add(str(manifest.column("shard", [rows[row]])[0]), key, "duplicate key in the manifest")
        seen.add(key)
    assert len(names) == len(set(names))
    splits: dict[str, str] = {}
    for row, (source, split) in enumerate(zip(manifest.column("source", rows), manifest.column("split", rows))):
        if splits.setdefault(source, split) != split:
            problems.add(
                str(manifest.column("shard", [rows[row]])[0]),
                keys[row],
                f"its source {source!r} is in both splits: held-out loss would be measured on what was trained on",
            )


def check_shard(root: str, deep: bool, expected: ShardRows) -> Problems:
    """All that is wrong with one shard."""
    problems, name = Problems(), expected.info.name
    if expected.info.is_planned:
        return problems
    size = Storage(root).sizes([name])[name]
    if size is None:
        first = expected.rows[0]["key"] if expected.rows else ""
        problems.add(name, first, f"the shard is missing, and all its {len(expected.rows)} samples")
        return problems
    if size != expected.info.bytes:
        problems.add(name, "", f"has {size} bytes, though the manifest says {expected.info.bytes}")
    contents = read_latent_shard(root, name, deep=deep)
    problems.extend(contents.problems, contents.num_problems)
    _compare_places(expected, contents, problems)
    if deep:
        _compare_bytes(expected, contents, problems)
    return problems


def _compare_places(expected: ShardRows, contents: ShardContents, problems: Problems) -> None:
    """Every member of the manifest must lie where it says, and every sample of the shard must be in the manifest."""
    at = {entry.offset: entry for entry in contents.entries}
    shard, lost = expected.info.name, []
    for row in expected.rows:
        for member, extension in MEMBERS.items():
            offset, size = row[f"{member}_offset"], row[f"{member}_size"]
            entry = at.get(offset)
            if entry is None and not contents.is_whole:
                lost.append(row["key"])
                break
            found = None if entry is None else (split_name(entry.name), entry.size)
            if found != ((row["key"], extension), size):
                what = f"{entry.name!r} of {entry.size} bytes" if entry is not None else "no member"
                problems.add(
                    shard, row["key"], f"its {member} of {size} bytes is not at byte {offset}: there is {what}"
                )
    if lost:
        problems.add(shard, lost[0], f"it and {len(lost) - 1} more samples lie behind the damage")
    known = {row["key"] for row in expected.rows}
    strange: dict[str, int] = {}
    for entry in contents.entries:
        key = split_name(entry.name)[0]
        if key and key not in known and entry.kind == "file":
            strange.setdefault(key, entry.header)
    for key, header in strange.items():
        problems.add(shard, key, f"at byte {header}, not in the manifest: it is never trained on")


def _compare_bytes(expected: ShardRows, contents: ShardContents, problems: Problems) -> None:
    """Every payload must be the one that was written, and hold what the row says."""
    shard = expected.info.name
    rows = {row["key"]: row for row in expected.rows}
    for sample in contents.samples:
        if sample.key not in rows:
            continue
        row = rows[sample.key]
        for member, extension in MEMBERS.items():
            if sample.places[extension].xxh3 != row[f"{member}_xxh3"]:
                problems.add(shard, sample.key, f"its {member} is damaged (wrong checksum)")
        grid = (row["grid_t"], row["grid_h"], row["grid_w"])
        if sample.latent_shape[1:] != grid:
            problems.add(
                shard, sample.key, f"its latent has the grid {sample.latent_shape[1:]}, the manifest says {grid}"
            )
    if contents.info.sha256 != expected.info.sha256 and not problems.count:
        problems.add(shard, "", "another file than the manifest names (wrong sha256), though all its samples are whole")
