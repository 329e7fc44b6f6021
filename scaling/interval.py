"""95 % intervals from bootstrap draws."""

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

LEVEL = 0.95
_TAIL = NormalDist().inv_cdf(0.5 + LEVEL / 2)


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A value with the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    def __format__(self, spec: str) -> str:
        return f"{self.value:{spec}} ({self.low:{spec}} to {self.high:{spec}})"

    def exp(self) -> "Interval":
        return Interval(value=float(np.exp(self.value)), low=float(np.exp(self.low)), high=float(np.exp(self.high)))


def bias_corrected(value: float, draws_B: Array) -> Interval:
    """Bias-corrected percentile interval (Efron 1987, without acceleration); draws that are not finite are left out.

    With a robust loss the plain percentile interval is too wide and the basic one too narrow (`scaling.coverage`).
    """
    sorted_B = np.sort(draws_B[np.isfinite(draws_B)])
    assert sorted_B.size >= 20, "the caller makes sure that most draws are finite"
    count, normal = sorted_B.size, NormalDist()
    below = float(np.clip(np.mean(sorted_B < value), 1 / count, 1 - 1 / count))
    shift = normal.inv_cdf(below)
    low, high = (normal.cdf(2 * shift + side) * (count + 1) - 1 for side in (-_TAIL, _TAIL))
    return Interval(
        value=value,
        low=min(value, float(sorted_B[int(np.clip(np.floor(low), 0, count - 1))])),
        high=max(value, float(sorted_B[int(np.clip(np.ceil(high), 0, count - 1))])),
    )


def percentiles(value: float, draws_B: Array) -> Interval:
    """Plain percentile interval, for draws that are already spread as predictions are."""
    low, high = np.quantile(draws_B[np.isfinite(draws_B)], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value=value, low=float(low), high=float(high))
