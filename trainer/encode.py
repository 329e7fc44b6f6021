"""Clip shards to latent shards: compress with a codec, embed the captions, write the manifest.

    python -m trainer.encode clips=runs/demo/clips codec=runs/demo/codec folder=runs/demo/latents

The folder appears when all of it is written; a second run over the same clips, codec and settings leaves it as it
is, and one after an interruption goes on after the last finished part. `report.json` says what was skipped and why.
"""

import hashlib
import json
import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import hydra
import torch
from omegaconf import DictConfig
from torch import Tensor

from data.clips import Clip, clip_shards, clip_shards_identity, count_clips, read_clips
from data.latents import EncodedSample, LatentConfig, LatentWriter
from data.lattice import ClipConfig
from data.manifest import FILE_NAME, Manifest
from data.report import ClipReport
from data.shards import new_folder, restore_folder, write_bytes
from data.split import split_of
from model.codec import VideoCodec, codec_identity, load_codec
from model.text import TextConfig, TextEncoder
from parallel.launch import Launch
from trainer.compose import EXIT_INTERRUPTED, to_dataclass, user_errors
from trainer.deadline import Deadline
from trainer.device import choose_device
from trainer.encode_parts import EncodedParts, stands
from trainer.signals import EXIT_STOPPED

log = logging.getLogger(__name__)

REPORT_NAME = "report.json"
_PROGRESS_S = 10.0
_WAITING_BATCHES = 8


