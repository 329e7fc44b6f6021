"""The manifest: one row per stored sample, so that tokens, places and checksums are known before anything is read.

Opening one reads a few numbers per shard; rows are read where they are needed. Rows lie in chunks: neighbours in one
shard, bucket and split, which the order of an epoch shuffles as one.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.compute
import safetensors.torch
import xxhash
from torch import Tensor

from data.cache import Supply
from data.rows import SCHEMA, Column, Rows, digests_of, write_rows
from data.shards import ShardInfo
from data.split import SPLITS, Split
from data.storage import Storage

FILE_NAME = "manifest.parquet"
NULL_TEXT_NAME = "null_text.safetensors"
SCHEMA_VERSION = 2
_METADATA_KEY = b"tessera"
_HASH_KEY = b"tessera.hash"
_AGAIN = "encode the clips again"
_VALUES = ("_offset", "_size", "_xxh3")
"""Ends of the columns that depend on what is stored of a sample; the others are known before it is encoded."""


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What made the shards, and what they are."""

    codec: str
    """Hash of the codec's weights and config."""
    text: str
    """Hash of the text encoder and its settings."""
    inputs: str
    """Hash of everything the shards were made from: the same inputs need not be encoded again."""
    fps: float | None
    """The rate all clips were resampled to; None where each keeps its own."""
    strides: tuple[int, int, int]
    patch_size: tuple[int, int, int]
    latent_channels: int
    text_dim: int
    caption_kinds: tuple[str, ...]
    null_text_xxh3: int
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True, kw_only=True)
class Chunks:
    """Neighbouring rows of one shard, bucket and split: a number each for every chunk."""

    first: np.ndarray
    count: np.ndarray
    shard: np.ndarray
    """Index into the manifest's shards."""
    bucket: np.ndarray
    """Index into the manifest's bucket names."""
    split: np.ndarray
    """Index into `SPLITS`."""
    video_tokens: np.ndarray
    """Of all rows."""
    least_tokens: np.ndarray
    most_tokens: np.ndarray
    """Of one row."""

    def __len__(self) -> int:
        return len(self.first)

    @classmethod
    def of(cls, columns: dict[str, list[int]]) -> "Chunks":
        return cls(**{name: np.asarray(values, dtype=np.int64) for name, values in columns.items()})

    def take(self, which: np.ndarray) -> "Chunks":
        return Chunks(**{name: values[which] for name, values in vars(self).items()})


