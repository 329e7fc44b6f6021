"""Classifier-free guidance: how the velocities with and without text combine."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """Strength of the text, and the noise levels at which it is strengthened at all.

    The null pass drops the text only: condition frames stay in both passes.
    """

    scale: float = 4.0
    interval: tuple[float, float] = (0.0, 1.0)
    """Noise levels (lowest, highest) with guidance; limiting it avoids oversaturation (Kynkaanniemi et al. 2024)."""

    def __post_init__(self) -> None:
        low, high = self.interval
        if not 0 <= low <= high <= 1:
            raise ValueError(f"guidance interval {list(self.interval)} must be two noise levels, 0 <= low <= high <= 1")
        if self.scale < 0:
            raise ValueError(f"guidance={self.scale} must not be negative; 1 is plain text, 0 ignores it")

    def needs_null(self, time: float) -> bool:
        """Whether the null pass changes the result at noise level `time`."""
        low, high = self.interval
        return self.scale != 1 and low <= time <= high

    def combine(self, text_velocity: Tensor, null_velocity: Tensor) -> Tensor:
        """v = v_null + g (v_text - v_null) (Ho and Salimans 2022, eq. 6, in velocities)."""
        return null_velocity + self.scale * (text_velocity - null_velocity)
