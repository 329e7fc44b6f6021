"""How close a reconstruction is: PSNR and SSIM of clips, and the plain resampling that codecs are compared with.

Shapes: B clips, T x H x W, N images; video is `[B, 3, T, H, W]` in [-1, 1] and is clamped before it is measured.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor

_SIGMA, _RADIUS = 1.5, 5
_C1, _C2 = 0.01**2, 0.03**2


def psnr(video_B3THW: Tensor, reference_B3THW: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each clip in dB, over all its frames; `[B]` in float64."""
    x, y = _unit(video_B3THW), _unit(reference_B3THW)
    return -10 * torch.log10(reduce((x - y).square(), "b c t h w -> b", "mean"))


def ssim(video_B3THW: Tensor, reference_B3THW: Tensor) -> Tensor:
    """Structural similarity of each clip, mean over frames, channels and pixels; `[B]` in float64.

    Gaussian window of sigma 1.5 and 11 taps, borders of 5 pixels left out (Wang et al. 2004, eq. 13).

    Raises:
        ValueError: frames are smaller than the window.
    """
    size = 2 * _RADIUS + 1
    if min(video_B3THW.shape[-2:]) < size:
        raise ValueError(f"SSIM needs frames of at least {size} x {size} pixels, not {list(video_B3THW.shape[-2:])}")
    x, y = (rearrange(_unit(video), "b c t h w -> (b c t) h w") for video in (video_B3THW, reference_B3THW))
    mean_x, mean_y = _window_mean(x), _window_mean(y)
    variance_x = _window_mean(x * x) - mean_x.square()
    variance_y = _window_mean(y * y) - mean_y.square()
    covariance = _window_mean(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + _C1) / (mean_x.square() + mean_y.square() + _C1)
    structure = (2 * covariance + _C2) / (variance_x + variance_y + _C2)
    return reduce(luminance * structure, "(b n) h w -> b", "mean", b=video_B3THW.shape[0])


def resample_with(video_B3THW: Tensor, *, values: int, time_factor: int) -> Tensor:
    """Trilinear down- and up-sampling through about `values` numbers a clip, frames thinned by `time_factor`.

    Down-sampling averages areas (no aliasing), up-sampling is trilinear; corners are not aligned.
    """
    _, channels, frames, height, width = video_B3THW.shape
    kept = max(1, round(frames / time_factor))
    scale = math.sqrt(values / (channels * kept * height * width))
    small = (kept, max(1, min(height, round(height * scale))), max(1, min(width, round(width * scale))))
    thumbnail = F.interpolate(video_B3THW, size=small, mode="area")
    return F.interpolate(thumbnail, size=(frames, height, width), mode="trilinear", align_corners=False)


def _unit(video: Tensor) -> Tensor:
    """[-1, 1] to [0, 1] in float64."""
    return (video.double().clamp(-1, 1) + 1) / 2


def _window_mean(x_NHW: Tensor) -> Tensor:
    """Gaussian mean around every pixel that has a whole window."""
    rows_hH, columns_wW = (_sliding_window(size, like=x_NHW) for size in x_NHW.shape[-2:])
    return rows_hH @ x_NHW @ columns_wW.T


def _sliding_window(size: int, *, like: Tensor) -> Tensor:
    """Matrix `[size - 10, size]` whose rows are the window at each place: many times faster than a convolution here."""
    tap = torch.arange(-_RADIUS, _RADIUS + 1, dtype=like.dtype, device=like.device)
    kernel = torch.exp(-0.5 * (tap / _SIGMA).square())
    offset = torch.arange(size, device=like.device) - torch.arange(size - 2 * _RADIUS, device=like.device)[:, None]
    inside = (offset >= 0) & (offset < len(kernel))
    return torch.where(inside, (kernel / kernel.sum())[offset.clamp(0, len(kernel) - 1)], 0)
