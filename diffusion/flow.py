"""The straight path from data to noise that a rectified flow follows.

Shapes: C channels, T latent frames, H x W latent size; every frame has its own noise level t.
"""

from einops import rearrange
from torch import Tensor


def interpolate(x0_CTHW: Tensor, noise_CTHW: Tensor, time_T: Tensor) -> Tensor:
    """x_t = (1 - t) x_0 + t eps per frame (Liu et al. 2022, eq. 1, with data at t = 0)."""
    time = rearrange(time_T, "t -> 1 t 1 1").to(x0_CTHW)
    return (1 - time) * x0_CTHW + time * noise_CTHW


def velocity_target(x0_CTHW: Tensor, noise_CTHW: Tensor) -> Tensor:
    """dx_t / dt = eps - x_0, the same at every t."""
    return noise_CTHW - x0_CTHW
