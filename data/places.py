"""Where samples lie: what the manifests say of some rows, a whole step or window at a time."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from data.mixture import DataSet
from data.rows import PLACE_COLUMNS, Column

_COLUMNS = ("key", "source", "grid_t", "grid_h", "grid_w", "video_tokens", "fps", *PLACE_COLUMNS)


@dataclass(frozen=True, kw_only=True)
class Places:
    """Rows of a data set, sorted, each once, and their columns."""

    data: DataSet
    rows: np.ndarray
    source: np.ndarray
    """Number of the manifest."""
    chunk: np.ndarray
    """Of that manifest, which knows shard and bucket."""
    columns: dict[str, Column]

    @classmethod
    def of(cls, data: DataSet, rows: Sequence[int] | np.ndarray) -> "Places":
        """Look up rows, in any order."""
        rows = np.unique(np.asarray(rows, dtype=np.int64))
        source, own = data.places(rows)
        chunk = np.empty(len(rows), dtype=np.int64)
        for number, manifest in enumerate(data.manifests):
            here = source == number
            chunk[here] = np.searchsorted(manifest.chunks.first, own[here], side="right") - 1
        return cls(
            data=data,
            rows=rows,
            source=source,
            chunk=chunk,
            columns={name: data.column(name, rows) for name in _COLUMNS},
        )

    @classmethod
    def joined(cls, parts: Sequence["Places"]) -> "Places":
        """Of all rows of some of one data set."""
        rows, first = np.unique(np.concatenate([part.rows for part in parts]), return_index=True)
        return cls(
            data=parts[0].data,
            rows=rows,
            source=np.concatenate([part.source for part in parts])[first],
            chunk=np.concatenate([part.chunk for part in parts])[first],
            columns={name: np.concatenate([part.columns[name] for part in parts])[first] for name in _COLUMNS},
        )

    def __len__(self) -> int:
        return len(self.rows)

    def has(self, rows: np.ndarray) -> bool:
        """Whether all these rows are among them."""
        at = np.minimum(np.searchsorted(self.rows, rows), max(0, len(self) - 1))
        return len(self) > 0 and bool((self.rows[at] == rows).all())

    def take(self, rows: np.ndarray) -> "Places":
        """Only these rows, all of which must be there."""
        rows = np.unique(rows)
        at = np.searchsorted(self.rows, rows)
        return Places(
            data=self.data,
            rows=rows,
            source=self.source[at],
            chunk=self.chunk[at],
            columns={name: values[at] for name, values in self.columns.items()},
        )

    @cached_property
    def values(self) -> dict[str, list[Any]]:
        """The columns as plain Python values."""
        return {name: column.tolist() for name, column in self.columns.items()}

    def latent_shape(self, number: int) -> tuple[int, int, int, int]:
        """(C, T, H, W)."""
        channels, values = self.data.manifests[self.source[number]].identity.latent_channels, self.values
        return channels, values["grid_t"][number], values["grid_h"][number], values["grid_w"][number]

    def bucket(self, number: int) -> str:
        """Name of a sample's bucket."""
        manifest = self.data.manifests[self.source[number]]
        return manifest.bucket_names[manifest.chunks.bucket[self.chunk[number]]]

    @property
    def shard(self) -> np.ndarray:
        """A number of the shard of each row, over all manifests; see `shard_name`."""
        first = np.cumsum([0, *(len(manifest.shards) for manifest in self.data.manifests)])
        shards = np.empty(len(self), dtype=np.int64)
        for number, manifest in enumerate(self.data.manifests):
            here = self.source == number
            shards[here] = first[number] + manifest.chunks.shard[self.chunk[here]]
        return shards

    def where(self, number: int) -> str:
        """Shard and key, as errors name them."""
        manifest = self.data.manifests[self.source[number]]
        shard = manifest.shards[manifest.chunks.shard[self.chunk[number]]].name
        return f"{manifest.storage.where(shard)}: sample {self.columns['key'][number]}"


@dataclass(frozen=True, kw_only=True)
class ShardPlace:
    """How a shard is opened."""

    root: str | None
    """URL of its storage; None for a local file."""
    name: str
    """In its storage, or the whole path."""
    bytes: int


def shard_place(data: DataSet, shard: int) -> ShardPlace:
    """Of a number of `Places.shard`."""
    for manifest in data.manifests:
        if shard < len(manifest.shards):
            break
        shard -= len(manifest.shards)
    info, storage = manifest.shards[shard], manifest.storage
    if storage.is_local:
        return ShardPlace(root=None, name=os.path.abspath(os.path.join(storage.root, info.name)), bytes=info.bytes)
    return ShardPlace(root=storage.root, name=info.name, bytes=info.bytes)
