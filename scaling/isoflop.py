"""IsoFLOP parabolas: at each budget, the size at which loss is least (Hoffmann et al. 2022, approach 2).

Shapes: M cells, K budgets, S fits side by side (the first row: the cells as they are). Logs are natural.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scaling.cell import Cell, places
from scaling.interval import Array, Interval, percentiles

SIZES = 4
"""Distinct sizes that a budget needs: three fix a parabola, the fourth tells how well."""
BUDGETS = 3
_GAP, _SPREAD = 1.05, 1.25
"""Cells share a budget where sorted FLOPs have no larger gap, and where the group is no wider."""
_CERTAIN = 3.0
"""Standard errors that a parabola's curvature must lie above zero."""
_MET = 0.02
"""Range of log C inside budgets below which it is not told from noise."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Cells as arrays of logs, and the rule that says how many tokens a size gets for a budget."""

    log_n: Array
    log_d: Array
    log_c: Array
    log_loss: Array
    place_M: NDArray[np.int64]
    """Which rows are seeds of one size and budget."""
    rule: tuple[float, float, float]
    """log D = rule . (1, log N, log C): exactly (-log 6, -1, 1) where C = 6 N D."""

    @property
    def x_TM(self) -> Array:
        return np.stack([self.log_n, self.log_d])

    @property
    def places(self) -> int:
        """Pairs of size and budget, however many seeds each has."""
        return int(self.place_M.max()) + 1

    @property
    def seed_noise(self) -> tuple[float, int]:
        """Standard deviation of log loss among seeds of one size and budget, and its degrees of freedom."""
        count_P = np.bincount(self.place_M)
        mean_P = np.bincount(self.place_M, self.log_loss) / count_P
        degrees = int((count_P - 1).sum())
        squares = float(((self.log_loss - mean_P[self.place_M]) ** 2).sum())
        return (float(np.sqrt(squares / degrees)) if degrees else math.nan), degrees

    def tokens(self, log_n: Array, log_c: Array | float) -> Array:
        return self.rule[0] + self.rule[1] * log_n + self.rule[2] * np.asarray(log_c)

    def with_loss(self, log_loss: Array) -> "Grid":
        return Grid(**(vars(self) | {"log_loss": log_loss}))


def grid_of(cells: Sequence[Cell]) -> Grid:
    """Arrays of sound cells, ordered by FLOPs."""
    cells = sorted(cells, key=lambda cell: (cell.flops, cell.parameters))
    log_n, log_d, log_c, log_loss = (
        np.log([getattr(cell, name) for cell in cells]) for name in ("parameters", "tokens", "flops", "loss")
    )
    place_of = {cell.name: k for k, place in enumerate(places(cells)) for cell in place}
    # What C = 6 N D leaves, since attention costs more than its parameters say; of least norm on a degenerate grid.
    centre = log_n.mean(), log_c.mean()
    design = np.stack([np.ones(len(cells)), log_n - centre[0], log_c - centre[1]], 1)
    k0, k1, k2 = np.linalg.lstsq(design, log_d - (log_c - np.log(6) - log_n), rcond=1e-8)[0]
    rule = (float(k0 - k1 * centre[0] - k2 * centre[1] - np.log(6)), float(k1 - 1), float(k2 + 1))
    place_M = np.array([place_of[cell.name] for cell in cells])
    return Grid(log_n=log_n, log_d=log_d, log_c=log_c, log_loss=log_loss, place_M=place_M, rule=rule)


def budgets_of(log_c: Array) -> list[NDArray[np.int64]]:
    """Rows at each common budget of sorted `log_c`; those that run on without a gap have none, and stay out."""
    cuts = np.flatnonzero(np.diff(log_c) > np.log(_GAP)) + 1
    groups = np.split(np.arange(len(log_c)), cuts)
    return [rows for rows in groups if np.ptp(log_c[rows]) <= np.log(_SPREAD)]


@dataclass(frozen=True, kw_only=True)
class Parabolas:
    """Minima of the budgets that have one, as fitted (row 0) and redrawn."""

    log_c: Array
    log_n_SK: Array
    log_loss_SK: Array
    bend_SK: Array
    """Log loss above the minimum, over the squared distance from it in log N."""
    curves: tuple[Array, ...]
    """Per budget: centre of log N, then constant, slope and curvature of log loss."""
    refused: tuple[str, ...]
    """Budgets that say nothing, and what to add."""
    spread_B: Array
    """Standard deviation of log loss about the parabolas, as each redrawn fit had it."""
    residual: Array
    """Of log loss, M; NaN for cells of refused budgets."""

    def exponent(self) -> Interval:
        """Slope of log N* over log C."""
        slopes = self.log_n_SK @ np.linalg.pinv(np.stack([self.log_c, np.ones_like(self.log_c)], 1)).T[:, 0]
        return percentiles(float(slopes[0]), slopes[1:])


