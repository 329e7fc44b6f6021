"""What a sample is conditioned on: which latent frames are given, at what noise, and whether text is.

T latent frames of a sample. A frame that is a condition keeps (almost) no noise and carries no loss, so animating an
image, extending a clip or connecting two are masks over frames and nothing else.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.timesteps import CONDITION_KINDS, FlowConfig, draw_time


@dataclass(frozen=True, kw_only=True)
class FrameLevels:
    """The noise level of each latent frame of one sample, and which frames are conditions."""

    time_T: Tensor
    is_condition_T: Tensor

    @classmethod
    def same(cls, time: float | Tensor, num_frames: int, *, is_condition_T: Tensor | None = None) -> "FrameLevels":
        """Every frame at `time`, but conditions, if any, clean."""
        if is_condition_T is None:
            is_condition_T = torch.zeros(num_frames, dtype=torch.bool)
        time_T = torch.full((num_frames,), float(time), dtype=torch.float32)
        return cls(time_T=time_T.masked_fill(is_condition_T, 0.0), is_condition_T=is_condition_T)


def prefix_mask(length: int, num_frames: int) -> Tensor:
    """bool `[T]`, True for the first `length` frames."""
    return torch.arange(num_frames) < length


def draw_condition_mask(config: FlowConfig, num_frames: int, generator: torch.Generator) -> Tensor:
    """Which latent frames are given: bool `[T]`, never all of them. An image has none."""
    # Both draws always happen, so that a changed mix leaves every later draw as it was.
    kind_draw, length_draw = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
    kind = CONDITION_KINDS[pick(config.condition_mix, kind_draw)]
    longest = min(max(math.floor(config.condition_max_fraction * num_frames), 1), num_frames - 1)
    if kind == "none" or longest < 1:
        return prefix_mask(0, num_frames)
    length = 1 if kind == "first_frame" else 1 + math.floor(length_draw * longest)
    return prefix_mask(length, num_frames)


def pick(weights: tuple[float, ...], draw: float) -> int:
    """Index chosen by a uniform `draw` in [0, 1) with probabilities proportional to `weights`."""
    left = draw * sum(weights)
    for index, weight in enumerate(weights):
        left -= weight
        if left < 0:
            return index
    return max(index for index, weight in enumerate(weights) if weight > 0)


def draw_noise_levels(
    config: FlowConfig, *, num_frames: int, num_tokens: int, generator: torch.Generator
) -> FrameLevels:
    """Noise level and condition mask of one training sample of `num_frames` latent frames, `num_tokens` tokens."""
    time = draw_time(config, num_tokens, generator)
    is_condition_T = draw_condition_mask(config, num_frames, generator)
    slight = config.condition_noise_max * torch.rand((), generator=generator, dtype=torch.float32)
    time_T = torch.where(is_condition_T, slight, time)
    return FrameLevels(time_T=time_T, is_condition_T=is_condition_T)


def drop_caption(config: FlowConfig, generator: torch.Generator) -> bool:
    """Whether a sample sees the null text instead of its caption (Ho and Salimans 2022, alg. 1)."""
    return bool(torch.rand((), generator=generator, dtype=torch.float64) < config.caption_dropout)
