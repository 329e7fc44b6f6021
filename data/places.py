"""Where samples lie: what the manifests say of some rows, a whole step or window at a time."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from data.mixture import DataSet
from data.rows import PLACE_COLUMNS, Column

_COLUMNS = ("key", "source", "grid_t", "grid_h", "grid_w", "video_tokens", "fps", *PLACE_COLUMNS)


class Abandoned(Exception):
    """Samples were being made, and nobody needs them any more."""


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
    """For samples that are supplied also the file of each of their members; empty for those in shards."""

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
            columns={name: np.concatenate([part.columns[name] for part in parts])[first] for name in parts[0].columns},
        )

    def __len__(self) -> int:
        return len(self.rows)

    def supplied(self, members: Sequence[str], is_needed: Callable[[], bool] = lambda: True) -> "Places":
        """With members of planned samples made, and where they lie. ValueError where one cannot be.

        Making them can take long: `Abandoned` is raised before the next one where `is_needed` says no.
        """
        if all(manifest.supply is None for manifest in self.data.manifests):
            return self
        columns = {name: values.copy() for name, values in self.columns.items()}
        columns |= {f"{member}_file": np.full(len(self), "", dtype=object) for member in members}
        for source, manifest in enumerate(self.data.manifests):
            here = np.flatnonzero(self.source == source)
            if manifest.supply is None or not len(here):
                continue
            for number in here.tolist():
                if not is_needed():
                    raise Abandoned
                kept = manifest.supply(self.columns["key"][number], members)
                for member in members:
                    place, planned = kept[member].place, int(self.columns[f"{member}_size"][number])
                    if place.size != planned:
                        raise ValueError(
                            f"{self.where(number)}: its {member} takes {place.size} bytes, not the {planned} that were "
                            f"planned: delete {manifest.folder} to plan the clips again"
                        )
                    columns[f"{member}_file"][number] = kept[member].path
                    columns[f"{member}_offset"][number] = place.offset
                    columns[f"{member}_xxh3"][number] = place.xxh3
        return replace(self, columns=columns)

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
        manifest, files = self.data.manifests[self.source[number]], self.columns.get("text_file")
        shard = manifest.shards[manifest.chunks.shard[self.chunk[number]]].name
        if files is not None and files[number]:
            return f"{manifest.folder}: sample {self.columns['key'][number]}"
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