@dataclass(frozen=True, kw_only=True)
class BucketSize:
    """How much lies in one bucket."""

    samples: int
    tokens: int
    shards: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Rows of one data set, or of one split of it; rows keep their numbers. `hash` names exactly these rows.

    `outline` names them by their keys, sizes and order alone, which the order of an epoch depends on: it is known
    before anything is encoded, and the same wherever the same clips are.
    """

    storage: Storage
    rows: Rows
    identity: Identity
    shards: tuple[ShardInfo, ...]
    bucket_names: tuple[str, ...]
    chunks: Chunks
    hash: str
    outline: str
    supply: Supply | None = field(default=None, compare=False)
    """Makes the members of planned samples; None where the shards are there."""

    @classmethod
    def read(cls, folder: str | Path, *, check_shards: bool = True) -> "Manifest":
        """Open and verify; ValueError where it is missing, damaged or of another schema, or a shard's size is off."""
        storage = folder if isinstance(folder, Storage) else Storage(folder)
        where = storage.where(FILE_NAME)
        if not storage.exists(FILE_NAME):
            raise ValueError(
                f"{storage.root} has no {FILE_NAME}: make latent shards with `python -m trainer.encode` first"
            )
        rows = Rows(storage.open(FILE_NAME), where)
        try:
            described, stored_hash = json.loads(rows.metadata[_METADATA_KEY]), rows.metadata[_HASH_KEY].decode()
        except (KeyError, ValueError) as error:
            raise ValueError(f"{where} cannot be read ({error!r}): {_AGAIN}") from error
        if described["identity"]["schema_version"] != SCHEMA_VERSION or not rows.has_schema:
            raise ValueError(f"{where} has another schema than version {SCHEMA_VERSION}: {_AGAIN}")
        if _hash(described) != stored_hash:
            raise ValueError(f"{where} does not match its own hash {stored_hash[:12]}: it was changed; encode again")
        chunks = Chunks.of(described["chunks"])
        if int(chunks.count.sum()) != len(rows):
            raise ValueError(f"{where} has {len(rows)} rows, not those it was written with: {_AGAIN}")
        rows.expect(described["digests"])
        shards = tuple(ShardInfo(**shard) for shard in described["shards"])
        if check_shards:
            _check_shards(storage, shards)
        return cls(
            storage=storage,
            rows=rows,
            identity=_identity(described["identity"]),
            shards=shards,
            bucket_names=tuple(described["buckets"]),
            chunks=chunks,
            hash=stored_hash,
            outline=_outline(described),
        )

    def __len__(self) -> int:
        return int(self.chunks.count.sum())

    @property
    def folder(self) -> str:
        return self.storage.root

    @cached_property
    def row_numbers(self) -> np.ndarray:
        """int64, all rows; for data sets that are looked at as a whole."""
        first, count = self.chunks.first, self.chunks.count
        return np.repeat(first - np.cumsum(count) + count, count) + np.arange(count.sum())

    def column(self, name: str, rows: np.ndarray | Sequence[int] | None = None) -> Column:
        return self.rows.column(name, self.row_numbers if rows is None else rows)

    def keys(self, rows: np.ndarray | Sequence[int] | None = None) -> list[str]:
        return self.column("key", rows).tolist()

    def row(self, row: int) -> dict[str, Any]:
        return self.rows.row(row)

    def buckets(self) -> dict[str, BucketSize]:
        """Buckets by name. Bytes are of whole shards, whatever rows of them this manifest has."""
        sizes = {}
        for number in np.unique(self.chunks.bucket):
            chunks = self.chunks.take(self.chunks.bucket == number)
            shards = np.unique(chunks.shard)
            sizes[self.bucket_names[number]] = BucketSize(
                samples=int(chunks.count.sum()),
                tokens=int(chunks.video_tokens.sum()),
                shards=len(shards),
                bytes=sum(self.shards[shard].bytes for shard in shards),
            )
        return dict(sorted(sizes.items()))

    def select(self, split: Split) -> "Manifest":
        kept = self.chunks.take(self.chunks.split == SPLITS.index(split))
        return self._derived(kept, f"split={split}")

    def head(self, samples: int) -> "Manifest":
        before = np.cumsum(self.chunks.count) - self.chunks.count
        kept = self.chunks.take(before < samples)
        if len(kept):
            kept.count[-1] = min(kept.count[-1], samples - before[len(kept) - 1])
            tokens = self.column("video_tokens", range(kept.first[-1], kept.first[-1] + kept.count[-1]))
            kept.video_tokens[-1], kept.least_tokens[-1], kept.most_tokens[-1] = (
                tokens.sum(),
                tokens.min(),
                tokens.max(),
            )
        return self._derived(kept, f"head={samples}")

    def _derived(self, chunks: Chunks, what: str) -> "Manifest":
        """Some of its rows; `what` says which."""
        return replace(
            self, chunks=chunks, hash=_sha256(f"{self.hash} {what}"), outline=_sha256(f"{self.outline} {what}")
        )

    def require_identity(
        self, *, codec: str | None = None, text: str | None = None, patch_size: tuple[int, int, int] | None = None
    ) -> None:
        """ValueError where the shards were made by another codec or text encoder, or counted for other patches."""
        if codec is not None and codec != self.identity.codec:
            raise ValueError(
                f"{self.folder} was encoded by another codec ({self.identity.codec[:12]}, not {codec[:12]}): "
                "name the codec that made it, or encode the clips again with this one"
            )
        if text is not None and text != self.identity.text:
            raise ValueError(
                f"{self.folder} holds captions of another text encoder ({self.identity.text[:12]}, not {text[:12]}): "
                "set the text encoder that made it, or encode the clips again with this one"
            )
        if patch_size is not None and tuple(patch_size) != self.identity.patch_size:
            raise ValueError(
                f"{self.folder} counts tokens for patch size {self.identity.patch_size}, but the model has "
                f"{tuple(patch_size)}: change the model's patch size, or encode the clips again"
            )

    def null_text(self) -> Tensor:
        """Embedding of the empty caption `[n, E]` float32, for guidance."""
        where = self.storage.where(NULL_TEXT_NAME)
        if not self.storage.exists(NULL_TEXT_NAME):
            raise ValueError(f"{where} is missing: {_AGAIN}")
        data = self.storage.read(NULL_TEXT_NAME)
        if xxhash.xxh3_64_intdigest(data) != self.identity.null_text_xxh3:
            raise ValueError(f"{where} is damaged (wrong checksum): {_AGAIN}")
        return safetensors.torch.load(data)["text"].float()


