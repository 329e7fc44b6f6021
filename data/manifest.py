"""The manifest: one row per stored sample, so that tokens, places and checksums are known before anything is read."""

import hashlib
import json
import os
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pyarrow
import pyarrow.compute
import pyarrow.parquet
import safetensors
import safetensors.torch
from torch import Tensor

from data.shards import ShardInfo
from data.split import Split

FILE_NAME = "manifest.parquet"
NULL_TEXT_NAME = "null_text.safetensors"
SCHEMA_VERSION = 1
MEMBERS = {"json": "json", "latent": "latent.safetensors", "text": "text.safetensors"}
"""Member of a sample -> its extension in the tar."""

_TEXT = pyarrow.dictionary(pyarrow.int32(), pyarrow.string())
SCHEMA = pyarrow.schema(
    [
        ("key", pyarrow.string()),
        ("shard", _TEXT),
        *((f"{member}_offset", pyarrow.int64()) for member in MEMBERS),
        *((f"{member}_size", pyarrow.int64()) for member in MEMBERS),
        *((f"{member}_crc32", pyarrow.uint32()) for member in MEMBERS),
        ("grid_t", pyarrow.int32()),  # latent frames, rows and columns, before patching
        ("grid_h", pyarrow.int32()),
        ("grid_w", pyarrow.int32()),
        ("video_tokens", pyarrow.int32()),  # after patching
        ("text_tokens", pyarrow.int32()),  # of the longest caption
        ("modality", _TEXT),
        ("source", pyarrow.string()),
        ("split", _TEXT),
        ("bucket", _TEXT),
    ]
)
_METADATA_KEY = b"tessera"
_HASH_KEY = b"tessera.hash"


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What made the shards, and what they are."""

    codec: str
    """Hash of the codec's weights and config."""
    text: str
    """Hash of the text encoder and its settings."""
    inputs: str
    """Hash of everything the shards were made from: the same inputs need not be encoded again."""
    fps: float
    strides: tuple[int, int, int]
    patch_size: tuple[int, int, int]
    latent_channels: int
    text_dim: int
    caption_kinds: tuple[str, ...]
    null_text_crc32: int
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True, kw_only=True)
class BucketSize:
    """How much lies in one bucket."""

    samples: int
    tokens: int
    shards: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Rows of one data set, or of one split of it. `hash` names exactly these rows."""

    folder: Path
    table: pyarrow.Table
    identity: Identity
    shards: tuple[ShardInfo, ...]
    hash: str

    @classmethod
    def read(cls, folder: str | Path) -> "Manifest":
        """Read and verify; ValueError where it is missing, damaged or of another schema, or a shard's size is off."""
        folder = Path(folder)
        path = folder / FILE_NAME
        if not path.is_file():
            raise ValueError(f"{folder} has no {FILE_NAME}: make latent shards with `python -m trainer.encode` first")
        try:
            table = pyarrow.parquet.read_table(path)
            metadata = table.schema.metadata
            described, stored_hash = json.loads(metadata[_METADATA_KEY]), metadata[_HASH_KEY].decode()
        except (pyarrow.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} cannot be read ({error}): encode the clips again") from error
        if described["identity"]["schema_version"] != SCHEMA_VERSION or not table.schema.equals(SCHEMA):
            raise ValueError(f"{path} has another schema than version {SCHEMA_VERSION}: encode the clips again")
        identity, shards = _parse(described)
        if content_hash(table, described) != stored_hash:
            raise ValueError(f"{path} does not match its own hash {stored_hash[:12]}: it was changed; encode again")
        _check_shards(folder, shards)
        return cls(folder=folder, table=table, identity=identity, shards=shards, hash=stored_hash)

    def __len__(self) -> int:
        return self.table.num_rows

    @cached_property
    def video_tokens(self) -> np.ndarray:
        """int32, tokens of each row after patching."""
        return self.table["video_tokens"].to_numpy()

    @cached_property
    def shard_of_row(self) -> np.ndarray:
        """int32, index into the shard names in order of first appearance."""
        encoded = self.table["shard"].combine_chunks()
        indices = encoded.indices if isinstance(encoded, pyarrow.DictionaryArray) else encoded.chunk(0).indices
        _, first, inverse = np.unique(indices.to_numpy(), return_index=True, return_inverse=True)
        order = np.empty(len(first), dtype=np.int32)
        order[np.argsort(first)] = np.arange(len(first), dtype=np.int32)
        return order[inverse]

    def buckets(self) -> dict[str, BucketSize]:
        """Buckets by name. Shards and bytes are of whole shards, whatever rows of them this manifest has."""
        plain = self.table.select(["video_tokens"]).append_column("bucket", self.table["bucket"].cast(pyarrow.string()))
        sums = plain.group_by("bucket").aggregate([("video_tokens", "sum"), ("video_tokens", "count")]).to_pylist()
        shards: dict[str, list[int]] = {}
        for shard in self.shards:
            shards.setdefault(shard.name.rpartition("/")[0], []).append(shard.bytes)
        return {
            row["bucket"]: BucketSize(
                samples=row["video_tokens_count"],
                tokens=row["video_tokens_sum"],
                shards=len(shards[row["bucket"]]),
                bytes=sum(shards[row["bucket"]]),
            )
            for row in sorted(sums, key=lambda row: row["bucket"])
        }

    def keys(self, rows: list[int] | None = None) -> list[str]:
        """Sample keys of the given rows, or of all."""
        column = self.table["key"] if rows is None else self.table["key"].take(pyarrow.array(rows, pyarrow.int64()))
        return column.to_pylist()

    def row(self, index: int) -> dict[str, Any]:
        """All columns of one row."""
        return self.table.slice(index, 1).to_pylist()[0]

    def select(self, split: Split) -> "Manifest":
        """Only the rows of one split."""
        kept = self.table.filter(pyarrow.compute.equal(self.table["split"].cast(pyarrow.string()), split))
        return replace(self, table=kept, hash=_derived(self.hash, f"split={split}"))

    def head(self, samples: int) -> "Manifest":
        """Only the first rows."""
        return replace(self, table=self.table.slice(0, samples), hash=_derived(self.hash, f"head={samples}"))

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
        path = self.folder / NULL_TEXT_NAME
        if not path.is_file():
            raise ValueError(f"{path} is missing: encode the clips again")
        data = path.read_bytes()
        if crc32(data) != self.identity.null_text_crc32:
            raise ValueError(f"{path} is damaged (wrong checksum): encode the clips again")
        return safetensors.torch.load(data)["text"].float()


