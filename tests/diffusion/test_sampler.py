"""Euler sampling against a case solved on paper, and against another implementation.

Shapes: C channels, T latent frames, H x W latent size.
"""

import math

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from diffusion.conditions import FrameLevels, prefix_mask
from diffusion.sampler import KnownFrames, Velocity, euler_sample, sampling_times

MEAN_C = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
MIX_CC = torch.tensor([[1.0, 0.0, 0.0], [0.8, 0.5, 0.0], [-0.3, 0.2, 2.0]], dtype=torch.float64)
COVARIANCE_CC = MIX_CC @ MIX_CC.T
VARIANCE_C, AXES_CC = torch.linalg.eigh(COVARIANCE_CC)
SIZE = (3, 2, 20, 25)


def gaussian_velocity(x: list[Tensor], levels: list[FrameLevels]) -> list[Tensor]:
    """E[eps - x_0 | x_t] for x_0 ~ N(mean, covariance), independent over positions, by linear regression."""
    speeds = []
    for x_CTHW, level in zip(x, levels, strict=True):
        t = float(level.time_T[0])
        x_CN = x_CTHW.reshape(3, -1)
        total_CC = (1 - t) ** 2 * COVARIANCE_CC + t**2 * torch.eye(3, dtype=torch.float64)
        cross_CC = t * torch.eye(3, dtype=torch.float64) - (1 - t) * COVARIANCE_CC
        gain_CC = cross_CC @ torch.linalg.inv(total_CC)
        speeds.append((gain_CC @ (x_CN - (1 - t) * MEAN_C[:, None]) - MEAN_C[:, None]).reshape(x_CTHW.shape))
    return speeds


def exact_samples(noise_CTHW: Tensor) -> Tensor:
    """The flow of that field takes noise to mean + covariance^(1/2) noise."""
    root_CC = AXES_CC @ VARIANCE_C.sqrt().diag() @ AXES_CC.T
    return (root_CC @ noise_CTHW.reshape(3, -1) + MEAN_C[:, None]).reshape(noise_CTHW.shape)


def euler_error(steps: int, shift: float) -> float:
    noise = torch.randn(SIZE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    times = sampling_times(steps, shift=shift)
    (sample,) = euler_sample(gaussian_velocity, [noise], times=[times])
    return float((sample - exact_samples(noise)).norm() / math.sqrt(noise.numel()))


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_euler_converges_to_the_exact_flow_with_order_one(shift: float) -> None:
    errors = [euler_error(steps, shift) for steps in (100, 200, 400)]
    assert errors[-1] < 0.02
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.1)
    assert errors[1] / errors[2] == pytest.approx(2, abs=0.05)


