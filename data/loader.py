"""The training loader: planned packs read as byte ranges of plain tars, ahead of the step that needs them."""

import json
import os
import queue
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any
from zlib import crc32

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from data.manifest import MEMBERS, Manifest
from data.pack import PackPlan, PlannedPack, Position

_OPEN_FILES = 64
_POLL_S = 0.1


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One stored sample. May be shared between steps: never write into its tensors."""

    key: str
    index: int
    """Row of the manifest."""
    latent_CTHW: Tensor
    """float32, normalised."""
    text: dict[str, Tensor]
    """Caption kind -> embedding `[n, E]` float32, valid tokens only."""
    captions: dict[str, str]
    source: str
    video_tokens: int
    bucket: str

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in (self.latent_CTHW, *self.text.values()))


class SampleReader:
    """Reads samples of one manifest by row, checking every byte it hands out."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self._files: OrderedDict[str, int] = OrderedDict()

    def read(self, row: int, *, caption_kind: str | None = None) -> Sample:
        """One sample; only one caption's embedding if a kind is named. ValueError names shard and key."""
        place = self.manifest.row(row)
        where = f"{self.manifest.folder / place['shard']}: sample {place['key']}"
        members = self._members(place, where)
        try:
            latent_CTHW = safetensors.torch.load(members["latent"])["latent"].float()
            text = {kind: value.float() for kind, value in safetensors.torch.load(members["text"]).items()}
            captions = json.loads(members["json"])["captions"]
        except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{where} cannot be read ({error!r}): encode the clips again") from error
        grid = (place["grid_t"], place["grid_h"], place["grid_w"])
        if tuple(latent_CTHW.shape[1:]) != grid:
            raise ValueError(f"{where} has grid {tuple(latent_CTHW.shape[1:])}, the manifest says {grid}: encode again")
        if not bool(torch.isfinite(latent_CTHW).all()):
            raise ValueError(f"{where} has NaN or Inf in its latent: encode the clips again")
        if caption_kind is not None:
            if caption_kind not in text:
                raise ValueError(f"{where} has no caption {caption_kind!r}, but {', '.join(sorted(text))}")
            text = {caption_kind: text[caption_kind]}
        return Sample(
            key=place["key"],
            index=row,
            latent_CTHW=latent_CTHW,
            text=text,
            captions=captions,
            source=place["source"],
            video_tokens=place["video_tokens"],
            bucket=place["bucket"],
        )

    def _members(self, place: dict[str, Any], where: str) -> dict[str, bytes]:
        """The bytes of all members by one read, each checked against the manifest."""
        first = min(place[f"{member}_offset"] for member in MEMBERS)
        end = max(place[f"{member}_offset"] + place[f"{member}_size"] for member in MEMBERS)
        try:
            data = os.pread(self._file(place["shard"]), end - first, first)
        except OSError as error:
            raise ValueError(f"{where} cannot be read ({error.strerror}): restore the shard") from error
        members = {}
        for member in MEMBERS:
            start = place[f"{member}_offset"] - first
            members[member] = data[start : start + place[f"{member}_size"]]
            if crc32(members[member]) != place[f"{member}_crc32"]:
                raise ValueError(
                    f"{where}: its {member} is damaged (wrong checksum): restore the shard, or encode the clips again"
                )
        return members

    def _file(self, shard: str) -> int:
        if shard in self._files:
            self._files.move_to_end(shard)
        else:
            if len(self._files) >= _OPEN_FILES:
                os.close(self._files.popitem(last=False)[1])
            self._files[shard] = os.open(self.manifest.folder / shard, os.O_RDONLY | os.O_CLOEXEC)
        return self._files[shard]

    def close(self) -> None:
        """Close all shards."""
        while self._files:
            os.close(self._files.popitem()[1])


def read_sample(manifest: Manifest, row: int, caption_kind: str | None = None) -> Sample:
    """One sample of a manifest, checked; for many, keep a `SampleReader`."""
    reader = SampleReader(manifest)
    try:
        return reader.read(row, caption_kind=caption_kind)
    finally:
        reader.close()


@dataclass(frozen=True, kw_only=True)
class StepData:
    """What one data rank trains on in one step, and what all of them do."""

    position_after: Position
    packs: tuple[tuple[Sample, ...], ...]
    """This rank's packs."""
    epochs: tuple[int, ...]
    """Epoch of each of this rank's packs."""
    keys: tuple[tuple[str, ...], ...]
    """Sample keys of every pack of the step, over all ranks."""
    video_tokens: int
    """Tokens of every pack of the step, padding not counted."""
    token_budget: int
    """Tokens that all packs of the step could hold."""


class Loader(Iterator[StepData]):
    """Endless steps from a position on, read ahead by a thread. Use as a context manager.

    Data rank r of n reads packs r, r + n, ... of each step. An error of the thread is raised by `next`.
    """

    def __init__(
        self,
        plan: PackPlan,
        *,
        start: Position | None = None,
        packs_per_step: int,
        data_rank: int = 0,
        data_size: int = 1,
        prefetch_steps: int = 2,
        cache_bytes: int = 256 << 20,
    ) -> None:
        if packs_per_step < 1 or packs_per_step % data_size:
            raise ValueError(
                f"data.packs_per_step={packs_per_step} must be a multiple of the {data_size} data-parallel ranks: "
                f"take {max(1, round(packs_per_step / data_size)) * data_size}"
            )
        assert 0 <= data_rank < data_size
        self.plan, self.packs_per_step = plan, packs_per_step
        self.data_rank, self.data_size = data_rank, data_size
        self._reader = SampleReader(plan.manifest)
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
        mine = planned[self.data_rank :: self.data_size]
        return StepData(
            position_after=after,
            packs=tuple(self._read_pack(pack) for pack in mine),
            epochs=tuple(pack.epoch for pack in mine),
            keys=tuple(tuple(self.plan.manifest.keys(list(pack.rows))) for pack in planned),
            video_tokens=sum(self.plan.tokens(pack) for pack in planned),
            token_budget=self.packs_per_step * self.plan.tokens_per_pack,
        )

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
