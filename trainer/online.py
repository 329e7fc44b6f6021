"""Training on clips that were not encoded before: each is encoded when a step first needs it, and kept in a cache.

The loader asks for the members of a step's samples before it reads them, a few steps ahead; what is in the cache is
read from there. See `trainer.online_plan` for how packs are planned before anything is encoded.
"""

import hashlib
import json
import logging
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from data.cache import Cache, Kept
from data.clips import Clip, ClipSource, MediaPlace, windows_of
from data.deadline import DeadlineError, within
from data.decode import DecodeError
from data.latents import latent_members, text_members
from data.manifest import Manifest
from data.mixture import DataSet
from data.report import ClipReport
from data.rows import MEMBERS
from model.codec import codec_identity
from model.text import text_identity
from parallel.runtime import Grid
from trainer.config import TrainConfig
from trainer.encode import Encoders, encode_captions, encode_frames, load_encoders
from trainer.evaluation import heldout_rows
from trainer.online_plan import Record, encode_config, read_records

log = logging.getLogger(__name__)

_IDLE_SAMPLES = 1000
"""The networks leave the memory when the cache had so many samples in a row."""
_ENTRY_BYTES = 512
"""What an entry of the cache takes beside its members, about."""


def supplied(config: TrainConfig, shards: DataSet) -> DataSet:
    """Of a run on clips, with what makes the samples of their plan; others as they are."""
    if config.data.clips is None:
        return shards
    first, *others = shards.manifests
    return replace(shards, manifests=(replace(first, supply=OnlineEncoder(config)), *others))


class OnlineEncoder:
    """Makes samples of a plan when they are asked for, unless the cache has them; a `Supply`."""

    def __init__(self, config: TrainConfig) -> None:
        assert config.data.folder is not None
        self.config, self.cache = encode_config(config, folder=config.data.folder), Cache(config.data.online.cache)
        self._cache_bytes, self._timeout_s = config.data.online.cache_bytes, config.data.read_timeout_s
        self.device = "auto"
        """That of the rank, once it is known."""
        self._lines = read_records(Path(self.config.folder))
        self._latent_name = self._name("latent", codec_identity(self.config.codec), asdict(self.config.clip))
        self._text_name = self._name("text", text_identity(self.config.text))
        self._since_made = 0
        """Samples asked for since one was made."""
        self._lock = threading.Lock()
        """The loader asks from a thread of its own."""

    def __call__(self, key: str, members: Sequence[str]) -> dict[str, Kept]:
        """Where the members of a sample lie, made if need be. ValueError names the clip and its shard."""
        with self._lock:
            return self._members(self._record(key), members)

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
        found = self._find(record, self._text_key(record)) or self._make_text(record)
        if "latent" in members:
            key = self._latent_key(record.media, record.window)
            found = found | (self._find(record, key) or self._make_latents(record))
        self._since_made += 1
        if self._since_made == _IDLE_SAMPLES:
            self.__dict__.pop("_encoders", None)  # loaded again where they are missed
        return found

    def _make_text(self, record: Record) -> dict[str, Kept]:
        def members() -> dict[str, bytes]:
            text = encode_captions([record.captions], self._encoders)[0]
            return text_members(text, record.captions, dtype=self.config.shards.dtype)

        return self._store(record, self._text_key(record), members)

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
        self._since_made = 0
        try:
            made = members()
        except torch.OutOfMemoryError as error:
            raise ValueError(
                f"{self._where(record)}: {self.device} has no memory left to encode it beside training: encode "
                "the clips first, with trainer.encode"
            ) from error
        except ValueError as error:
            raise ValueError(
                f"{self._where(record)}: {error}: take the clip out, or set data.online.shards.dtype=float32"
            ) from error
        try:
            return self.cache.store(key, made)
        except OSError as error:
            raise self._unusable(record, error) from error

    def _find(self, record: Record, key: str) -> dict[str, Kept] | None:
        try:
            return within(self._timeout_s, lambda: self.cache.find(key))
        except OSError as error:
            raise self._unusable(record, error) from error

    def _unusable(self, record: Record, error: OSError) -> ValueError:
        return ValueError(
            f"{self._where(record)}: data.online.cache={self.cache.folder} cannot be used "
            f"({error.strerror or error}): make room, or give another folder{_or_wait(error)}"
        )

    def _media(self, record: Record) -> bytes:
        """The file of a clip, as it was when it was planned."""
        try:
            data = within(self._timeout_s, lambda: _read(Path(self.config.clips) / record.shard, record.media))
        except OSError as error:
            raise ValueError(
                f"{self._where(record)} cannot be read ({error.strerror}): restore the shard{_or_wait(error)}"
            ) from error
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


def _or_wait(error: OSError) -> str:
    """A further way out, where nothing but our patience ended."""
    return ", or raise data.read_timeout_s" if isinstance(error, DeadlineError) else ""


def _read(path: Path, place: MediaPlace) -> bytes:
    with open(path, "rb") as file:
        return os.pread(file.fileno(), place.size, place.offset)


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
        for key in keys[grid.rank :: grid.world_size]:
            encoder(key, tuple(MEMBERS))
    except ValueError as error:
        failure = str(error)
    except OSError as error:
        failure = f"data.online.cache={encoder.cache.folder} cannot be used ({error}): give another folder"
    if told := [text for text in grid.gather_objects(failure) if text is not None]:
        raise ValueError(told[0])
