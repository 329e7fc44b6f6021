"""Training on clips that were not encoded before: each is encoded when a step first needs it, and kept in a cache.

Planning decodes all clips once, without a network, and writes the manifest that `trainer.encode` would write, but for
checksums: the same rows in the same order. So packs, steps and ranks are those of encoded shards, and the loader asks
for the members of a step's samples before it reads them, a few steps ahead.
"""

import fcntl
import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TextIO

import torch

from data.cache import Cache, Kept
from data.clips import (
    Clip,
    ClipSource,
    MediaPlace,
    clip_shards,
    count_clips,
    media_places,
    read_clips,
    windows_of,
)
from data.decode import DecodeError
from data.latents import EncodedSample, LatentWriter, latent_members, text_members
from data.manifest import FILE_NAME, Manifest
from data.mixture import DataSet
from data.report import ClipReport
from data.rows import MEMBERS
from data.shards import new_folder, write_bytes
from data.split import split_of
from model.codec import VideoCodec, codec_identity
from model.text import TextEncoder, text_identity
from parallel.launch import Launch
from parallel.runtime import Grid
from trainer.config import TrainConfig
from trainer.encode import (
    REPORT_NAME,
    EncodeConfig,
    Encoders,
    Progress,
    encode_captions,
    encode_frames,
    finish,
    inputs_hash,
    load_encoders,
    load_networks,
    same_size_batches,
)
from trainer.evaluation import heldout_rows

log = logging.getLogger(__name__)

RECORDS_NAME = "clips.jsonl"
"""In a plan: what each sample is made from, a line each."""
_HEAD_START_S = 2.0
"""Of rank 0 with a plan, since it is the one that says how far it is."""
_ENTRY_BYTES = 512
"""What an entry of the cache takes beside its members, about."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """What a sample is made from."""

    key: str
    shard: str
    clip_key: str
    window: int
    captions: dict[str, str]
    media: MediaPlace


def with_plan(config: TrainConfig) -> TrainConfig:
    """Where `data.clips` are given, with `data.folder` of their plan, which is made if it is not there."""
    data = config.data
    if data.clips is None:
        return config
    if data.folder is not None:
        raise ValueError(f"data.folder={data.folder} and data.clips={data.clips} are both given: leave out one")
    job = encode_config(config, folder="")
    inputs = inputs_hash(job, codec=codec_identity(job.codec), text=text_identity(job.text))
    folder = Path(data.online.cache) / "plans" / inputs[:16]
    folder.parent.mkdir(parents=True, exist_ok=True)
    if not (folder / FILE_NAME).is_file():
        if Launch.named().rank:
            time.sleep(_HEAD_START_S)
        with _alone(folder.with_suffix(".lock")):
            if not (folder / FILE_NAME).is_file():
                make_plan(replace(job, folder=str(folder)), inputs)
    return replace(config, data=replace(data, folder=str(folder)))


def supplied(config: TrainConfig, shards: DataSet) -> DataSet:
    """Of a run on clips, with what makes the samples of their plan; others as they are."""
    if config.data.clips is None:
        return shards
    first, *others = shards.manifests
    return replace(shards, manifests=(replace(first, supply=OnlineEncoder(config)), *others))


def encode_config(config: TrainConfig, *, folder: str) -> EncodeConfig:
    """What `trainer.encode` would be told to make the shards that a run on clips does without."""
    data = config.data
    assert data.clips is not None
    if config.clip is None:
        raise ValueError("clip=null: say how data.clips are cut, as conf/clip/demo.yaml does")
    return EncodeConfig(
        clips=data.clips,
        codec=data.codec,
        folder=folder,
        clip=config.clip,
        text=config.text,
        shards=data.online.shards,
        heldout_fraction=data.online.heldout_fraction,
    )


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process at a time; the end of a process ends its turn."""
    with open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("waiting for another process that plans the same clips")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def make_plan(config: EncodeConfig, inputs: str) -> None:
    """Decode all clips and write what they will be: manifest, records, and a report of what is left out."""
    codec, text = load_networks(config)
    report = ClipReport()
    log.info("planning %s: clips are decoded once to know their sizes", config.clips)
    with new_folder(Path(config.folder)) as scratch:
        writer = LatentWriter(scratch, config.shards, patch_size=config.clip.patch_size, is_planned=True)
        with open(scratch / RECORDS_NAME, "x", encoding="utf-8") as records:
            plan_parts(config, writer, report, records, sizes=_Sizes(codec, text))
        finish(writer, Encoders.of(codec, text, config), report=report, config=config, inputs=inputs)
        described = report.to_json() | {"clips_folder": config.clips}
        write_bytes(scratch / REPORT_NAME, json.dumps(described, indent=1).encode())
    for line in report.lines():
        log.info(line)


