"""The training loader: planned packs read as byte ranges of plain tars, ahead of the step that needs them."""

import json
import os
import queue
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from types import TracebackType
from typing import Any

import safetensors
import safetensors.torch
import torch
import xxhash
from torch import Tensor

from data.balance import imbalance
from data.curriculum import Curriculum
from data.manifest import Manifest
from data.mixture import DataSet
from data.pack import PackPlan, PlannedPack, Position
from data.rows import MEMBERS

_OPEN_FILES = 64
_POLL_S = 0.1


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One stored sample. May be shared between steps: never write into its tensors."""

    key: str
    index: int
    """Row of the data set."""
    latent_shape: tuple[int, int, int, int]
    """(C, T, H, W), from the manifest."""
    latent_CTHW: Tensor | None
    """float32, normalised; None where latents are not read."""
    text: dict[str, Tensor]
    """Caption kind -> embedding `[n, E]` float32, valid tokens only."""
    captions: dict[str, str]
    source: str
    video_tokens: int
    fps: float
    """Of the frames that were encoded."""
    bucket: str

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in (self.latent_CTHW, *self.text.values()) if tensor is not None)


class SampleReader:
    """Reads samples of a data set by row, checking every byte it hands out.

    Without `latents` the samples have none, and their bytes are not read.
    """

    def __init__(self, data: DataSet | Manifest, *, latents: bool = True) -> None:
        self.data = DataSet.of(data) if isinstance(data, Manifest) else data
        self._wanted = tuple(member for member in MEMBERS if latents or member != "latent")
        self._files: OrderedDict[str, int] = OrderedDict()

    def read(self, row: int, *, caption_kind: str | None = None) -> Sample:
        """One sample; only one caption's embedding if a kind is named. ValueError names shard and key."""
        manifest, own_row = self.data.place(row)
        place = manifest.row(own_row)
        where = f"{manifest.storage.where(place['shard'])}: sample {place['key']}"
        members = self._members(manifest, place, where)
        latent_CTHW = None
        try:
            if "latent" in members:
                latent_CTHW = safetensors.torch.load(members["latent"])["latent"].float()
            text = {kind: value.float() for kind, value in safetensors.torch.load(members["text"]).items()}
            captions = json.loads(members["json"])["captions"]
        except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{where} cannot be read ({error!r}): encode the clips again") from error
        shape = (manifest.identity.latent_channels, place["grid_t"], place["grid_h"], place["grid_w"])
        if latent_CTHW is not None:
            _check_latent(latent_CTHW, shape, where)
        if caption_kind is not None:
            if caption_kind not in text:
                raise ValueError(f"{where} has no caption {caption_kind!r}, but {', '.join(sorted(text))}")
            text = {caption_kind: text[caption_kind]}
        return Sample(
            key=place["key"],
            index=row,
            latent_shape=shape,
            latent_CTHW=latent_CTHW,
            text=text,
            captions=captions,
            source=place["source"],
            video_tokens=place["video_tokens"],
            fps=place["fps"],
            bucket=place["bucket"],
        )

    def _members(self, manifest: Manifest, place: dict[str, Any], where: str) -> dict[str, bytes]:
        """The bytes of the wanted members, neighbours by one read, each checked against the manifest."""
        members = {}
        for run in _neighbours(place, self._wanted):
            first = place[f"{run[0]}_offset"]
            end = place[f"{run[-1]}_offset"] + place[f"{run[-1]}_size"]
            try:
                data = self._bytes(manifest, place["shard"], first, end)
            except OSError as error:
                raise ValueError(f"{where} cannot be read ({error.strerror or error}): restore the shard") from error
            for member in run:
                start = place[f"{member}_offset"] - first
                members[member] = data[start : start + place[f"{member}_size"]]
        for member, content in members.items():
            if xxhash.xxh3_64_intdigest(content) != place[f"{member}_xxh3"]:
                raise ValueError(
                    f"{where}: its {member} is damaged (wrong checksum): restore the shard, or encode the clips again"
                )
        return members

    def _bytes(self, manifest: Manifest, shard: str, start: int, end: int) -> bytes:
        if not manifest.storage.is_local:
            return manifest.storage.read(shard, start, end)
        path = manifest.storage.where(shard)
        if path in self._files:
            self._files.move_to_end(path)
        else:
            if len(self._files) >= _OPEN_FILES:
                os.close(self._files.popitem(last=False)[1])
            self._files[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        return os.pread(self._files[path], end - start, start)

    def close(self) -> None:
        """Close all shards."""
        while self._files:
            os.close(self._files.popitem()[1])


def _neighbours(place: dict[str, Any], wanted: tuple[str, ...]) -> list[list[str]]:
    """Wanted members in the order of their bytes; those with one between them that is not wanted are apart."""
    runs: list[list[str]] = [[]]
    for member in sorted(MEMBERS, key=lambda member: place[f"{member}_offset"]):
        if member in wanted:
            runs[-1].append(member)
        else:
            runs.append([])
    return [run for run in runs if run]


def _check_latent(latent_CTHW: Tensor, shape: tuple[int, ...], where: str) -> None:
    if tuple(latent_CTHW.shape) != shape:
        raise ValueError(f"{where} has shape {tuple(latent_CTHW.shape)}, the manifest says {shape}: encode again")
    if not bool(torch.isfinite(latent_CTHW).all()):
        raise ValueError(f"{where} has NaN or Inf in its latent: encode the clips again")


def read_sample(manifest: Manifest, row: int, caption_kind: str | None = None) -> Sample:
    """One sample of a manifest, checked; for many, keep a `SampleReader`."""
    reader = SampleReader(manifest)
    try:
        return reader.read(row, caption_kind=caption_kind)
    finally:
        reader.close()


@dataclass(frozen=True, kw_only=True)
class RankShare:
    """What of each step one rank reads: the r-th of n equal parts of its packs, with or without their latents."""

    data_rank: int = 0
    data_size: int = 1
    latents: bool = True

    def __post_init__(self) -> None:
        assert 0 <= self.data_rank < self.data_size, self


@dataclass(frozen=True, kw_only=True)
class StepData:
    """What one rank trains on in one step, and what all data ranks do."""

    position_after: Position
    packs: tuple[tuple[Sample, ...], ...]
    """This rank's packs."""
    visits: tuple[tuple[int, ...], ...]
    """Of each sample of this rank's packs: how often it came before."""
    keys: tuple[tuple[str, ...], ...]
    """Sample keys of every pack of the step, over all ranks."""
    video_tokens: int
    """Tokens of every pack of the step, padding not counted."""
    token_budget: int
    """Tokens that all packs of the step could hold."""
    imbalance: float
    """Work of the busiest data rank over the mean, at least 1."""


class Loader(Iterator[StepData]):
    """Endless steps from a position on, read ahead by a thread. Use as a context manager.

    An error of the thread is raised by `next`.
    """

    def __init__(
        self,
        plan: Curriculum | PackPlan,
        *,
        start: Position | None = None,
        packs_per_step: int,
        share: RankShare | None = None,
        prefetch_steps: int = 2,
        cache_bytes: int = 256 << 20,
    ) -> None:
        self.share = share or RankShare()
        ranks = self.share.data_size
        if packs_per_step < 1 or packs_per_step % ranks:
            raise ValueError(
                f"data.packs_per_step={packs_per_step} must be a multiple of the {ranks} data-parallel ranks: "
                f"take {max(1, round(packs_per_step / ranks)) * ranks}"
            )
        self.plan = Curriculum([plan]) if isinstance(plan, PackPlan) else plan
        self.packs_per_step, self._data = packs_per_step, self.plan.plans[0].data
        self._reader = SampleReader(self._data, latents=self.share.latents)
        self._cache = _SampleCache(cache_bytes)
        self._queue: queue.Queue[StepData | Exception] = queue.Queue(maxsize=max(1, prefetch_steps))
        self._stop = threading.Event()
        self._failed: Exception | None = None
        position = start or Position()
        self._thread = threading.Thread(target=self._read_ahead, args=(position,), name="loader", daemon=True)
        self._thread.start()

    def __next__(self) -> StepData:
        if self._failed is not None:
            raise self._failed
        assert not self._stop.is_set(), "the loader is closed"
        item = self._queue.get()
        if isinstance(item, Exception):
            self._failed = item
            raise item
        return item

    def __enter__(self) -> "Loader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop reading ahead and close the shards."""
        self._stop.set()
        self._thread.join()
        self._reader.close()

    def _read_ahead(self, position: Position) -> None:
        try:
            while not self._stop.is_set():
                step = self._read_step(position)
                position = step.position_after
                self._hand_on(step)
        except Exception as error:  # noqa: BLE001 - handed to the consumer, which raises it
            self._hand_on(error)

    def _hand_on(self, item: StepData | Exception) -> None:
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=_POLL_S)
            except queue.Full:
                continue
            return

    def _read_step(self, position: Position) -> StepData:
        planned, after = self.plan.step(position, self.packs_per_step)
        share = self.packs_per_step // self.share.data_size
        mine = planned[self.share.data_rank * share : (self.share.data_rank + 1) * share]
        return StepData(
            position_after=after,
            packs=tuple(self._read_pack(pack) for pack in mine),
            visits=tuple(pack.visits for pack in mine),
            keys=self._keys(planned),
            video_tokens=sum(pack.video_tokens for pack in planned),
            token_budget=self.packs_per_step * self.plan.plans[0].tokens_per_pack,
            imbalance=imbalance([pack.cost for pack in planned], self.share.data_size),
        )

    def _keys(self, packs: list[PlannedPack]) -> tuple[tuple[str, ...], ...]:
        keys = iter(self._data.keys([row for pack in packs for row in pack.rows]))
        return tuple(tuple(islice(keys, len(pack.rows))) for pack in packs)

    def _read_pack(self, pack: PlannedPack) -> tuple[Sample, ...]:
        samples = []
        for row in pack.rows:
            sample = self._cache.get(row)
            if sample is None:
                sample = self._reader.read(row)
                self._cache.put(row, sample)
            samples.append(sample)
        return tuple(samples)


class _SampleCache:
    """The last samples read, up to a number of bytes: a tiny data set stays in memory."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes, self.bytes = limit_bytes, 0
        self._samples: OrderedDict[int, Sample] = OrderedDict()

    def get(self, row: int) -> Sample | None:
        if row in self._samples:
            self._samples.move_to_end(row)
        return self._samples.get(row)

    def put(self, row: int, sample: Sample) -> None:
        self._samples[row] = sample
        self.bytes += sample.num_bytes
        while self.bytes > self.limit_bytes:
            self.bytes -= self._samples.popitem(last=False)[1].num_bytes
