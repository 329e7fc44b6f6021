"""Equal work for all ranks: the packs of a step in an order whose equal parts cost about the same.

The order does not depend on the number of ranks: rank r of n takes the r-th of n equal parts. So the stream of
samples, rank after rank, is the same for any number of ranks.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_SMALL_GROUP = 4
"""In groups of up to so many packs, packs change places too, though that unsettles the smaller groups inside."""
_SWAPS = 4
"""Exchanges for each group, at most."""


@dataclass(frozen=True, kw_only=True)
class PackCost:
    """Work of a pack, in any unit: linear * sum(L) + quadratic * sum(L^2) + text * (text tokens)."""

    linear: float = 1.0
    quadratic: float = 0.0
    text: float = 0.0

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(f"a pack's cost needs finite coefficients of 0 or more, not {name}={value}")
        if self.linear + self.quadratic == 0:
            raise ValueError(f"a pack's cost needs coefficients above 0, linear or quadratic or both, not {self}")

    @classmethod
    def read(cls, path: str | Path) -> "PackCost":
        """From a JSON file; ValueError where it is missing or something else."""
        try:
            described = json.loads(Path(path).read_text())
            return cls(**{name: float(described[name]) for name in cls.__dataclass_fields__})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"data.cost={path} cannot be read ({error!r}): make it with trainer.pack_cost") from error

    def of_samples(self, video_tokens: np.ndarray, text_tokens: np.ndarray) -> np.ndarray:
        """Of each sample; a pack costs what its samples do."""
        lengths, text = video_tokens.astype(np.float64), text_tokens.astype(np.float64)
        return lengths * (self.linear + self.quadratic * lengths) + self.text * text


def balanced_order(costs: Sequence[float]) -> list[int]:
    """An order of packs in which equal parts, of whatever length divides the number of packs, cost about the same.

    Groups of packs are put together by small factors of their number: first pairs (say), then pairs of pairs; each
    time the most expensive unit meets the cheapest, and units, then single packs of small groups, change places while
    that helps the worst group.
    """
    work = np.asarray(costs, dtype=np.float64)
    units = np.arange(len(work))[:, None]
    for factor in _prime_factors(len(work)):
        units = _group(units, work, factor)
    return units.ravel().tolist()


def imbalance(costs: Sequence[float], ranks: int) -> float:
    """Of the packs of a step in order: the most expensive rank's work over the mean, at least 1."""
    sums = np.asarray(costs, dtype=np.float64).reshape(ranks, -1).sum(1)
    return float(sums.max() / sums.mean())


def _prime_factors(number: int) -> list[int]:
    factors, candidate = [], 2
    while number > 1:
        while number % candidate == 0:
            factors.append(candidate)
            number //= candidate
        candidate += 1
    return factors


def _group(units: np.ndarray, costs: np.ndarray, factor: int) -> np.ndarray:
    """Of units `[U, packs]`, groups of `factor` units that cost about the same: `[U / factor, factor * packs]`."""
    count = len(units) // factor
    ranked = np.argsort(-costs[units].sum(1), kind="stable").reshape(factor, count)
    # Back and forth: the group that had the most expensive of one row has the cheapest of the next.
    members = np.stack([row if number % 2 == 0 else row[::-1] for number, row in enumerate(ranked)], axis=1)
    if count > 1:
        _exchange(members, costs[units].sum(1))
    groups = units[members].reshape(count, -1)
    if count > 1 and groups.shape[1] <= _SMALL_GROUP:
        _exchange(groups, costs)
    return groups


def _exchange(members: np.ndarray, costs: np.ndarray) -> None:
    """Swap members between the most expensive group and others while that makes both less than it was."""
    work = costs[members]
    sums = work.sum(1)
    for _ in range(_SWAPS * len(members)):
        worst = int(sums.argmax())
        # What would change hands: positive where the worst group gives the more expensive member.
        given = work[worst][:, None, None] - work[None]
        after = np.maximum(sums[worst] - given, sums[None, :, None] + given)
        after[:, worst] = np.inf
        mine, other, theirs = np.unravel_index(int(after.argmin()), after.shape)
        if after[mine, other, theirs] >= sums[worst] * (1 - 1e-9):
            return
        change = given[mine, other, theirs]
        members[worst, mine], members[other, theirs] = members[other, theirs], members[worst, mine]
        work[worst, mine], work[other, theirs] = work[other, theirs], work[worst, mine]
        sums[worst] -= change
        sums[other] += change