def plan_parts(
    config: EncodeConfig, writer: LatentWriter, report: ClipReport, records: TextIO, *, sizes: "_Sizes"
) -> None:
    """Rows and records of all clips, in the order in which `trainer.encode` comes to them."""
    shards, seen = clip_shards(config.clips), set[str]()
    progress = Progress(report, count_clips(config.clips))
    for first in range(0, len(shards), config.clip_shards_per_part):
        part = shards[first : first + config.clip_shards_per_part]
        media = {path.name: media_places(path) for path in part}
        clips = read_clips(config.clips, config.clip, report, shards=part, seen=seen)
        for batch in same_size_batches(clips, config.pixels_per_batch):
            for clip in batch:
                try:
                    if clip.clip_key not in media[clip.shard]:
                        raise ValueError("broken tar: its place in the shard cannot be told")
                    writer.write(sizes.sample(clip, split_of(clip.source, config.heldout_fraction)))
                except ValueError as error:
                    report.skip(shard=clip.shard, key=clip.key, reason=str(error))
                    continue
                record = Record(
                    key=clip.key,
                    shard=clip.shard,
                    clip_key=clip.clip_key,
                    window=clip.window,
                    captions=clip.captions,
                    media=media[clip.shard][clip.clip_key],
                )
                records.write(json.dumps(asdict(record)) + "\n")
            progress.show(writer.columns["video_tokens"])
        writer.flush()


class _Sizes:
    """Samples of the shape that encoding will give them, all zeros."""

    def __init__(self, codec: VideoCodec, text: TextEncoder) -> None:
        self.codec, self.text = codec, text

    def sample(self, clip: Clip, split: Any) -> EncodedSample:
        frames, _, height, width = clip.frames_T3HW.shape
        grid = self.codec.latent_grid((frames, height, width))
        return EncodedSample(
            key=clip.key,
            latent_CTHW=torch.zeros(self.codec.latent_channels, *grid),
            text={kind: torch.zeros(self.text.count(text), self.text.dim) for kind, text in clip.captions.items()},
            captions=clip.captions,
            source=clip.source,
            split=split,
            fps=clip.fps,
            meta={},
        )


