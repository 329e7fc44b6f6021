"""Clips for codec training: a pool that fits memory, cut into batches of one size.

Shapes: B clips, T x H x W frames and pixels.
"""

import itertools
import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from einops import rearrange
from torch import Tensor

from data.clips import Clip, read_clips
from data.lattice import ClipConfig
from data.report import ClipReport
from data.split import split_of
from diffusion.noise import keyed_generator
from trainer.codec_config import CodecDataConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ClipSets:
    """The first pool of training clips, and the held-out clips."""

    folder: str
    clip: ClipConfig
    data: CodecDataConfig
    training: list[Clip]
    heldout: list[Clip]
    is_whole: bool
    """Whether `training` is all there is."""
    report: ClipReport = field(default_factory=ClipReport)

    def pools(self) -> Iterator[list[Clip]]:
        """Pools of training clips without end; a set that fits one pool is not read again."""
        if self.is_whole:
            yield from itertools.repeat(self.training)
        while True:
            report = ClipReport()
            training = (clip for clip in read_clips(self.folder, self.clip, report) if _is_training(clip, self.data))
            for pool in _pools_of(training, self.data.pool_bytes):
                self._report(report)
                yield pool
            self._report(report)

    def _report(self, later: ClipReport) -> None:
        """Say what was skipped after the first pool, once."""
        known = set(self.report.skipped)
        for item in later.skipped:
            if item not in known:
                log.warning("skipped  %s", item)
                self.report.skipped.append(item)

    def batches(self, *, seed: int, skip: int = 0) -> Iterator[Tensor]:
        """uint8 `[B, T, 3, H, W]` without end, after the first `skip`: a pure function of clips, settings and seed."""
        for number, pool in enumerate(self.pools()):
            sizes = [tuple(clip.frames_T3HW.shape) for clip in pool]
            generator = keyed_generator(seed, "codec batches", number)
            picks = batch_order(sizes, pixels_per_batch=self.data.pixels_per_batch, generator=generator)
            for pick in picks[skip:]:
                yield torch.stack([pool[index].frames_T3HW for index in pick])
            skip = max(0, skip - len(picks))


def read_sets(folder: str, clip: ClipConfig, data: CodecDataConfig) -> ClipSets:
    """Read training clips until the pool is full, and held-out clips; stop when there are enough of both.

    Raises:
        ValueError: nothing to train on, or nothing held out.
    """
    training: list[Clip] = []
    heldout: list[Clip] = []
    report, room, is_whole = ClipReport(), data.pool_bytes, True
    for item in read_clips(folder, clip, report):
        if not _is_training(item, data):
            heldout += [item] if len(heldout) < data.heldout_clips else []
        elif room > 0:
            training.append(item)
            room -= item.frames_T3HW.numel()
        else:
            is_whole = False
            if len(heldout) >= data.heldout_clips:
                break
    for split, clips in (("to train on", training), ("held out", heldout)):
        if not clips:
            skipped = f"; the first of {len(report.skipped)} skipped was {report.skipped[0]}" if report.skipped else ""
            raise ValueError(
                f"clips={folder} with data.heldout_fraction={data.heldout_fraction} has no clip {split}{skipped}: "
                "give clips of more sources"
            )
    return ClipSets(
        folder=folder, clip=clip, data=data, training=training, heldout=heldout, is_whole=is_whole, report=report
    )


def batch_order(
    sizes: Sequence[tuple[int, ...]], *, pixels_per_batch: int, generator: torch.Generator
) -> list[list[int]]:
    """One shuffled pass over clips of sizes (T, 3, H, W), as batches of equal size; every clip is in one of them."""
    waiting: dict[tuple[int, ...], list[int]] = defaultdict(list)
    full: list[list[int]] = []
    for index in torch.randperm(len(sizes), generator=generator).tolist():
        size = sizes[index]
        waiting[size].append(index)
        if (len(waiting[size]) + 1) * size[0] * size[2] * size[3] > pixels_per_batch:
            full.append(waiting.pop(size))
    full += waiting.values()
    return [full[place] for place in torch.randperm(len(full), generator=generator).tolist()]


def to_video(frames_BT3HW: Tensor) -> Tensor:
    """uint8 frames to video `[B, 3, T, H, W]` in [-1, 1]."""
    return rearrange(frames_BT3HW, "b t c h w -> b c t h w").float() / 127.5 - 1.0


def augment(video_B3THW: Tensor, strides: tuple[int, int, int], *, generator: torch.Generator) -> Tensor:
    """Mirror and turn upside down at even odds; crop by one stride at a random place, so that patches lie elsewhere.

    An axis of a single stride is not cropped. `generator` is a CPU generator.
    """
    for axis, stride in ((-1, strides[2]), (-2, strides[1])):
        flip, shift = torch.rand(2, generator=generator).tolist()
        if flip < 0.5:
            video_B3THW = video_B3THW.flip(axis)
        kept = video_B3THW.shape[axis] - stride
        if kept > 0:
            video_B3THW = video_B3THW.narrow(axis, int(shift * (stride + 1)), kept)
    return video_B3THW


def videos_of(clips: Iterable[Clip], device: torch.device) -> Iterator[Tensor]:
    """Each clip as a batch of one."""
    for clip in clips:
        yield to_video(clip.frames_T3HW[None].to(device))


def _is_training(clip: Clip, data: CodecDataConfig) -> bool:
    return split_of(clip.source, data.heldout_fraction) == "train"


def _pools_of(clips: Iterable[Clip], pool_bytes: int) -> Iterator[list[Clip]]:
    """Consecutive clips in lists of about `pool_bytes`."""
    pool: list[Clip] = []
    held = 0
    for clip in clips:
        pool.append(clip)
        held += clip.frames_T3HW.numel()
        if held >= pool_bytes:
            yield pool
            pool, held = [], 0
    if pool:
        yield pool
