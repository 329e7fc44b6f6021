"""Layers of the `wan` codec, whole clip at once.

The names of parameters are those of diffusers' `AutoencoderKLWan`, whose encoder and decoder walk a clip in chunks
of four frames with caches; these layers compute the same numbers in one pass. Frame 0 is special where time is
resampled: it is never merged with, or split into, its neighbours.

Shapes: B clips, C channels, T x H x W, all of them at whatever resolution a layer works at.
"""

import torch
import torch.nn.functional as F
from einops import rearrange, reduce, repeat
from torch import Tensor, nn

_MIN_NORM = 1e-12


class CausalConv3d(nn.Conv3d):
    """Convolution whose output frame t sees input frames up to t only; zeros before the clip and around a frame."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int) -> None:
        super().__init__(in_channels, out_channels, kernel)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        kt, kh, kw = self.kernel_size
        return super().forward(F.pad(x_BCTHW, (kw // 2, kw // 2, kh // 2, kh // 2, kt - 1, 0)))


class ChannelRMSNorm(nn.Module):
    """RMS norm over dimension 1, with as many spatial dimensions as `gamma` says; half precision is lifted."""

    def __init__(self, channels: int, spatial_dims: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, *(1,) * spatial_dims))

    def forward(self, x: Tensor) -> Tensor:
        lifted = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        unit = F.normalize(lifted, dim=1, eps=_MIN_NORM).to(x.dtype)
        return unit * x.shape[1] ** 0.5 * self.gamma


class ResidualBlock(nn.Module):
    """Two causal convolutions around a shortcut."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = ChannelRMSNorm(in_channels, 3)
        self.conv1 = CausalConv3d(in_channels, out_channels, 3)
        self.norm2 = ChannelRMSNorm(out_channels, 3)
        self.conv2 = CausalConv3d(out_channels, out_channels, 3)
        self.conv_shortcut: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.conv_shortcut = CausalConv3d(in_channels, out_channels, 1)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        h_BCTHW = self.conv1(F.silu(self.norm1(x_BCTHW)))
        return self.conv2(F.silu(self.norm2(h_BCTHW))) + self.conv_shortcut(x_BCTHW)


class FrameAttention(nn.Module):
    """Single-head attention among the pixels of one frame."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = ChannelRMSNorm(channels, 2)
        self.to_qkv = nn.Conv2d(channels, channels * 3, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        batch, _, _, height, _ = x_BCTHW.shape
        frame_NCHW = rearrange(x_BCTHW, "b c t h w -> (b t) c h w")
        q, k, v = rearrange(self.to_qkv(self.norm(frame_NCHW)), "n (three c) h w -> three n (h w) c", three=3)
        mixed = rearrange(F.scaled_dot_product_attention(q, k, v), "n (h w) c -> n c h w", h=height)
        return x_BCTHW + rearrange(self.proj(mixed), "(b t) c h w -> b c t h w", b=batch)


class MidBlock(nn.Module):
    """Residual block, attention, residual block."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([FrameAttention(channels)])
        self.resnets = nn.ModuleList([ResidualBlock(channels, channels) for _ in range(2)])

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        before, after = self.resnets
        return after(self.attentions[0](before(x_BCTHW)))


class TimeConv(nn.Conv3d):
    """Three taps over time, no padding; `stride` over time."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1) -> None:
        super().__init__(in_channels, out_channels, (3, 1, 1), stride=(stride, 1, 1))


class Downsample(nn.Module):
    """Halves height and width; with `time`, frames 1 + 2k become 1 + k."""

    def __init__(self, channels: int, *, time: bool) -> None:
        super().__init__()
        # The padding sits at index 0 so that the convolution's parameters are called `resample.1.*`, as in diffusers.
        self.resample = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(channels, channels, 3, stride=2))
        self.time_conv = TimeConv(channels, channels, stride=2) if time else None

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        x_BCTHW = _frame_by_frame(self.resample, x_BCTHW)
        if self.time_conv is None or x_BCTHW.shape[2] == 1:
            return x_BCTHW
        return torch.cat([x_BCTHW[:, :, :1], self.time_conv(x_BCTHW)], dim=2)


class Upsample(nn.Module):
    """Doubles height and width; with `time`, frames 1 + k become 1 + 2k."""

    def __init__(self, in_channels: int, out_channels: int, *, time: bool) -> None:
        super().__init__()
        self.resample = nn.Sequential(RepeatPixels(), nn.Conv2d(in_channels, out_channels, 3, padding=1))
        self.time_conv = TimeConv(in_channels, in_channels * 2) if time else None

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        if self.time_conv is not None and x_BCTHW.shape[2] > 1:
            first, later = x_BCTHW[:, :, :1], x_BCTHW[:, :, 1:]
            # Zeros stand before the second frame: this convolution never sees frame 0.
            pairs = self.time_conv(F.pad(later, (0, 0, 0, 0, 2, 0)))
            later = rearrange(pairs, "b (two c) t h w -> b c (t two) h w", two=2)
            x_BCTHW = torch.cat([first, later], dim=2)
        return _frame_by_frame(self.resample, x_BCTHW)


class RepeatPixels(nn.Module):
    """Nearest-neighbour doubling, exact in every dtype."""

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return repeat(x_NCHW, "n c h w -> n c (h two) (w also)", two=2, also=2)


class AverageDown(nn.Module):
    """Parameter-free shortcut: space and time to channels, then groups of channels averaged (Wan 2.2)."""

    def __init__(self, in_channels: int, out_channels: int, *, time: int, space: int) -> None:
        super().__init__()
        if in_channels * time * space * space % out_channels:
            raise ValueError(
                f"{out_channels} channels cannot average {in_channels} x {time * space**2}: fit the widths"
            )
        self.out_channels, self.time, self.space = out_channels, time, space

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        padded = F.pad(x_BCTHW, (0, 0, 0, 0, -x_BCTHW.shape[2] % self.time, 0))
        values = rearrange(
            padded, "b c (t pt) (h ph) (w pw) -> b (c pt ph pw) t h w", pt=self.time, ph=self.space, pw=self.space
        )
        return reduce(values, "b (out group) t h w -> b out t h w", "mean", out=self.out_channels)


class DuplicateUp(nn.Module):
    """Parameter-free shortcut: channels repeated, then moved to space and time; the first frames are dropped."""

    def __init__(self, in_channels: int, out_channels: int, *, time: int, space: int) -> None:
        super().__init__()
        if out_channels * time * space * space % in_channels:
            raise ValueError(f"{in_channels} channels cannot fill {out_channels} x {time * space**2}: fit the widths")
        self.repeats = out_channels * time * space * space // in_channels
        self.time, self.space = time, space

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        values = repeat(x_BCTHW, "b c t h w -> b (c again) t h w", again=self.repeats)
        grown = rearrange(
            values, "b (c pt ph pw) t h w -> b c (t pt) (h ph) (w pw)", pt=self.time, ph=self.space, pw=self.space
        )
        return grown[:, :, self.time - 1 :]


def _frame_by_frame(layer: nn.Module, x_BCTHW: Tensor) -> Tensor:
    frames = layer(rearrange(x_BCTHW, "b c t h w -> (b t) c h w"))
    return rearrange(frames, "(b t) c h w -> b c t h w", b=x_BCTHW.shape[0])
