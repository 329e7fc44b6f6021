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
    """Bias-corrected percentile interval (Efron 1987, without acceleration), which a shift may take to the last draw.

    Draws that are not finite were lost: half of them count as lying beyond each end.
    """
    sorted_B, _ = _sorted_and_rank(draws_B)
    count, lost, normal = sorted_B.size, draws_B.size - sorted_B.size, NormalDist()
    below = float(np.clip(np.mean(sorted_B < value), 1 / count, 1 - 1 / count))
    shift = normal.inv_cdf(below)
    shares = (normal.cdf(2 * shift - _TAIL), normal.cdf(-2 * shift - _TAIL))
    low, high = (int(np.clip(np.floor((draws_B.size + 1) * share - lost / 2), 1, count)) for share in shares)
    return Interval(value=value, low=min(value, float(sorted_B[low - 1])), high=max(value, float(sorted_B[-high])))


def percentiles(value: float, draws_B: Array) -> Interval:
    """Percentile interval of B independent draws, whose ends are the r-th from below and from above.

    r = floor((B + 1) 0.025 - lost / 2), with half of the draws that are not finite beyond each end. ValueError where r
    is below 1.
    """
    sorted_B, rank = _sorted_and_rank(draws_B)
    ends = int(rank)
    return Interval(value=value, low=float(sorted_B[ends - 1]), high=float(sorted_B[-ends]))


def pooled_percentiles(value: float, draws_BR: Array) -> Interval:
    """The same where each of B independent draws gives R values: their quantile is that of rank r among B."""
    sorted_B, rank = _sorted_and_rank(draws_BR[:, 0])
    level = (rank - 1) / (sorted_B.size - 1)
    low, high = np.quantile(draws_BR[np.isfinite(draws_BR[:, 0])], [level, 1 - level])
    return Interval(value=value, low=float(low), high=float(high))


def _sorted_and_rank(draws_B: Array) -> tuple[Array, float]:
    """Finite draws, and at which rank the interval ends, not rounded."""
    sorted_B = np.sort(draws_B[np.isfinite(draws_B)])
    rank = (draws_B.size + 1) * (1 - LEVEL) / 2 - (draws_B.size - sorted_B.size) / 2
    if rank < 1:
        raise ValueError(
            f"{draws_B.size} redrawn fits of which {draws_B.size - sorted_B.size} are lost carry no 95 % interval: "
            "redraw more, or add cells (more sizes on each budget, more budgets) so that fewer are lost"
        )
    return sorted_B, rank