def fit_parabolas(grid: Grid, *, draws: int, seed: int) -> Parabolas:
    """One parabola for each budget and one slope in log C inside budgets, by least squares.

    Redrawn with normal noise whose variance is drawn too (chi-squared), so that few cells give wide intervals.
    ValueError, with what to add, where fewer than three budgets have a minimum.
    """
    used, refused = _usable(grid)
    while True:
        if len(used) < BUDGETS:
            raise ValueError(
                f"{len(used)} budgets show a minimum over sizes and {BUDGETS} are needed"
                + "".join(f"; {reason}" for reason in refused)
                + f": add cells until {BUDGETS} budgets have {SIZES} sizes with the least loss in between"
            )
        cells, design, centres = _design(grid, used)
        solve = np.linalg.pinv(design, rcond=1e-10)
        theta = solve @ grid.log_loss[cells]
        residual = grid.log_loss[cells] - design @ theta
        degrees = len(cells) - int(np.linalg.matrix_rank(design))
        if degrees < 1:
            # The error of an evaluation would not do: it says nothing of what another training run would end at.
            raise ValueError(
                f"{len(cells)} cells on {len(used)} budgets fix as many coefficients, which leaves nothing to tell the "
                f"error by: add a {SIZES}th size to one budget at least"
            )
        scatter = float(np.sqrt((residual**2).sum() / degrees))
        certain = theta[2 : 3 * len(used) : 3] >= _CERTAIN * scatter * np.linalg.norm(
            solve[2 : 3 * len(used) : 3], axis=1
        )
        if certain.all():
            break
        refused += [
            f"{_name(grid, rows)} is flat within its noise: add sizes further out"
            for rows, sure in zip(used, certain)
            if not sure
        ]
        used = [rows for rows, sure in zip(used, certain) if sure]
    rng = np.random.default_rng(seed)
    spread_B = np.full(draws, scatter) * np.sqrt(degrees / rng.chisquare(degrees, draws))
    drawn = theta + (spread_B[:, None] * rng.standard_normal((draws, len(cells)))) @ solve.T
    all_SK3 = np.concatenate([theta[None], drawn])[:, : 3 * len(used)].reshape(-1, len(used), 3)
    constant, slope, curvature = np.moveaxis(np.where(all_SK3[:, :, 2:] > 0, all_SK3, np.nan), 2, 0)
    residual_M = np.full(len(grid.log_c), np.nan)
    residual_M[cells] = residual
    return Parabolas(
        log_c=np.array([grid.log_c[rows].mean() for rows in used]),
        log_n_SK=np.array(centres) - slope / (2 * curvature),
        log_loss_SK=constant - slope**2 / (4 * curvature),
        bend_SK=curvature,
        curves=tuple(np.array([centres[k], *theta[3 * k : 3 * k + 3]]) for k in range(len(used))),
        refused=tuple(refused),
        spread_B=spread_B,
        residual=residual_M,
    )


def _design(grid: Grid, used: Sequence[NDArray[np.int64]]) -> tuple[NDArray[np.int64], Array, list[float]]:
    """Cells, the matrix of their coefficients and where each budget's log N is centred."""
    cells = np.concatenate(used)
    centres = [float(grid.log_n[rows].mean()) for rows in used]
    design, row = np.zeros((len(cells), 3 * len(used) + 1)), 0
    for k, rows in enumerate(used):
        offset = grid.log_n[rows] - centres[k]
        design[row : row + len(rows), 3 * k : 3 * k + 3] = np.stack([np.ones_like(offset), offset, offset**2], 1)
        design[row : row + len(rows), -1] = grid.log_c[rows] - grid.log_c[rows].mean()
        row += len(rows)
    # Budgets that are met closely say nothing of the slope inside them.
    return cells, design if np.ptp(design[:, -1]) > _MET else design[:, :-1], centres


def _name(grid: Grid, rows: NDArray[np.int64]) -> str:
    return f"budget {np.exp(grid.log_c[rows].mean()):.3g}"


def _usable(grid: Grid) -> tuple[list[NDArray[np.int64]], list[str]]:
    """Budgets with a minimum inside their sizes, and sentences on the others."""
    used, refused = [], []
    for rows in budgets_of(grid.log_c):
        name = _name(grid, rows)
        n, y = grid.log_n[rows], grid.log_loss[rows]
        if (sizes := len(np.unique(n.round(3)))) < 3:
            if len(rows) > 1:
                refused.append(f"{name} has {sizes} sizes: add {SIZES - sizes}")
            continue
        curvature, slope, _ = np.polyfit(n - n.mean(), y, 2)
        least = n.mean() - slope / (2 * curvature)
        if curvature > 0 and n.min() <= least <= n.max():
            used.append(rows)
        else:
            larger = slope < 0 if curvature <= 0 else least > n.max()
            refused.append(
                f"{name}: loss falls to its {'largest' if larger else 'smallest'} size "
                f"({np.exp(n.max() if larger else n.min()):.3g}), add {'larger' if larger else 'smaller'} ones"
            )
    return used, refused
