"""A small codec training run on made-up clips."""

from pathlib import Path

import torch
import torch.nn.functional as F

from data.clips import write_clip_shards
from data.lattice import ClipConfig
from data.mp4 import encode_mp4
from model.codec import CodecConfig
from model.codec_patch import PatchCodecConfig
from tests.data.media import source, still
from trainer.codec_config import (
    CodecDataConfig,
    CodecLossConfig,
    CodecOptimConfig,
    CodecRunConfig,
    TrainVaeConfig,
)
from trainer.mirror import WandbConfig
from trainer.schedule import ScheduleConfig

SOURCES = 9
PATCH_LOSS = CodecLossConfig(latent_noise=0.05, latent_penalty=1e-4)


def textured(seed: int, *, frames: int, height: int = 48, width: int = 64) -> bytes:
    """A video of smooth random patterns that move: too rich for four linear values a patch."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, frames // 6, height // 12, width // 12, generator=generator) * 255
    smooth = F.interpolate(coarse, size=(frames, height, width), mode="trilinear")[0]
    return encode_mp4(smooth.transpose(0, 1).to(torch.uint8).contiguous(), fps=24)


def write_clips(folder: Path) -> Path:
    """Videos of three lengths and two shapes, and an image."""
    clips = [source(f"shot{i}", textured(i, frames=24 + 12 * (i % 3))) for i in range(SOURCES)]
    clips += [source("tall", textured(99, frames=24, height=64, width=48))]
    clips += [source("photo", still(height=48, width=64), "png")]
    write_clip_shards(clips, folder, clips_per_shard=4)
    return folder


def make_config(clips: Path, folder: Path, *, steps: int = 4, **changes) -> TrainVaeConfig:
    settings = {
        "clips": str(clips),
        "folder": str(folder),
        "seed": 1,
        "codec": CodecConfig(patch=PatchCodecConfig(latent_channels=4, width=8, encoder_blocks=1, decoder_blocks=1)),
        "clip": ClipConfig(fps=12.0, max_frames=9),
        "data": CodecDataConfig(pixels_per_batch=60_000, heldout_fraction=0.3),
        "loss": PATCH_LOSS,
        "optim": CodecOptimConfig(),
        "schedule": ScheduleConfig(lr=2e-3, warmup_steps=2),
        "run": CodecRunConfig(steps=steps, evaluate_every=0, checkpoint_every=0, device="cpu", sheet_clips=2),
        "wandb": WandbConfig(mode="disabled"),
    }
    return TrainVaeConfig(**{**settings, **changes})
