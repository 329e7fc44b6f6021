"""What every video codec offers: clips to latents and back, causal in time, images as one-frame clips.

Shapes: B clips, C latent channels, T x H x W frames and pixels of a clip, t x h x w its latent grid.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Posterior:
    """A diagonal Gaussian over latents, or a point where the codec has no variance of its own."""

    mean_BCthw: Tensor
    log_variance_BCthw: Tensor | None


class VideoCodec(nn.Module):
    """Compresses clips of 1 + k * `strides[0]` frames; frame 0 becomes latent frame 0.

    Video is `[B, 3, T, H, W]` in [-1, 1]. `encode` and `decode` speak raw latents; `to_latent` and `to_video` speak
    normalised ones, (z - mean) / scale per channel, which is what is stored and trained on.
    """

    strides: tuple[int, int, int]
    latent_channels: int
    latent_mean_C: Tensor
    latent_scale_C: Tensor

    def __init__(self, *, strides: tuple[int, int, int], latent_channels: int) -> None:
        super().__init__()
        self.strides = strides
        self.latent_channels = latent_channels
        self.register_buffer("latent_mean_C", torch.zeros(latent_channels))
        self.register_buffer("latent_scale_C", torch.ones(latent_channels))

    def posterior(self, video_B3THW: Tensor) -> Posterior:
        """Distribution of the raw latents of a clip."""
        raise NotImplementedError

    def decode(self, z_BCthw: Tensor) -> Tensor:
        """Raw latents to video `[B, 3, 1 + st * (t - 1), sh * h, sw * w]`, not clamped."""
        raise NotImplementedError

    def encode(self, video_B3THW: Tensor) -> Tensor:
        """Mean of the raw latents, `[B, C, t, h, w]`."""
        return self.posterior(video_B3THW).mean_BCthw

    def to_latent(self, video_B3THW: Tensor) -> Tensor:
        """Normalised latents of a clip."""
        z_BCthw = self.encode(video_B3THW)
        return (z_BCthw - _over_grid(self.latent_mean_C)) / _over_grid(self.latent_scale_C)

    def to_video(self, latent_BCthw: Tensor) -> Tensor:
        """Video of normalised latents, not clamped."""
        return self.decode(latent_BCthw * _over_grid(self.latent_scale_C) + _over_grid(self.latent_mean_C))

    def latent_grid(self, video_size: tuple[int, int, int]) -> tuple[int, int, int]:
        """Latent grid (t, h, w) of a clip of (T, H, W); ValueError where the size is off the lattice."""
        st, sh, sw = self.strides
        frames, height, width = video_size
        if frames < 1 or (frames - 1) % st:
            raise ValueError(f"clip has {frames} frames, but this codec takes 1 + {st}k: {_neighbours(frames, st)}")
        if height < 1 or width < 1 or height % sh or width % sw:
            raise ValueError(
                f"clip is {height} x {width} pixels, but this codec takes multiples of {sh} x {sw}: crop or resize it"
            )
        return 1 + (frames - 1) // st, height // sh, width // sw

    def check_video(self, video_B3THW: Tensor) -> None:
        """ValueError unless this is a batch of RGB clips on the lattice."""
        if video_B3THW.dim() != 5 or video_B3THW.shape[1] != 3:
            raise ValueError(f"video has shape {list(video_B3THW.shape)}, but [B, 3, T, H, W] is needed: permute it")
        self.latent_grid((video_B3THW.shape[2], video_B3THW.shape[3], video_B3THW.shape[4]))

    def set_latent_statistics(self, *, mean_C: Tensor, scale_C: Tensor) -> None:
        """What `to_latent` subtracts and divides by."""
        if mean_C.shape != self.latent_mean_C.shape or scale_C.shape != self.latent_scale_C.shape:
            raise ValueError(
                f"latent mean and scale have {list(mean_C.shape)} and {list(scale_C.shape)} values, "
                f"but the codec has {self.latent_channels} channels: give one of each per channel"
            )
        if not bool((scale_C > 0).all()):
            raise ValueError(f"latent scale must be positive, not {scale_C.tolist()}: drop dead channels first")
        self.latent_mean_C.copy_(mean_C)
        self.latent_scale_C.copy_(scale_C)


def _over_grid(value_C: Tensor) -> Tensor:
    return value_C[:, None, None, None]


def _neighbours(frames: int, stride: int) -> str:
    below = 1 + max(frames - 1, 0) // stride * stride
    return f"cut it to {below} or give {below + stride}"