def write_manifest(folder: Path, columns: dict[str, list[Any]], *, identity: Identity, shards: list[ShardInfo]) -> str:
    """Write the manifest of finished shards, in any folder; returns its content hash."""
    table = pyarrow.table(columns, schema=SCHEMA)
    described = {"identity": asdict(identity), "shards": [asdict(shard) for shard in shards]}
    # Through JSON, so that the hash is over what a reader will see.
    described = json.loads(json.dumps(described))
    digest = content_hash(table, described)
    metadata = {_METADATA_KEY: json.dumps(described).encode(), _HASH_KEY: digest.encode()}
    with open(folder / FILE_NAME, "xb") as file:
        pyarrow.parquet.write_table(table.replace_schema_metadata(metadata), file)
        file.flush()
        os.fsync(file.fileno())
    return digest


def content_hash(table: pyarrow.Table, described: dict[str, Any]) -> str:
    """sha256 over the description and every column, whatever the Parquet encoding and chunking."""
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for name in SCHEMA.names:
        digest.update(f"\n{name}\n".encode())
        for batch in table.select([name]).to_batches(max_chunksize=1 << 16):
            column = batch.column(0)
            if pyarrow.types.is_integer(column.type):
                digest.update(column.to_numpy().astype("<i8").tobytes())
            else:
                digest.update("".join(f"{len(text)}:{text}" for text in column.to_pylist()).encode())
    return digest.hexdigest()


def _derived(parent: str, what: str) -> str:
    return hashlib.sha256(f"{parent} {what}".encode()).hexdigest()


def _parse(described: dict[str, Any]) -> tuple[Identity, tuple[ShardInfo, ...]]:
    fields: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in described["identity"].items()
    }
    return Identity(**fields), tuple(ShardInfo(**shard) for shard in described["shards"])


def _check_shards(folder: Path, shards: tuple[ShardInfo, ...]) -> None:
    for shard in shards:
        path = folder / shard.name
        if not path.is_file():
            raise ValueError(f"{path} is missing, though {FILE_NAME} lists it: restore it, or encode the clips again")
        if path.stat().st_size != shard.bytes:
            raise ValueError(
                f"{path} has {path.stat().st_size} bytes, though {FILE_NAME} says {shard.bytes}: "
                "it was cut off or changed; restore it, or encode the clips again"
            )
