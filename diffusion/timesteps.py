"""The law of the noise level t in [0, 1] a sample is trained at; 0 is clean data, 1 is noise."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

CONDITION_KINDS = ("none", "first_frame", "prefix")


@dataclass(frozen=True, kw_only=True)
class FlowConfig:
    """What is drawn for every sample of a step: noise level, conditions, caption dropout."""

    logit_mean: float = 0.0
    logit_std: float = 1.0
    shift: float | None = None
    """One shift for all samples; None shifts by token count, sqrt(tokens / base_tokens)."""
    base_tokens: int = 256
    """Tokens of a sample whose shift is 1."""
    min_shift: float = 1.0
    max_shift: float = 12.0
    caption_dropout: float = 0.1
    """Share of samples that see the null text, which guidance needs."""
    condition_mix: tuple[float, ...] = (0.7, 0.2, 0.1)
    """Weights of `CONDITION_KINDS`: no clean frame, the first latent frame, a prefix of random length."""
    condition_max_fraction: float = 0.5
    """Longest prefix, as a share of a sample's latent frames."""
    condition_noise_max: float = 0.0
    """Condition frames carry a noise level drawn uniformly below this."""

    def __post_init__(self) -> None:
        if self.logit_std <= 0:
            raise ValueError(f"flow.logit_std={self.logit_std} must be above 0")
        if self.shift is not None and self.shift <= 0:
            raise ValueError(f"flow.shift={self.shift} must be above 0, or null to shift by token count")
        if self.base_tokens < 1 or not 0 < self.min_shift <= self.max_shift:
            raise ValueError(
                f"flow: base_tokens={self.base_tokens} must be at least 1 and "
                f"0 < min_shift={self.min_shift} <= max_shift={self.max_shift}"
            )
        if (
            len(self.condition_mix) != len(CONDITION_KINDS)
            or min(self.condition_mix) < 0
            or not sum(self.condition_mix)
        ):
            raise ValueError(
                f"flow.condition_mix={list(self.condition_mix)} must be {len(CONDITION_KINDS)} weights, "
                f"none negative and not all 0, for {', '.join(CONDITION_KINDS)}"
            )
        for name in ("caption_dropout", "condition_max_fraction", "condition_noise_max"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"flow.{name}={getattr(self, name)} must lie in [0, 1]")


def shift_for_tokens(config: FlowConfig, num_tokens: int) -> float:
    """Shift of the noise levels of a sample of `num_tokens` video tokens (Esser et al. 2024, eq. 23 and below).

    More tokens of the same signal average the noise away, so a larger sample needs more of it.
    """
    if config.shift is not None:
        return config.shift
    return min(max(math.sqrt(num_tokens / config.base_tokens), config.min_shift), config.max_shift)


def shift_time(time: Tensor, shift: float) -> Tensor:
    """t' = s t / (1 + (s - 1) t) (Esser et al. 2024, eq. 23); maps [0, 1] onto itself."""
    return shift * time / (1 + (shift - 1) * time)


def draw_time(config: FlowConfig, num_tokens: int, generator: torch.Generator) -> Tensor:
    """One logit-normal noise level (Esser et al. 2024, eq. 19), shifted by token count: float32 `[]`."""
    normal = torch.randn((), generator=generator, dtype=torch.float32)
    time = torch.sigmoid(config.logit_mean + config.logit_std * normal)
    return shift_time(time, shift_for_tokens(config, num_tokens))


def time_quantiles(config: FlowConfig, num_tokens: int, probability: Tensor) -> Tensor:
    """Inverse cumulative distribution of `draw_time`.

    A shift adds log s to the logit, so the shifted law is logit-normal too.
    """
    logit = config.logit_mean + math.log(shift_for_tokens(config, num_tokens))
    return torch.sigmoid(logit + config.logit_std * torch.special.ndtri(probability))


def stratified_levels(count: int, *, config: FlowConfig | None = None, num_tokens: int | None = None) -> Tensor:
    """Midpoints of `count` equal strata, float32, for a mean over noise levels without sampling error.

    Uniform in [0, 1] (losses comparable between runs whatever they train on), or, with `config` and `num_tokens`,
    of equal probability under the training law.
    """
    if count < 1:
        raise ValueError(f"levels={count} must be at least 1")
    midpoint = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    if config is not None:
        assert num_tokens is not None, "the training law depends on the token count"
        midpoint = time_quantiles(config, num_tokens, midpoint)
    return midpoint.float()