@dataclass(frozen=True, kw_only=True)
class EncodeConfig:
    """What to encode, with what, and where to."""

    clips: str
    """Folder of clip shards."""
    codec: str
    """Codec folder, as `trainer.train_vae` writes it."""
    folder: str
    """Where the latent shards go."""
    clip: ClipConfig
    text: TextConfig
    shards: LatentConfig = field(default_factory=LatentConfig)
    heldout_fraction: float = 0.1
    """Share of the sources that is kept from training."""
    pixels_per_batch: int = 4_000_000
    """Clips of one size are encoded together up to this many pixels."""
    clip_shards_per_part: int = 16
    """After so many clip shards the latent shards are closed, and an interruption costs only what comes after."""
    device: str = "auto"
    replace: bool = False
    """Replace latent shards that were made from other inputs."""
    dry_run: bool = False

    def __post_init__(self) -> None:
        split_of("", self.heldout_fraction)
        if self.pixels_per_batch < 1:
            raise ValueError(f"pixels_per_batch={self.pixels_per_batch} must be at least 1")
        if self.clip_shards_per_part < 1:
            raise ValueError(f"clip_shards_per_part={self.clip_shards_per_part} must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Encoders:
    """The two networks as functions, and their names."""

    to_latent: Callable[[Tensor], Tensor]
    """Video `[B, 3, T, H, W]` in [-1, 1] to normalised latents `[B, C, t, h, w]`."""
    to_text: Callable[[list[str]], list[Tensor]]
    """Captions to embeddings `[n, E]`."""
    codec_identity: str
    text_identity: str

    @classmethod
    def of(cls, codec: VideoCodec, text: TextEncoder, config: EncodeConfig) -> "Encoders":
        """Those of a config, as `load_networks` loaded them."""
        return cls(
            to_latent=lambda video_B3THW: codec.to_latent(video_B3THW.to(text.device)),
            to_text=text.encode,
            codec_identity=codec_identity(Path(config.codec)),
            text_identity=text.identity(),
        )


def run(config: EncodeConfig) -> Manifest | None:
    """Encode, or say why there is nothing to do. Returns the manifest, None on a dry run."""
    Launch.require_single("trainer.encode")
    clip_shards(config.clips)
    restore_folder(Path(config.folder))
    encoders = load_encoders(config)
    inputs = inputs_hash(config, codec=encoders.codec_identity, text=encoders.text_identity)
    standing = standing_manifest(config, inputs)
    if standing is not None:
        log.info(
            "%s stands: %d samples of these clips, codec and settings; nothing to do", config.folder, len(standing)
        )
        return standing
    if config.dry_run:
        log.info("would encode %s (%s) into %s", config.clips, _total(config.clips), config.folder)
        log.info("codec %s, text encoder %s", encoders.codec_identity, encoders.text_identity)
        return None
    folder, started = Path(config.folder), time.monotonic()
    try:
        with new_folder(folder, replace=config.replace, keep=partial(stands, inputs=inputs)) as scratch:
            writer = LatentWriter(scratch, config.shards, patch_size=config.clip.patch_size)
            parts = encode_parts(scratch, encoders, writer, config=config, inputs=inputs)
            report = parts.report
            finish(writer, encoders, report=report, config=config, inputs=inputs)
            manifest = Manifest.read(scratch)
            summary = summary_lines(manifest, report, seconds=time.monotonic() - started)
            described = report.to_json() | {"clips_folder": config.clips, "manifest": manifest.hash}
            write_bytes(scratch / REPORT_NAME, json.dumps(described, indent=1).encode())
            parts.remove()
    except (KeyboardInterrupt, TimeIsUp) as stop:
        kept = stands(folder.with_name(folder.name + ".partial"), inputs)
        log.info(
            "stopped%s; %s",
            f" by {stop}" if str(stop) else "",
            f"the finished parts are kept in {folder}.partial, and the same command goes on after them"
            if kept
            else "nothing was kept, and the same command starts again",
        )
        sys.exit(EXIT_STOPPED if isinstance(stop, TimeIsUp) else EXIT_INTERRUPTED)
    for line in [*summary, f"written  {folder}, with {REPORT_NAME}"]:
        log.info(line)
    return Manifest.read(folder)


def load_encoders(config: EncodeConfig) -> Encoders:
    """The networks as functions; see `load_networks`."""
    return Encoders.of(*load_networks(config), config)


def load_networks(config: EncodeConfig) -> tuple[VideoCodec, TextEncoder]:
    """Codec and text encoder from their folders; ValueError where the codec's strides are not the clips'."""
    device = choose_device(config.device)
    codec = load_codec(Path(config.codec)).to(device).eval()
    if tuple(codec.strides) != tuple(config.clip.strides):
        raise ValueError(
            f"codec={config.codec} has strides {tuple(codec.strides)}, but clip.strides={config.clip.strides}: "
            "set clip.strides to the codec's"
        )
    return codec, TextEncoder(config.text, device=device)


def inputs_hash(config: EncodeConfig, *, codec: str, text: str) -> str:
    """Names everything that decides the bytes of the latent shards."""
    parts = {
        "clips": clip_shards_identity(config.clips),
        "codec": codec,
        "text": text,
        "clip": asdict(config.clip),
        "shards": asdict(config.shards),
        "heldout_fraction": config.heldout_fraction,
        "pixels_per_batch": config.pixels_per_batch,
        "clip_shards_per_part": config.clip_shards_per_part,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def standing_manifest(config: EncodeConfig, inputs: str) -> Manifest | None:
    """The manifest of a folder made from the same inputs; None where there is none or it may be replaced."""
    folder = Path(config.folder)
    if not (folder / FILE_NAME).is_file():
        if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
            raise ValueError(f"folder={folder} exists and holds no latent shards: give another folder")
        return None
    if config.replace:
        try:
            manifest = Manifest.read(folder)
        except ValueError as error:
            log.info("%s; it will be replaced", error)
            return None
        return manifest if manifest.identity.inputs == inputs else None
    manifest = Manifest.read(folder)
    if manifest.identity.inputs != inputs:
        raise ValueError(
            f"folder={folder} holds latent shards of other clips, another codec or other settings: "
            "give another folder, or replace them with replace=true"
        )
    return manifest


def encode_parts(
    scratch: Path, encoders: Encoders, writer: LatentWriter, *, config: EncodeConfig, inputs: str
) -> EncodedParts:
    """Encode all clips part by part, after the parts that an earlier run finished.

    Raises:
        TimeIsUp: the next part might end after the job's time limit.
    """
    shards = clip_shards(config.clips)
    parts = EncodedParts(scratch, shards, inputs=inputs, shards_per_part=config.clip_shards_per_part)
    parts.restore(writer)
    if parts.done:
        log.info("goes on after %d of %d parts, %d samples", parts.done, len(parts.parts), len(writer.columns["key"]))
    progress = Progress(parts.report, count_clips(config.clips))
    deadline = Deadline.of_job()
    for part in parts.left():
        with deadline.measured("part"):
            clips = read_clips(config.clips, config.clip, parts.report, shards=part, seen=parts.seen)
            encode(clips, encoders, writer, progress=progress, config=config)
            parts.commit(writer)
        if parts.done < len(parts.parts) and (reason := deadline.forbids(["part"])):
            raise TimeIsUp(reason)
    return parts


def encode(
    clips: Iterable[Clip], encoders: Encoders, writer: LatentWriter, *, progress: "Progress", config: EncodeConfig
) -> None:
    """Encode and store every clip; one whose latents or text cannot be stored is skipped and reported."""
    for batch in same_size_batches(clips, config.pixels_per_batch):
        latents_BCTHW = encode_frames(batch, encoders)
        texts = encode_captions([clip.captions for clip in batch], encoders)
        for clip, latent_CTHW, text in zip(batch, latents_BCTHW, texts, strict=True):
            sample = EncodedSample(
                key=clip.key,
                latent_CTHW=latent_CTHW,
                text=text,
                captions=clip.captions,
                source=clip.source,
                split=split_of(clip.source, config.heldout_fraction),
                fps=clip.fps,
                meta={
                    "start_s": clip.start_s,
                    "native_height": clip.native_height,
                    "native_width": clip.native_width,
                    "frames": clip.frames_T3HW.shape[0],
                },
            )
            try:
                writer.write(sample)
            except ValueError as error:
                progress.report.skip(shard=clip.shard, key=clip.key, reason=str(error))
        progress.show(writer.columns["video_tokens"])


@torch.inference_mode()
def encode_frames(clips: list[Clip], encoders: Encoders) -> Tensor:
    """Normalised latents `[B, C, t, h, w]` of clips of one size, on the CPU."""
    frames_BT3HW = torch.stack([clip.frames_T3HW for clip in clips])
    video_B3THW = frames_BT3HW.transpose(1, 2).float() / 127.5 - 1.0
    return encoders.to_latent(video_B3THW).float().cpu()


def encode_captions(captions: list[dict[str, str]], encoders: Encoders) -> list[dict[str, Tensor]]:
    """Each clip's caption kinds and their embeddings."""
    places = [(number, kind) for number, kinds in enumerate(captions) for kind in kinds]
    embeddings = encoders.to_text([captions[number][kind] for number, kind in places])
    texts: list[dict[str, Tensor]] = [{} for _ in captions]
    for (number, kind), embedding_nE in zip(places, embeddings, strict=True):
        texts[number][kind] = embedding_nE
    return texts


def same_size_batches(clips: Iterable[Clip], pixels_per_batch: int) -> Iterator[list[Clip]]:
    """Clips of one size together, in order, up to a number of pixels; few sizes wait at any time."""
    waiting: dict[torch.Size, list[Clip]] = {}
    pixels = 0
    for clip in clips:
        size = clip.frames_T3HW.shape
        waiting.setdefault(size, []).append(clip)
        pixels += _pixels(size)
        full = size if (len(waiting[size]) + 1) * _pixels(size) > pixels_per_batch else None
        if full is None and pixels > _WAITING_BATCHES * pixels_per_batch:
            full = max(waiting, key=lambda size: len(waiting[size]) * _pixels(size))
        if full is not None:
            batch = waiting.pop(full)
            pixels -= len(batch) * _pixels(full)
            yield batch
    yield from waiting.values()


def _pixels(size: torch.Size) -> int:
    return size[0] * size[2] * size[3]


def finish(writer: LatentWriter, encoders: Encoders, *, report: ClipReport, config: EncodeConfig, inputs: str) -> None:
    """Store the null text and the manifest. ValueError where no clip was good."""
    if not writer.columns["key"]:
        first = f"the first of {len(report.skipped)} was {report.skipped[0]}" if report.skipped else "there are none"
        raise ValueError(f"no clip of clips={config.clips} can be used: {first}")
    null_text_nE = encoders.to_text([""])[0]
    writer.finish(
        null_text=null_text_nE,
        identity={
            "codec": encoders.codec_identity,
            "text": encoders.text_identity,
            "inputs": inputs,
            "fps": config.clip.fps,
            "strides": config.clip.strides,
            "latent_channels": writer.latent_channels,
            "text_dim": null_text_nE.shape[1],
            "caption_kinds": tuple(sorted(writer.caption_kinds)),
        },
    )


class TimeIsUp(Exception):
    """The time limit of the job; finished parts are kept."""


class Progress:
    """A line every few seconds."""

    def __init__(self, report: ClipReport, total: int | None) -> None:
        self.report, self.total = report, total
        self.started = self.said = time.monotonic()
        self.read_before = self._read

    @property
    def _read(self) -> int:
        return self.report.source_clips + len(self.report.skipped)

    def show(self, tokens: list[Any]) -> None:
        """Say how far it is, if it was not said just now."""
        now = time.monotonic()
        if now - self.said < _PROGRESS_S:
            return
        self.said = now
        read = self._read
        rate = (read - self.read_before) / (now - self.started)
        left = f", {(self.total - read) / rate:.0f} s left" if self.total and rate else ""
        log.info(
            "%d%s clips read, %d samples written, %s tokens, %d skipped, %.1f clips/s%s",
            read,
            f" of {self.total}" if self.total else "",
            len(tokens),
            f"{sum(tokens):,}",
            len(self.report.skipped),
            rate,
            left,
        )


def summary_lines(manifest: Manifest, report: ClipReport, *, seconds: float) -> list[str]:
    """What a user wants to know at the end: kept, skipped, tokens, buckets, bytes."""
    tokens = manifest.column("video_tokens")
    table = manifest.buckets()
    size = sum(shard.bytes for shard in manifest.shards)
    heldout = len(manifest.select("heldout"))
    lines = report.lines()
    lines.append(f"samples  {len(manifest)}, {heldout} of them held out")
    lines.append(f"tokens   {int(tokens.sum()):,} ({tokens.min()} to {tokens.max()} a sample), {size / 2**20:.1f} MiB")
    lines.append(f"         {'bucket':<22}{'samples':>9}{'tokens':>13}{'shards':>8}{'MiB':>9}")
    for name, bucket in table.items():
        lines.append(
            f"         {name:<22}{bucket.samples:>9}{bucket.tokens:>13,}{bucket.shards:>8}{bucket.bytes / 2**20:>9.1f}"
        )
    lines.append(f"took     {seconds:.1f} s, {len(manifest) / max(seconds, 1e-9):.1f} samples/s")
    if not heldout:
        lines.append("note     no source is held out: raise heldout_fraction to measure held-out loss")
    return lines


def _total(clips: str) -> str:
    total = count_clips(clips)
    return f"{len(clip_shards(clips))} shards" + (f", {total} clips" if total is not None else "")


@user_errors
@hydra.main(config_path="../conf", config_name="encode", version_base="1.3")
@user_errors
def main(cfg: DictConfig) -> None:
    """Entry point."""
    run(to_dataclass(EncodeConfig, cfg))


if __name__ == "__main__":
    main()
