"""One small codec of each kind, with random weights and latent statistics."""

import torch

from model.codec import CodecConfig, VideoCodec, build_codec
from model.codec_patch import PatchCodecConfig
from model.codec_wan import WanCodecConfig

CONFIGS = {
    "patch": CodecConfig(patch=PatchCodecConfig(latent_channels=4, width=8, encoder_blocks=1, decoder_blocks=1)),
    "wan": CodecConfig(wan=WanCodecConfig(latent_channels=3, encoder_width=4, decoder_width=4, blocks_per_level=1)),
}


def small_codec(kind: str) -> VideoCodec:
    torch.manual_seed(1)
    made = build_codec(CONFIGS[kind])
    channels = made.latent_channels
    made.set_latent_statistics(mean_C=torch.randn(channels), scale_C=torch.rand(channels) + 0.5)
    return made
