"""Euler integration of the velocity field from noise to data, many samples at once.

Shapes: C channels, T latent frames, H x W latent size. Samples may differ in size, so they come as lists.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from diffusion.conditions import FrameLevels, prefix_mask
from diffusion.timesteps import shift_time

Velocity = Callable[[list[Tensor], list[FrameLevels]], list[Tensor]]
"""From noised samples `x_CTHW` and their noise levels to `dx/dt`, one a sample."""


@dataclass(frozen=True, kw_only=True)
class KnownFrames:
    """Latent frames that are given. `latent_CTHW` has the sample's size; only frames under the mask are read."""

    mask_T: Tensor
    latent_CTHW: Tensor

    def __post_init__(self) -> None:
        if self.mask_T.shape[0] != self.latent_CTHW.shape[1]:
            raise ValueError(
                f"known frames: a mask of {self.mask_T.shape[0]} frames "
                f"does not fit a latent of {self.latent_CTHW.shape[1]}"
            )

    @classmethod
    def prefix(cls, given_CTHW: Tensor, num_frames: int) -> "KnownFrames":
        """`given` as the first of `num_frames` frames, such as an image to animate."""
        channels, length, height, width = given_CTHW.shape
        if not 0 < length < num_frames:
            raise ValueError(
                f"{length} given latent frames leave nothing to make of {num_frames}: ask for a longer clip"
            )
        latent_CTHW = given_CTHW.new_zeros(channels, num_frames, height, width)
        latent_CTHW[:, :length] = given_CTHW
        return cls(mask_T=prefix_mask(length, num_frames), latent_CTHW=latent_CTHW)

    def hold(self, x_CTHW: Tensor) -> Tensor:
        """`x` with the known frames in place."""
        return torch.where(rearrange(self.mask_T, "t -> 1 t 1 1"), self.latent_CTHW.to(x_CTHW), x_CTHW)


def sampling_times(steps: int, *, shift: float, start: float = 1.0) -> Tensor:
    """`steps + 1` noise levels from `start` down to 0, float64, evenly spaced before the shift.

    The grid of diffusers' `FlowMatchEulerDiscreteScheduler` for `sigmas = linspace(1, 1 / steps, steps)`.
    """
    if steps < 1:
        raise ValueError(f"steps={steps} must be at least 1")
    if not 0 < start <= 1:
        raise ValueError(f"start={start} must lie in (0, 1]; 1 starts from pure noise")
    unshifted_start = float(shift_time(torch.tensor(start, dtype=torch.float64), 1 / shift))
    times = shift_time(torch.linspace(unshifted_start, 0, steps + 1, dtype=torch.float64), shift)
    times[0] = start
    return times


def euler_sample(
    velocity: Velocity,
    start: Sequence[Tensor],
    *,
    times: Sequence[Tensor],
    known: Sequence[KnownFrames | None] | None = None,
) -> list[Tensor]:
    """Follow dx/dt = v from `times[0]` to 0: x <- x + (t_next - t) v.

    `start` are samples at their first noise level, `times` their grids (one a sample, all of one length). Known
    frames are held clean, their level is 0 and their velocity is not used.
    """
    known = known or [None] * len(start)
    assert len(start) == len(times) == len(known) and len({len(grid) for grid in times}) <= 1
    x = [sample if given is None else given.hold(sample) for sample, given in zip(start, known, strict=True)]
    for step in range(len(times[0]) - 1 if times else 0):
        levels = [
            FrameLevels.same(grid[step], sample.shape[1], is_condition_T=None if given is None else given.mask_T)
            for grid, sample, given in zip(times, x, known, strict=True)
        ]
        speeds = velocity(x, levels)
        moved = [
            sample + float(grid[step + 1] - grid[step]) * speed.to(sample)
            for sample, grid, speed in zip(x, times, speeds, strict=True)
        ]
        x = [sample if given is None else given.hold(sample) for sample, given in zip(moved, known, strict=True)]
    return x