def write_manifest(folder: Path, columns: dict[str, list[Any]], *, identity: Identity, shards: list[ShardInfo]) -> str:
    """Write the manifest of finished shards, in any folder; returns its content hash.

    Rows may come in any order; they are stored by split, bucket, shard and place.
    """
    names = ("split", "bucket", "shard", "latent_offset")
    plain = pyarrow.table({name: columns[name] for name in names})
    order = pyarrow.compute.sort_indices(plain, sort_keys=[(name, "ascending") for name in names])
    table = pyarrow.table(columns, schema=SCHEMA).take(order)
    buckets = sorted(set(columns["bucket"]))
    described = {
        "identity": asdict(identity),
        "shards": [asdict(shard) for shard in shards],
        "buckets": buckets,
        "chunks": _cut(table, [shard.name for shard in shards], buckets),
        "digests": digests_of(table),
    }
    # Through JSON, so that the hash is over what a reader will see.
    described = json.loads(json.dumps(described))
    metadata = {_METADATA_KEY: json.dumps(described).encode(), _HASH_KEY: _hash(described).encode()}
    with open(folder / FILE_NAME, "xb") as file:
        write_rows(table.replace_schema_metadata(metadata), file)
        file.flush()
        os.fsync(file.fileno())
    return _hash(described)


def _cut(table: pyarrow.Table, shards: list[str], buckets: list[str]) -> dict[str, list[int]]:
    """The chunks of sorted rows, by column."""
    numbers = {
        "split": _numbers(table["split"], list(SPLITS)),
        "bucket": _numbers(table["bucket"], buckets),
        "shard": _numbers(table["shard"], shards),
    }
    tokens = table["video_tokens"].to_numpy().astype(np.int64)
    changes = np.any([values[1:] != values[:-1] for values in numbers.values()], axis=0)
    first = np.flatnonzero(np.concatenate([[True], changes]))
    return {
        "first": first.tolist(),
        "count": np.diff(np.append(first, len(table))).tolist(),
        **{name: values[first].tolist() for name, values in numbers.items()},
        "video_tokens": np.add.reduceat(tokens, first).tolist(),
        "least_tokens": np.minimum.reduceat(tokens, first).tolist(),
        "most_tokens": np.maximum.reduceat(tokens, first).tolist(),
    }


def _numbers(column: pyarrow.ChunkedArray, names: list[str]) -> np.ndarray:
    return pyarrow.compute.index_in(column.cast(pyarrow.string()), pyarrow.array(names)).to_numpy()


def _identity(described: dict[str, Any]) -> Identity:
    fields: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in described.items()
    }
    return Identity(**fields)


def _hash(described: dict[str, Any]) -> str:
    """Names the rows by what their columns hash to, and all that is said about them."""
    return _sha256(json.dumps(described, sort_keys=True))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _outline(described: dict[str, Any]) -> str:
    """Names the rows by what is known of them before they are encoded."""
    digests = [
        {name: digest for name, digest in group.items() if not name.endswith(_VALUES)} for group in described["digests"]
    ]
    shards = [[shard["name"], shard["count"]] for shard in described["shards"]]
    return _hash({"chunks": described["chunks"], "buckets": described["buckets"], "shards": shards, "rows": digests})


def _check_shards(storage: Storage, shards: tuple[ShardInfo, ...]) -> None:
    shards = tuple(shard for shard in shards if not shard.is_planned)
    sizes = storage.sizes([shard.name for shard in shards])
    for shard in shards:
        where, size = storage.where(shard.name), sizes[shard.name]
        if size is None:
            raise ValueError(f"{where} is missing, though {FILE_NAME} lists it: restore it, or {_AGAIN}")
        if size != shard.bytes:
            raise ValueError(
                f"{where} has {size} bytes, though {FILE_NAME} says {shard.bytes}: "
                f"it was cut off or changed; restore it, or {_AGAIN}"
            )
