"""What clips will be when they are encoded, known without encoding: a manifest for training on clips as they are.

All clips are decoded once. The manifest has the rows of the one that `trainer.encode` would write, in the same order,
so that the order of an epoch and its packs are the same; only what is stored of a sample is not known yet.
"""

import fcntl
import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TextIO

import torch

from data.clips import Clip, MediaPlace, clip_shards, count_clips, media_places, read_clips
from data.latents import EncodedSample, LatentWriter
from data.manifest import FILE_NAME
from data.report import ClipReport
from data.shards import file_sha256, new_folder, write_bytes
from data.split import Split, split_of
from model.codec import VideoCodec, codec_identity
from model.text import TextEncoder, text_identity
from parallel.launch import Launch
from trainer.config import TrainConfig
from trainer.encode import (
    REPORT_NAME,
    EncodeConfig,
    Encoders,
    Progress,
    finish,
    inputs_hash,
    load_networks,
    same_size_batches,
)

log = logging.getLogger(__name__)

RECORDS_NAME = "clips.jsonl"
"""Beside the manifest: what each sample is made from, a line each."""
RECORDS_HASH_NAME = "clips.sha256"
_HEAD_START_S = 2.0
"""Of rank 0 with a plan, since it is the one that says how far it is."""


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
    job = encode_config(config, folder="")
    inputs = inputs_hash(job, codec=codec_identity(job.codec), text=text_identity(job.text))
    folder = Path(data.online.cache) / "plans" / inputs[:16]
    if data.folder not in (None, str(folder)):  # the config of a run names its plan
        raise ValueError(f"data.folder={data.folder} and data.clips={data.clips} are both given: leave out one")
    folder.parent.mkdir(parents=True, exist_ok=True)
    if not (folder / FILE_NAME).is_file():
        if Launch.named().rank:
            time.sleep(_HEAD_START_S)
        with _alone(folder.with_suffix(".lock")):
            if not (folder / FILE_NAME).is_file():
                make_plan(replace(job, folder=str(folder)), inputs)
    return replace(config, data=replace(data, folder=str(folder)))


def encode_config(config: TrainConfig, *, folder: str) -> EncodeConfig:
    """What `trainer.encode` would be told to make the shards that a run on clips does without."""
    data = config.data
    assert data.clips is not None
    return EncodeConfig(
        clips=data.clips,
        codec=data.codec,
        folder=folder,
        clip=config.clip,
        text=config.text,
        shards=data.online.shards,
        heldout_fraction=data.online.heldout_fraction,
    )


def read_records(folder: Path) -> dict[str, bytes]:
    """Of a plan, the lines by key of sample. ValueError where they are not those that were written."""
    path = folder / RECORDS_NAME
    try:
        is_whole = file_sha256(path) == (folder / RECORDS_HASH_NAME).read_text()
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error}): delete {folder} to plan the clips again") from error
    if not is_whole:
        raise ValueError(f"{path} is damaged (wrong checksum): delete {folder} to plan the clips again")
    return {json.loads(line)["key"]: line for line in path.read_bytes().splitlines()}


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
        write_bytes(scratch / RECORDS_HASH_NAME, file_sha256(scratch / RECORDS_NAME).encode())
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

    def sample(self, clip: Clip, split: Split) -> EncodedSample:
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
