"""A latent shard of any maker, read strictly: where its members lie, its samples, and all that is wrong."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from typing import IO, Any

import numpy as np
import safetensors
import torch
import xxhash

from data.report import Problem, Problems
from data.rows import MEMBERS
from data.sample import DTYPES, is_finite
from data.shards import Member, ShardInfo
from data.split import SPLITS
from data.storage import Storage, told
from data.tar_scan import Entry, TarDamage, TarScan, name_problem, split_name

_PROBLEMS_PER_SHARD = 200
_FASTEST = 1_000_000
"""Frames a second."""


@dataclass(frozen=True, kw_only=True)
class Tensors:
    """A safetensors file: shape and bytes of each tensor."""

    shapes: dict[str, tuple[int, ...]]
    unfit: dict[str, str]
    """Tensors that are not of a floating type, or not finite, and why."""


@dataclass(frozen=True, kw_only=True)
class StoredSample:
    """One good sample of a latent shard."""

    key: str
    places: dict[str, Member]
    """By extension."""
    latent_shape: tuple[int, ...]
    """(C, T, H, W)."""
    text_lengths: dict[str, int]
    """Caption kind -> tokens of its embedding."""
    text_dim: int
    fps: float | None
    source: str | None
    split: str | None


@dataclass(frozen=True, kw_only=True)
class ShardContents:
    """What lies in one latent shard."""

    info: ShardInfo
    """Without a hash where only headers were read."""
    entries: tuple[Entry, ...]
    is_whole: bool
    """Whether there are entries up to the end marker."""
    samples: tuple[StoredSample, ...]
    """Good ones; none where only headers were read."""
    problems: tuple[Problem, ...]
    num_problems: int
    unused: dict[str, int]
    """Extensions of members that training does not read, and how many there are."""


def read_latent_shard(root: str, name: str, *, deep: bool = True) -> ShardContents:
    """Read every byte of one shard, or its headers. What is wrong is told in the result, but for a disk that fails."""
    storage, problems = Storage(root), Problems(limit=_PROBLEMS_PER_SHARD)
    size = storage.sizes([name])[name] or 0
    entries, samples, unused = list[Entry](), list[StoredSample](), Counter[str]()
    with _read_from(storage, name) as file:
        scan = TarScan(file, size, hashed=deep)
        for key, members in _grouped(scan, entries, problems, name):
            unused.update(extension for extension in members if extension not in MEMBERS.values())
            told = problems.count
            sample = _sample(key, members, partial(problems.add, name, key)) if deep else None
            if sample is not None and problems.count == told:
                samples.append(sample)
        info = ShardInfo(name=name, bytes=size, count=len(samples), sha256=scan.sha256() if deep else "")
    return ShardContents(
        info=info,
        entries=tuple(entries),
        is_whole=scan.is_whole,
        samples=tuple(samples),
        problems=tuple(problems.found),
        num_problems=problems.count,
        unused=dict(unused),
    )


@contextmanager
def _read_from(storage: Storage, name: str) -> Iterator[IO[bytes]]:
    """A shard; behind a URL its client may raise anything while it is read, which here becomes an OSError."""
    with storage.open(name) as file, nullcontext() if storage.is_local else told(storage.where(name)):
        yield file


_Members = dict[str, tuple[Entry, bytes]]


def _grouped(scan: TarScan, entries: list[Entry], problems: Problems, shard: str) -> Iterator[tuple[str, _Members]]:
    """Key and members (by extension) of each run of members with one key; all members are added to `entries`.

    Their bytes are read where the scan is of every byte.
    """
    first_seen: dict[str, int] = {}
    current, members = "", _Members()
    try:
        for entry in scan.entries():
            entries.append(entry)
            key, extension = split_name(entry.name)
            problem = name_problem(entry.name) if entry.kind == "file" else f"a {entry.kind}, not a plain file"
            if problem is not None and entry.kind != "folder":
                problems.add(shard, key or repr(entry.name), f"member {entry.name!r} at byte {entry.header}: {problem}")
            if entry.kind != "file" or not key:
                continue
            if key != current:
                if members:
                    yield current, members
                current, members = key, _Members()
                if key in first_seen:
                    what = f"duplicate key: at byte {entry.header}, and before it at byte {first_seen[key]}"
                    problems.add(shard, key, what)
                first_seen.setdefault(key, entry.header)
            if extension in members:
                what = f"duplicate key: two members .{extension}, the second at byte {entry.header}"
                problems.add(shard, key, what)
                continue
            payload = scan.payload(entry) if scan.hashed else b""
            if scan.hashed and extension.endswith("npy") and (problem := _npy_problem(payload)):
                problems.add(shard, key, f"member {entry.name!r} at byte {entry.header}: {problem}")
            members[extension] = (entry, payload)
    except TarDamage as error:
        problems.add(shard, "", str(error))
    if members:
        yield current, members


def _npy_problem(payload: bytes) -> str | None:
    """Arrays of objects are pickles."""
    try:
        np.load(BytesIO(payload), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        return f"pickle member or broken array: {error}"
    return None


def _sample(key: str, members: _Members, tell: Callable[[str], None]) -> StoredSample | None:
    """The sample, if its members are all there and can be read; the rest of what is wrong is told."""
    missing = [extension for extension in MEMBERS.values() if extension not in members]
    if missing:
        tell(f"incomplete: no .{', no .'.join(missing)} beside .{', .'.join(sorted(members))}")
        return None
    data = {name: members[extension][1] for name, extension in MEMBERS.items()}
    meta = _meta(data["json"], tell)
    latent, text = _tensors(data["latent"], "latent", tell), _tensors(data["text"], "text", tell)
    if meta is None or latent is None or text is None:
        return None
    shape = latent.shapes.get("latent")
    if shape is None or len(shape) != 4 or min(shape) < 1:
        found = f"has shape {shape}" if shape is not None else f"is missing beside {', '.join(latent.shapes)}"
        tell(f"wrong shape: tensor `latent` {found}, but (channels, frames, rows, columns) is needed")
        return None
    lengths, dims = _text_sizes(text, meta["captions"], tell)
    if len(dims) != 1:
        return None
    return StoredSample(
        key=key,
        places={extension: _place(*members[extension]) for extension in MEMBERS.values()},
        latent_shape=shape,
        text_lengths=lengths,
        text_dim=dims.pop(),
        fps=meta["fps"],
        source=meta["source"],
        split=meta["split"],
    )


def _place(entry: Entry, payload: bytes) -> Member:
    return Member(offset=entry.offset, size=entry.size, xxh3=xxhash.xxh3_64_intdigest(payload))


def _text_sizes(
    text: Tensors, captions: dict[str, str], tell: Callable[[str], None]
) -> tuple[dict[str, int], set[int]]:
    """Tokens of each caption kind, and the widths of the embeddings."""
    for kind, shape in text.shapes.items():
        if len(shape) != 2 or shape[1] < 1:
            tell(f"wrong shape: text {kind!r} has shape {shape}, but (tokens, width) is needed")
        elif shape[0] < 1:
            tell(f"empty caption: text {kind!r} has no tokens")
    if text.shapes.keys() != captions.keys():
        tell(
            f"captions differ: the json has {', '.join(sorted(captions)) or 'none'}, "
            f"the embeddings are {', '.join(sorted(text.shapes)) or 'none'}"
        )
    whole = {kind: shape for kind, shape in text.shapes.items() if len(shape) == 2}
    dims = {shape[1] for shape in whole.values()}
    if len(dims) > 1:
        tell(f"text widths differ: {sorted(dims)}")
    return {kind: shape[0] for kind, shape in whole.items()}, dims


def _meta(data: bytes, tell: Callable[[str], None]) -> dict[str, Any] | None:
    """`captions`, and `fps`, `source` and `split` or None."""
    try:
        plain = json.loads(data)
    except (ValueError, RecursionError) as error:
        tell(f"bad json: {error}")
        return None
    captions = plain.get("captions") if isinstance(plain, dict) else None
    if not isinstance(captions, dict) or not captions:
        tell('no captions: json needs {"captions": {KIND: TEXT}}')
        return None
    for kind, text in captions.items():
        if not isinstance(text, str) or not text.strip():
            tell(f"empty caption: {kind}")
    meta = {"captions": captions, **{name: plain.get(name) for name in ("fps", "source", "split")}}
    fps = meta["fps"]
    if fps is not None and (isinstance(fps, bool) or not isinstance(fps, int | float) or not 0 < fps <= _FASTEST):
        tell(f"bad json: fps={fps!r:.40} must be a number above 0, at most {_FASTEST}")
        return None
    if meta["source"] is not None and not _is_text(meta["source"]):
        tell(f"bad json: source={meta['source']!r} must be a text, the id that held-out splits go by")
        return None
    if meta["split"] is not None and meta["split"] not in SPLITS:
        tell(f"bad json: split={meta['split']!r} is none of {', '.join(SPLITS)}")
        return None
    return meta


def _is_text(value: Any) -> bool:
    """Something to write; half a surrogate pair, which json may hold, cannot be."""
    return isinstance(value, str) and bool(value) and not any("\ud800" <= letter <= "\udfff" for letter in value)


def _tensors(data: bytes, member: str, tell: Callable[[str], None]) -> Tensors | None:
    tensors = parse_tensors(data)
    if isinstance(tensors, str):
        tell(f"broken {member}: {tensors}")
        return None
    for name, why in tensors.unfit.items():
        tell(f"{why}: tensor {name!r} of the {member}")
    return tensors


def parse_tensors(data: bytes) -> Tensors | str:
    """The tensors of a safetensors file, or what is wrong with it."""
    try:
        parts = safetensors.deserialize(data)
    except safetensors.SafetensorError as error:
        return f"no safetensors file ({error})"
    shapes, unfit = {}, {}
    for name, part in parts:
        shapes[name] = tuple(part["shape"])
        if part["dtype"] not in DTYPES:
            unfit[name] = f"wrong type {part['dtype']}, none of {', '.join(DTYPES)}"
        elif part["data"] and not is_finite(torch.frombuffer(part["data"], dtype=DTYPES[part["dtype"]])):
            unfit[name] = "not finite: NaN or Inf"
    return Tensors(shapes=shapes, unfit=unfit)
