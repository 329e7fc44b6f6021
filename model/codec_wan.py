"""The `wan` codec: the causal 3-D autoencoder of Wan 2.1 and, with `residual`, of Wan 2.2.

Specification: diffusers' `AutoencoderKLWan`, whose state dict fits this module name by name.

Shapes: B clips, C latent channels, T x H x W video, t x h x w latent grid.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from model.codec_interface import Posterior, VideoCodec
from model.codec_wan_blocks import (
    AverageDown,
    CausalConv3d,
    ChannelRMSNorm,
    Downsample,
    DuplicateUp,
    MidBlock,
    ResidualBlock,
    Upsample,
)


@dataclass(frozen=True, kw_only=True)
class WanCodecConfig:
    """Sizes of a `WanCodec`; the defaults are Wan 2.1's."""

    latent_channels: int = 16
    encoder_width: int = 96
    decoder_width: int = 96
    width_multiples: tuple[int, ...] = (1, 2, 4, 4)
    blocks_per_level: int = 2
    time_downsample: tuple[bool, ...] = (False, True, True)
    """Whether the step after each level but the last also halves the frame rate."""
    residual: bool = False
    """Wan 2.2: every level has a parameter-free shortcut around it."""
    pixel_patch: int = 1
    """Wan 2.2: 2 x 2 pixels become channels before the first convolution."""

    def __post_init__(self) -> None:
        if len(self.time_downsample) != len(self.width_multiples) - 1:
            raise ValueError(
                f"time_downsample has {len(self.time_downsample)} entries, but {len(self.width_multiples)} levels "
                f"have {len(self.width_multiples) - 1} steps between them: give one entry a step"
            )
        sizes = (self.latent_channels, self.encoder_width, self.decoder_width, *self.width_multiples)
        if min(*sizes, self.blocks_per_level, self.pixel_patch) < 1:
            raise ValueError(f"wan codec sizes must be positive: {self}")

    @property
    def strides(self) -> tuple[int, int, int]:
        space = self.pixel_patch * 2 ** len(self.time_downsample)
        return 2 ** sum(self.time_downsample), space, space


class ResidualDown(nn.Module):
    """One encoder level of Wan 2.2: residual blocks, then down-sampling, inside an averaging shortcut."""

    def __init__(self, channels: tuple[int, int], *, blocks: int, down: bool, time: bool) -> None:
        super().__init__()
        widths = [channels[0], *[channels[1]] * blocks]
        self.avg_shortcut = AverageDown(*channels, time=2 if time else 1, space=2 if down else 1)
        self.resnets = nn.Sequential(*(ResidualBlock(*pair) for pair in pairwise(widths)))
        self.downsampler = Downsample(channels[1], time=time) if down else nn.Identity()

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        return self.downsampler(self.resnets(x_BCTHW)) + self.avg_shortcut(x_BCTHW)


class ResidualUp(nn.Module):
    """One decoder level of Wan 2.2: residual blocks, then up-sampling, inside a duplicating shortcut."""

    def __init__(self, channels: tuple[int, int], *, blocks: int, up: bool, time: bool) -> None:
        super().__init__()
        widths = [channels[0], *[channels[1]] * (blocks + 1)]
        self.avg_shortcut = DuplicateUp(*channels, time=2 if time else 1, space=2) if up else None
        self.resnets = nn.Sequential(*(ResidualBlock(*pair) for pair in pairwise(widths)))
        self.upsampler = Upsample(channels[1], channels[1], time=time) if up else nn.Identity()

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        y_BCTHW = self.upsampler(self.resnets(x_BCTHW))
        return y_BCTHW if self.avg_shortcut is None else y_BCTHW + self.avg_shortcut(x_BCTHW)


