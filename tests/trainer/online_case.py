"""Clips with a codec, and a training run on them, encoded before or not."""

from pathlib import Path

import torch
from hydra import compose, initialize_config_dir

from data.clips import write_clip_shards
from model.codec import CodecConfig, build_codec, save_codec
from model.codec_patch import PatchCodecConfig
from tests.data.media import source, still
from tests.trainer.codec_case import textured
from tests.trainer.run_case import ROOT, overrides
from trainer.compose import to_dataclass
from trainer.config import TrainConfig

CLIP = {"clip__max_frames": 9}


def write_inputs(folder: Path) -> Path:
    """`clips/` (some of several windows, one tall, an image, one that is none) and `codec/`."""
    clips = [source(f"shot{number}", textured(number, frames=24 + 24 * (number % 3))) for number in range(10)]
    clips += [source("tall", textured(99, frames=24, height=64, width=48))]
    clips += [source("photo", still(height=48, width=64), "png"), source("noise", b"no video at all")]
    write_clip_shards(clips, folder / "clips", clips_per_shard=4)
    write_codec(folder / "codec")
    return folder


def write_codec(folder: Path, *, bias: float = 0.0) -> None:
    torch.manual_seed(0)
    codec = build_codec(CodecConfig(patch=PatchCodecConfig(width=8, encoder_blocks=1, decoder_blocks=1)))
    codec.latent_mean_C += bias
    save_codec(codec, folder)


def words(**changes) -> list[str]:
    """Of a run on clips: short, and looked at in every step."""
    own = {"data__folder": None, "data__clips": "clips", "data__online__cache": "cache", "data__window": 8}
    own |= {"data__tokens_per_pack": 48, "run__steps": 8, "run__evaluate_every": 4, **CLIP}
    own |= {"data__online__heldout_fraction": 0.3}
    return overrides(**own | changes)


def config(folder: Path, **changes) -> TrainConfig:
    """The same in this process."""
    places = {"data__clips": folder / "clips", "data__codec": folder / "codec", "data__online__cache": folder / "cache"}
    places |= {"folder": folder / "run"}
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return to_dataclass(TrainConfig, compose("train", words(**places | changes)))
