"""The law of noise levels against closed forms and another implementation."""

import math

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from scipy import integrate, stats

from diffusion.noise import keyed_generator
from diffusion.timesteps import (
    FlowConfig,
    draw_time,
    shift_for_tokens,
    shift_time,
    stratified_levels,
    time_quantiles,
)

LAWS = [
    (FlowConfig(shift=1.0), 256),
    (FlowConfig(logit_mean=-0.5, logit_std=1.7, shift=3.0), 256),
    (FlowConfig(base_tokens=64), 1024),
]


def cdf(config: FlowConfig, num_tokens: int, time: np.ndarray) -> np.ndarray:
    """P(t' <= time): the shift undone by hand, then the logit-normal law."""
    shift = config.shift or math.sqrt(num_tokens / config.base_tokens)
    unshifted = time / (shift - (shift - 1) * time)
    logit = np.log(unshifted / (1 - unshifted))
    return stats.norm.cdf((logit - config.logit_mean) / config.logit_std)


@pytest.mark.parametrize(("config", "num_tokens"), LAWS)
def test_drawn_levels_follow_the_closed_form(config: FlowConfig, num_tokens: int) -> None:
    times = [draw_time(config, num_tokens, keyed_generator(0, n, "time")) for n in range(4000)]
    uniform = cdf(config, num_tokens, torch.stack(times).double().numpy())
    assert stats.kstest(uniform, "uniform").pvalue > 1e-3
    assert 0 < min(times) <= max(times) < 1


@pytest.mark.parametrize(("config", "num_tokens"), LAWS)
def test_quantiles_invert_the_closed_form(config: FlowConfig, num_tokens: int) -> None:
    probability = torch.linspace(0.01, 0.99, 33, dtype=torch.float64)
    times = time_quantiles(config, num_tokens, probability)
    np.testing.assert_allclose(cdf(config, num_tokens, times.numpy()), probability.numpy(), atol=1e-12)


def test_a_wrong_shift_would_be_seen() -> None:
    times = time_quantiles(FlowConfig(shift=1.2), 256, torch.tensor([0.5], dtype=torch.float64))
    assert abs(cdf(FlowConfig(shift=1.0), 256, times.numpy())[0] - 0.5) > 0.05


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0, 7.0])
def test_shift_is_that_of_the_reference_scheduler(shift: float) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=shift)
    unshifted = torch.arange(1000, 0, -1, dtype=torch.float64) / 1000
    torch.testing.assert_close(shift_time(unshifted, shift), scheduler.sigmas.double(), atol=1e-6, rtol=0)
    back = shift_time(shift_time(unshifted, shift), 1 / shift)
    torch.testing.assert_close(back, unshifted, atol=1e-14, rtol=0)
    assert shift_time(torch.tensor([0.0, 1.0]), shift).tolist() == [0.0, 1.0]


def test_the_shift_keeps_the_noise_left_after_averaging_all_tokens() -> None:
    """Esser et al. 2024: n noisy readings (1 - t) c + t eps of a constant give c up to t / (1 - t) / sqrt(n)."""
    config = FlowConfig(base_tokens=256)
    time = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    for tokens in (256, 1000, 4096):
        shifted = shift_time(time, shift_for_tokens(config, tokens))
        left = shifted / (1 - shifted) / math.sqrt(tokens)
        torch.testing.assert_close(left, time / (1 - time) / math.sqrt(256))


def test_shift_by_tokens_is_bounded_and_can_be_fixed() -> None:
    config = FlowConfig(base_tokens=100, min_shift=1.0, max_shift=4.0)
    shifts = [shift_for_tokens(config, tokens) for tokens in (1, 100, 400, 1600, 10**6)]
    assert shifts == [1.0, 1.0, 2.0, 4.0, 4.0]
    assert shift_for_tokens(FlowConfig(shift=5.0), 10) == 5.0


def test_uniform_strata_give_the_loss_of_the_best_linear_predictor_of_white_data() -> None:
    """Its share of the zero predictor's loss at level t is 1 / (2 (t^2 + (1 - t)^2)), in the mean pi / 4."""
    levels = stratified_levels(32).double()
    assert float((1 / (2 * (levels**2 + (1 - levels) ** 2))).mean()) == pytest.approx(math.pi / 4, abs=2e-4)
    assert levels[0] == pytest.approx(1 / 64)
    torch.testing.assert_close(levels.diff(), torch.full((31,), 1 / 32, dtype=torch.float64))


def test_strata_of_the_training_law_have_its_mean() -> None:
    config = FlowConfig(logit_mean=0.3, shift=2.0)
    density = lambda z: stats.norm.pdf(z) / (1 + math.exp(-(0.3 + math.log(2.0) + z)))  # noqa: E731
    expected, _ = integrate.quad(density, -10, 10)
    assert float(stratified_levels(200, config=config, num_tokens=1).mean()) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("logit_std", 0.0),
        ("shift", -1.0),
        ("base_tokens", 0),
        ("min_shift", 20.0),
        ("condition_mix", (1.0,)),
        ("condition_mix", (0.0, 0.0, 0.0)),
        ("condition_mix", (1.5, -0.5, 0.0)),
        ("caption_dropout", 1.1),
        ("condition_noise_max", -0.1),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(setting: str, value: object) -> None:
    with pytest.raises(ValueError, match=setting):
        FlowConfig(**{setting: value})  # type: ignore[arg-type]


def test_no_levels_are_refused() -> None:
    with pytest.raises(ValueError, match="levels=0"):
        stratified_levels(0)