class PlainUp(nn.Module):
    """One decoder level of Wan 2.1: residual blocks, then up-sampling to half the width."""

    def __init__(self, channels: tuple[int, int], *, blocks: int, up: bool, time: bool) -> None:
        super().__init__()
        widths = [channels[0], *[channels[1]] * (blocks + 1)]
        self.resnets = nn.Sequential(*(ResidualBlock(*pair) for pair in pairwise(widths)))
        steps = [Upsample(channels[1], channels[1] // 2, time=time)] if up else []
        self.upsamplers = nn.Sequential(*steps)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        return self.upsamplers(self.resnets(x_BCTHW))


class WanEncoder(nn.Module):
    """Pixels (or 2 x 2 pixel patches) to the parameters of the latent distribution."""

    def __init__(self, config: WanCodecConfig) -> None:
        super().__init__()
        widths = [config.encoder_width * multiple for multiple in (1, *config.width_multiples)]
        steps = (*config.time_downsample, None)
        self.conv_in = CausalConv3d(3 * config.pixel_patch**2, widths[0], 3)
        levels: list[nn.Module] = []
        for channels, time in zip(pairwise(widths), steps, strict=True):
            if config.residual:
                blocks = config.blocks_per_level
                levels.append(ResidualDown(channels, blocks=blocks, down=time is not None, time=bool(time)))
                continue
            inner = [channels[0], *[channels[1]] * config.blocks_per_level]
            levels += [ResidualBlock(*pair) for pair in pairwise(inner)]
            if time is not None:
                levels.append(Downsample(channels[1], time=time))
        self.down_blocks = nn.Sequential(*levels)
        self.mid_block = MidBlock(widths[-1])
        self.norm_out = ChannelRMSNorm(widths[-1], 3)
        self.conv_out = CausalConv3d(widths[-1], 2 * config.latent_channels, 3)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        h_BCTHW = self.mid_block(self.down_blocks(self.conv_in(x_BCTHW)))
        return self.conv_out(F.silu(self.norm_out(h_BCTHW)))


class WanDecoder(nn.Module):
    """Latents to pixels (or 2 x 2 pixel patches)."""

    def __init__(self, config: WanCodecConfig) -> None:
        super().__init__()
        multiples = config.width_multiples[::-1]
        widths = [config.decoder_width * multiple for multiple in (multiples[0], *multiples)]
        steps = (*config.time_downsample[::-1], None)
        self.conv_in = CausalConv3d(config.latent_channels, widths[0], 3)
        self.mid_block = MidBlock(widths[0])
        levels: list[nn.Module] = []
        for level, ((width_in, width_out), time) in enumerate(zip(pairwise(widths), steps, strict=True)):
            kind = ResidualUp if config.residual else PlainUp
            halved = width_in // 2 if level and not config.residual else width_in
            blocks = config.blocks_per_level
            levels.append(kind((halved, width_out), blocks=blocks, up=time is not None, time=bool(time)))
        self.up_blocks = nn.Sequential(*levels)
        self.norm_out = ChannelRMSNorm(widths[-1], 3)
        self.conv_out = CausalConv3d(widths[-1], 3 * config.pixel_patch**2, 3)

    def forward(self, z_BCthw: Tensor) -> Tensor:
        h_BCTHW = self.up_blocks(self.mid_block(self.conv_in(z_BCthw)))
        return self.conv_out(F.silu(self.norm_out(h_BCTHW)))


class WanCodec(VideoCodec):
    """See the module's docstring."""

    def __init__(self, config: WanCodecConfig) -> None:
        super().__init__(strides=config.strides, latent_channels=config.latent_channels)
        self.config = config
        self.encoder = WanEncoder(config)
        self.quant_conv = CausalConv3d(2 * config.latent_channels, 2 * config.latent_channels, 1)
        self.post_quant_conv = CausalConv3d(config.latent_channels, config.latent_channels, 1)
        self.decoder = WanDecoder(config)

    def posterior(self, video_B3THW: Tensor) -> Posterior:
        self.check_video(video_B3THW)
        patch = self.config.pixel_patch
        x_BCTHW = rearrange(video_B3THW, "b c t (h ph) (w pw) -> b (c pw ph) t h w", ph=patch, pw=patch)
        mean_BCthw, log_variance_BCthw = self.quant_conv(self.encoder(x_BCTHW)).chunk(2, dim=1)
        return Posterior(mean_BCthw=mean_BCthw, log_variance_BCthw=log_variance_BCthw.clamp(-30.0, 20.0))

    def decode(self, z_BCthw: Tensor) -> Tensor:
        patch = self.config.pixel_patch
        x_BCTHW = self.decoder(self.post_quant_conv(z_BCthw))
        return rearrange(x_BCTHW, "b (c pw ph) t h w -> b c t (h ph) (w pw)", ph=patch, pw=patch)