def test_samples_have_the_mean_and_covariance_of_the_data() -> None:
    noise = torch.randn(SIZE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (sample,) = euler_sample(gaussian_velocity, [noise], times=[sampling_times(1000, shift=1.0)])
    x_CN = sample.reshape(3, -1)
    count = x_CN.shape[1]
    spread = 4 / math.sqrt(count)
    assert ((x_CN.mean(1) - MEAN_C).abs() < spread * COVARIANCE_CC.diagonal().sqrt()).all()
    scale_CC = torch.outer(COVARIANCE_CC.diagonal().sqrt(), COVARIANCE_CC.diagonal().sqrt())
    assert ((torch.cov(x_CN) - COVARIANCE_CC).abs() < 2 * spread * scale_CC).all()


@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0])
def test_times_and_steps_are_those_of_the_reference_scheduler(shift: float) -> None:
    def field(x: Tensor, t: float) -> Tensor:
        return torch.sin(3 * x) + t * x

    steps = 12
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps).tolist())
    times = sampling_times(steps, shift=shift)
    torch.testing.assert_close(times, scheduler.sigmas.double(), atol=1e-6, rtol=0)

    noise = torch.randn(2, 3, 4, 5)
    expected = noise
    for timestep in scheduler.timesteps:
        velocity = field(expected, float(timestep) / 1000)
        expected = scheduler.step(velocity, timestep, expected).prev_sample
    (sample,) = euler_sample(lambda x, levels: [field(x[0], float(levels[0].time_T[0]))], [noise], times=[times])
    torch.testing.assert_close(sample, expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("shift", [0.7, 1.0, 4.0])
@pytest.mark.parametrize("start", [0.05, 0.6, 1.0])
def test_times_fall_from_the_start_to_zero(shift: float, start: float) -> None:
    times = sampling_times(10, shift=shift, start=start)
    assert times[0] == start
    assert times[-1] == 0
    assert (times.diff() < 0).all()
    if shift == 1.0:
        torch.testing.assert_close(times, torch.linspace(start, 0, 11, dtype=torch.float64))


def to_point(target: Tensor) -> Velocity:
    """The exact field of data that is one point: (x - point) / t. Euler lands on it from anywhere."""

    def velocity(x: list[Tensor], levels: list[FrameLevels]) -> list[Tensor]:
        return [(x_CTHW - target) / level.time_T[None, :, None, None] for x_CTHW, level in zip(x, levels, strict=True)]

    return velocity


@pytest.mark.parametrize(("start", "steps"), [(1.0, 1), (1.0, 7), (0.3, 4)])
def test_a_single_point_is_hit_exactly(start: float, steps: int) -> None:
    target, noise = torch.randn(2, 2, 3, 4, 4).unbind()
    (sample,) = euler_sample(to_point(target), [noise], times=[sampling_times(steps, shift=2.0, start=start)])
    torch.testing.assert_close(sample, target, atol=1e-5, rtol=0)


def test_known_frames_are_held_and_their_velocity_is_never_used() -> None:
    target, noise, given = torch.randn(3, 2, 4, 3, 3).unbind()
    seen: list[FrameLevels] = []
    mask_T = torch.tensor([True, False, False, True])

    def velocity(x: list[Tensor], levels: list[FrameLevels]) -> list[Tensor]:
        seen.append(levels[0])
        assert torch.equal(x[0][:, mask_T], given[:, mask_T])
        # 0 / 0 on the known frames: NaN, which must not spread.
        return [(x[0] - torch.where(mask_T[:, None, None], given, target)) / levels[0].time_T[None, :, None, None]]

    known = KnownFrames(mask_T=mask_T, latent_CTHW=given)
    (sample,) = euler_sample(velocity, [noise], times=[sampling_times(5, shift=1.0)], known=[known])
    assert torch.equal(sample[:, mask_T], given[:, mask_T])
    torch.testing.assert_close(sample[:, ~mask_T], target[:, ~mask_T], atol=1e-5, rtol=0)
    for level, time in zip(seen, sampling_times(5, shift=1.0), strict=False):
        torch.testing.assert_close(level.time_T, torch.where(mask_T, 0.0, float(time)))
        assert torch.equal(level.is_condition_T, mask_T)


def test_a_given_start_of_a_clip_is_a_prefix_mask() -> None:
    image = torch.randn(2, 1, 3, 3)
    known = KnownFrames.prefix(image, 4)
    assert torch.equal(known.mask_T, prefix_mask(1, 4))
    assert torch.equal(known.hold(torch.zeros(2, 4, 3, 3))[:, :1], image)
    with pytest.raises(ValueError, match="nothing to make"):
        KnownFrames.prefix(image, 1)
    with pytest.raises(ValueError, match="mask of 3 frames"):
        KnownFrames(mask_T=prefix_mask(1, 3), latent_CTHW=torch.zeros(2, 4, 3, 3))


def test_samples_of_other_sizes_and_times_change_nothing() -> None:
    def velocity(x: list[Tensor], levels: list[FrameLevels]) -> list[Tensor]:
        return [torch.sin(2 * x_CTHW) * float(level.time_T[0]) for x_CTHW, level in zip(x, levels, strict=True)]

    small, large = torch.randn(2, 1, 3, 3), torch.randn(2, 4, 5, 2)
    times = [sampling_times(6, shift=1.0), sampling_times(6, shift=3.0, start=0.5)]
    together = euler_sample(velocity, [small, large], times=times)
    alone = [euler_sample(velocity, [x], times=[grid])[0] for x, grid in zip((small, large), times, strict=True)]
    assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))


@pytest.mark.parametrize("settings", [{"steps": 0}, {"start": 0.0}, {"start": 1.5}])
def test_impossible_times_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="|".join(settings)):
        sampling_times(**({"steps": 5, "shift": 1.0} | settings))  # type: ignore[arg-type]
