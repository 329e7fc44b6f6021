"""The minimum over training curves: what no cheaper point reaches (Hoffmann et al. 2022, approach 1)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scaling.cell import Cell
from scaling.interval import Array, Interval, bias_corrected

POINTS = 4
"""What a slope with an interval needs on the envelope."""


@dataclass(frozen=True, kw_only=True)
class Envelope:
    """Slopes of log N and log D over log C along the envelope."""

    names: tuple[str, ...]
    parameters_exponent: Interval
    tokens_exponent: Interval


def fit_envelope(cells: Sequence[Cell], *, draws: int, seed: int) -> Envelope:
    """Lines through the envelope, whose cells are redrawn; ValueError where it has fewer than four points."""
    points = [(c, cell.parameters, d, loss, i) for i, cell in enumerate(cells) for d, c, loss in _ends(cell)]
    points.sort()
    logs_4M = np.log(np.array([point[:4] for point in points])).T
    owner = np.array([point[4] for point in points])
    times = np.random.default_rng(seed).multinomial(len(cells), np.full(len(cells), 1 / len(cells)), draws)
    weights_SM = np.concatenate([np.ones((1, len(cells))), times])[:, owner]
    log_loss = np.where(weights_SM > 0, logs_4M[3], np.inf)
    cheaper = np.minimum.accumulate(log_loss, axis=1)
    ahead = np.concatenate([np.full((len(log_loss), 1), np.inf), cheaper[:, :-1]], axis=1)
    front_SM = weights_SM * (log_loss < ahead)
    on_front = np.flatnonzero(front_SM[0])
    if len(on_front) < POINTS:
        raise ValueError(f"{len(on_front)} points lie on the envelope and {POINTS} are needed: add budgets")
    slopes = [_slopes(logs_4M[0], logs_4M[row], front_SM) for row in (1, 2)]
    intervals = [bias_corrected(float(slope[0]), slope[1:]) for slope in slopes]
    return Envelope(
        names=tuple(cells[owner[i]].name for i in on_front),
        parameters_exponent=intervals[0],
        tokens_exponent=intervals[1],
    )


def _ends(cell: Cell) -> list[tuple[float, float, float]]:
    return [*cell.curve, (cell.tokens, cell.flops, cell.loss)]


def _slopes(x: Array, y: Array, weights_SM: Array) -> Array:
    """Weighted least-squares slope of each row; NaN for a row with one point."""
    total = weights_SM.sum(1, keepdims=True)
    dx = x - (weights_SM * x).sum(1, keepdims=True) / total
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((weights_SM * dx * y).sum(1) / (weights_SM * dx * dx).sum(1))