class OnlineEncoder:
    """Makes samples of a plan when they are asked for, unless the cache has them; a `Supply`."""

    def __init__(self, config: TrainConfig) -> None:
        assert config.data.folder is not None
        self.config, self.cache = encode_config(config, folder=config.data.folder), Cache(config.data.online.cache)
        self._cache_bytes = config.data.online.cache_bytes
        self.device = "auto"
        """That of the rank, once it is known."""
        path = Path(self.config.folder) / RECORDS_NAME
        try:
            lines = path.read_bytes().splitlines()
            self._lines = {json.loads(line)["key"]: line for line in lines}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} cannot be read ({error}): delete its folder to plan the clips again") from error
        self._latent_name = self._name("latent", codec_identity(self.config.codec), asdict(self.config.clip))
        self._text_name = self._name("text", text_identity(self.config.text))
        self._lock = threading.Lock()
        """The networks and the loader's thread do not mind which thread asks."""

    def __call__(self, keys: Sequence[str], members: Sequence[str]) -> list[dict[str, Kept]]:
        """Where the members of samples lie, made if need be. ValueError names the clip and its shard."""
        with self._lock:
            return [self._members(self._record(key), members) for key in keys]

    def sizes(self, manifest: Manifest) -> dict[str, int]:
        """Bytes of each entry of the cache that the samples of a plan need."""
        columns = [manifest.column(f"{member}_size").tolist() for member in ("latent", "json", "text")]
        sizes = {}
        for key, latent, words, text in zip(manifest.keys(), *columns, strict=True):
            record = self._record(key)
            sizes[self._latent_key(record.media, record.window)] = latent + _ENTRY_BYTES
            sizes[self._text_key(record)] = words + text + _ENTRY_BYTES
        return sizes

    def line(self, manifest: Manifest) -> str:
        """What there is to be done."""
        sizes = self.sizes(manifest)
        lacking = self.cache.lacks(sizes)
        return (
            f"on-line: {len(sizes) - len(lacking)} of {len(sizes)} latents and texts lie in {self.cache.folder}, "
            f"{sum(lacking.values()) / 2**20:.1f} MiB are made as steps need them"
        )

    def make_room(self, manifest: Manifest) -> None:
        """See `Cache.make_room`."""
        self.cache.make_room(self.sizes(manifest), limit=self._cache_bytes)

    def _members(self, record: Record, members: Sequence[str]) -> dict[str, Kept]:
        found = self.cache.find(self._text_key(record)) or self._make_text(record)
        if "latent" in members:
            key = self._latent_key(record.media, record.window)
            found = found | (self.cache.find(key) or self._make_latents(record))
        return found

    def _make_text(self, record: Record) -> dict[str, Kept]:
        text = encode_captions([record.captions], self._encoders)[0]
        dtype = self.config.shards.dtype
        return self._store(record, self._text_key(record), lambda: text_members(text, record.captions, dtype=dtype))

    def _make_latents(self, record: Record) -> dict[str, Kept]:
        """Of the window that is asked for, and of all others of its clip, which has to be decoded for it anyway."""
        media = ClipSource(
            key=record.clip_key,
            media=self._media(record),
            extension=record.media.extension,
            meta={"captions": record.captions, "source": record.clip_key},
        )
        found = None
        try:
            for clip in windows_of(media, shard=record.shard, config=self.config.clip, report=ClipReport()):
                key = self._latent_key(record.media, clip.window)
                if clip.window == record.window:
                    found = self._store(record, key, partial(self._latent_members, clip))
                elif not self.cache.path(key).exists():
                    with suppress(ValueError):  # told when this window is asked for
                        self._store(record, key, partial(self._latent_members, clip))
        except DecodeError as error:
            if found is None:
                raise ValueError(f"{self._where(record)}: {error}: restore the shard") from error
        if found is None:
            raise ValueError(f"{self._where(record)} has no window {record.window}: delete {self.config.folder}")
        return found

    def _latent_members(self, clip: Clip) -> dict[str, bytes]:
        return latent_members(encode_frames([clip], self._encoders)[0], dtype=self.config.shards.dtype)

    def _store(self, record: Record, key: str, members: Callable[[], dict[str, bytes]]) -> dict[str, Kept]:
        try:
            return self.cache.store(key, members())
        except ValueError as error:
            raise ValueError(
                f"{self._where(record)}: {error}: take the clip out, or set data.online.shards.dtype=float32"
            ) from error
        except OSError as error:
            raise ValueError(
                f"{self._where(record)}: data.online.cache={self.cache.folder} cannot be written "
                f"({error.strerror or error}): make room, or give another folder"
            ) from error

    def _media(self, record: Record) -> bytes:
        """The file of a clip, as it was when it was planned."""
        try:
            with open(Path(self.config.clips) / record.shard, "rb") as file:
                data = os.pread(file.fileno(), record.media.size, record.media.offset)
        except OSError as error:
            raise ValueError(f"{self._where(record)} cannot be read ({error.strerror}): restore the shard") from error
        if hashlib.sha256(data).hexdigest() != record.media.sha256:
            raise ValueError(
                f"{self._where(record)} is not the one that was planned (sha256): restore the shard, or make the "
                f"clips again and delete {self.config.folder}"
            )
        return data

    @cached_property
    def _encoders(self) -> Encoders:
        log.info("encoding clips on %s as steps need them", self.device)
        return load_encoders(replace(self.config, device=self.device))

    def _record(self, key: str) -> Record:
        plain = json.loads(self._lines[key])
        return Record(**plain | {"media": MediaPlace(**plain["media"])})

    def _where(self, record: Record) -> str:
        window = f" (window {record.window})" if record.key != record.clip_key else ""
        return f"{Path(self.config.clips) / record.shard}: clip {record.clip_key}{window}"

    def _name(self, *parts: Any) -> str:
        return json.dumps([*parts, self.config.shards.dtype], sort_keys=True)

    def _latent_key(self, media: MediaPlace, window: int) -> str:
        return hashlib.sha256(f"{self._latent_name} {media.sha256} {media.extension} {window}".encode()).hexdigest()

    def _text_key(self, record: Record) -> str:
        return hashlib.sha256(f"{self._text_name} {json.dumps(record.captions)}".encode()).hexdigest()


def begin(config: TrainConfig, manifest: Manifest, grid: Grid) -> None:
    """For a run on clips: make room in the cache, and on each rank a part of the held-out samples that all read."""
    encoder = manifest.supply
    if not isinstance(encoder, OnlineEncoder):
        return
    encoder.device, failure = str(grid.device), None
    heldout = manifest.select("heldout")
    try:
        if grid.rank == 0:
            encoder.make_room(manifest)
        keys = heldout.keys(heldout_rows(heldout, config.evaluation.max_samples))
        encoder(keys[grid.rank :: grid.world_size], tuple(MEMBERS))
    except ValueError as error:
        failure = str(error)
    if told := [text for text in grid.gather_objects(failure) if text is not None]:
        raise ValueError(told[0])
