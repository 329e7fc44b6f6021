"""The minimum over training curves: what no cheaper point reaches (Hoffmann et al. 2022, approach 1)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from scaling.cell import Cell, mean_loss, places
from scaling.interval import Array, Interval, bias_corrected
from scaling.isoflop import budgets_of

POINTS = 4
"""What a slope with an interval needs on the envelope."""


@dataclass(frozen=True, kw_only=True)
class Envelope:
    """Slopes of log N and log D over log C along the envelope."""

    names: tuple[str, ...]
    parameters_exponent: Interval
    tokens_exponent: Interval


def fit_envelope(cells: Sequence[Cell], *, draws: int, seed: int) -> Envelope:
    """Lines through the envelope, whose cells are redrawn; ValueError where it has fewer than four points.

    Of points that share a budget only the one of least loss counts, in each redraw; seeds of one size and budget are
    one point with their mean loss, since the least of them would be low by chance.
    """
    cells = [replace(place[0], loss=mean_loss(place)) for place in places(cells)]
    points = [(c, cell.parameters, d, loss, i) for i, cell in enumerate(cells) for d, c, loss in _ends(cell)]
    points.sort()
    logs_4M = np.log(np.array([point[:4] for point in points])).T
    owner = np.array([point[4] for point in points])
    times = np.random.default_rng(seed).multinomial(len(cells), np.full(len(cells), 1 / len(cells)), draws)
    weights_SM = np.concatenate([np.ones((1, len(cells))), times])[:, owner]
    log_loss = np.where(weights_SM > 0, logs_4M[3], np.inf)
    least_SG = _least_of_budgets(logs_4M[0], log_loss)
    loss_SG = np.take_along_axis(log_loss, least_SG, 1)
    cheaper = np.minimum.accumulate(loss_SG, axis=1)
    ahead = np.concatenate([np.full((len(log_loss), 1), np.inf), cheaper[:, :-1]], axis=1)
    front_SG = np.take_along_axis(weights_SM, least_SG, 1) * (loss_SG < ahead)
    on_front = least_SG[0, front_SG[0] > 0]
    if len(on_front) < POINTS:
        raise ValueError(f"{len(on_front)} points lie on the envelope and {POINTS} are needed: add budgets")
    slopes = [_slopes(logs_4M[0][least_SG], logs_4M[row][least_SG], front_SG) for row in (1, 2)]
    intervals = [bias_corrected(float(slope[0]), slope[1:]) for slope in slopes]
    return Envelope(
        names=tuple(cells[owner[i]].name for i in on_front),
        parameters_exponent=intervals[0],
        tokens_exponent=intervals[1],
    )


def _ends(cell: Cell) -> list[tuple[float, float, float]]:
    return [*cell.curve, (cell.tokens, cell.flops, cell.loss)]


def _least_of_budgets(log_c: Array, log_loss_SM: Array) -> NDArray[np.int64]:
    """Index of the point of least loss in each budget SG, the cheapest budget first; a point without one is its own."""
    of_budget = np.arange(len(log_c))
    for rows in budgets_of(log_c):
        of_budget[rows] = rows[0]
    groups = [np.flatnonzero(of_budget == first) for first in np.unique(of_budget)]
    return np.stack([rows[log_loss_SM[:, rows].argmin(1)] for rows in groups], 1)


def _slopes(x_SG: Array, y_SG: Array, weights_SG: Array) -> Array:
    """Weighted least-squares slope of each row S; NaN for a row with one point."""
    total = weights_SG.sum(1, keepdims=True)
    dx = x_SG - (weights_SG * x_SG).sum(1, keepdims=True) / total
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((weights_SG * dx * y_SG).sum(1) / (weights_SG * dx * dx).sum(1))
