"""Learning rate by step: linear warm-up, then constant or cosine."""

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """`lr` is reached after `warmup_steps`; cosine falls to `final_ratio * lr` at the last step."""

    lr: float
    kind: Literal["constant", "cosine"] = "cosine"
    warmup_steps: int = 0
    final_ratio: float = 0.0

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ValueError(f"schedule.lr={self.lr} must be above 0")
        if self.warmup_steps < 0:
            raise ValueError(f"schedule.warmup_steps={self.warmup_steps} must not be negative")


def learning_rate(config: ScheduleConfig, step: int, total_steps: int) -> float:
    """Rate of step `step` (from 0) out of `total_steps`."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.kind == "constant":
        return config.lr
    progress = (step - config.warmup_steps) / max(total_steps - config.warmup_steps, 1)
    cosine = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return config.lr * (config.final_ratio + (1 - config.final_ratio) * cosine)
