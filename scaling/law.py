"""The law of a sweep: what a budget buys, with intervals.

From 20 cells on, L(N, D) = E + A / N^alpha + B / D^beta (Hoffmann et al. 2022, approach 3). From fewer, only
L(C) = E + K / C^gamma through the minima of IsoFLOP parabolas and a straight line for log N.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from scaling.cell import Cell
from scaling.interval import Array, Interval, bias_corrected, percentiles
from scaling.isoflop import Grid, fit_parabolas, grid_of
from scaling.powers import Problem, log_loss, minimise, standard_starts

CELLS = 20
"""Fewer do not carry five parameters."""
_LEAST_SPREAD = 0.1
"""Standard deviation of log N at fixed D, and the reverse, below which the two cannot be told apart."""
_MOST_LOST = 0.1
"""Share of redrawn fits without a minimum above which there is no honest interval."""
_FIRST_STEPS, _PURSUED = 40, 500
"""All 4,500 starts descend for so many steps, and so many of the best go on to the end."""
_NOISES = 16


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What `budget` FLOPs buy: the size to train, its tokens and the loss of one run, with 95 % intervals.

    The loss's interval holds what is unknown about the law, the scatter of the cells about it and the seed.
    """

    budget: float
    parameters: Interval
    tokens: Interval
    loss: Interval
    times_largest: float
    """How far it extrapolates: the budget over the largest of the cells."""


@dataclass(frozen=True, kw_only=True)
class Law:
    """A fitted law. `params_SK`: the fit in row 0, redrawn fits below.

    `parametric`: K is (log A, log B, log E, alpha, beta); `compute`: (log K, log E, gamma, intercept and slope of
    log N over log C).
    """

    kind: Literal["parametric", "compute"]
    grid: Grid
    params_SK: Array
    residual: Array
    """Of the cells' log loss, in the grid's order; NaN where a cell was of no use."""
    noise_BR: Array
    """What single runs deviate in log loss, R drawn for each redrawn fit."""
    objective: float

    @property
    def largest(self) -> float:
        return float(np.exp(self.grid.log_c.max()))

    def interval(self, values_S: Array) -> Interval:
        return (bias_corrected if self.kind == "parametric" else percentiles)(float(values_S[0]), values_S[1:])

    def exponent_S(self) -> Array:
        """Of C in the best N, S."""
        if self.kind == "compute":
            return self.params_SK[:, 4]
        return surface_exponent(self.params_SK, self.grid)

    def best_log_n(self, log_c: float) -> Array:
        """Size S of least loss at a budget, where D follows the grid's rule from N and C."""
        if self.kind == "compute":
            return self.params_SK[:, 3] + self.params_SK[:, 4] * log_c
        return surface_best_log_n(self.params_SK, self.grid, log_c)

    def log_loss_S(self, log_n: float, log_d: float, log_c: float) -> Array:
        if self.kind == "compute":
            return log_loss(self.params_SK[:, :3], np.array([[log_c]]))[:, 0]
        return log_loss(self.params_SK, np.array([[log_n], [log_d]]))[:, 0]

    def run_loss(self, log_n: float, log_d: float, log_c: float) -> Interval:
        """Loss of one run of that size, tokens and FLOPs, with its prediction interval."""
        loss_S = self.log_loss_S(log_n, log_d, log_c)
        return percentiles(float(loss_S[0]), (loss_S[1:, None] + self.noise_BR).ravel()).exp()

    def predict(self, budget: float) -> Prediction:
        """For `budget` training FLOPs; ValueError where that is no positive number."""
        if not (np.isfinite(budget) and budget > 0):
            raise ValueError(f"budget {budget:g} must be a positive number of FLOPs")
        log_c = float(np.log(budget))
        log_n_S = self.best_log_n(log_c)
        log_d_S = self.grid.tokens(log_n_S, log_c)
        return Prediction(
            budget=budget,
            parameters=self.interval(log_n_S).exp(),
            tokens=self.interval(log_d_S).exp(),
            loss=self.run_loss(log_n_S[0], log_d_S[0], log_c),
            times_largest=budget / self.largest,
        )

    def table(self) -> dict[str, Interval]:
        """Every constant of the law."""
        columns = self.params_SK.T
        if self.kind == "compute":
            names = ("K", "E", "gamma", "N intercept", "N exponent")
            return {
                name: self.interval(column).exp() if name in "KE" else self.interval(column)
                for name, column in zip(names, columns, strict=True)
            }
        named = dict(zip(("A", "B", "E", "alpha", "beta"), columns, strict=True))
        table = {name: self.interval(named[name]) for name in named}
        table |= {name: table[name].exp() for name in "ABE"}
        return table | {"N exponent": self.interval(self.exponent_S())}


def surface_exponent(params_SK: Array, grid: Grid) -> Array:
    """Of C in the best N, S; beta / (alpha + beta) where C = 6 N D."""
    alpha, beta = params_SK[:, 3], params_SK[:, 4]
    return beta * grid.rule[2] / (alpha - beta * grid.rule[1])


def surface_best_log_n(params_SK: Array, grid: Grid, log_c: float) -> Array:
    """Where L(N, D) is least along the grid's rule log D = d0 + d1 log N + d2 log C, S (Hoffmann et al., eq. 4)."""
    d0, d1, d2 = grid.rule
    a, b, _, alpha, beta = params_SK.T
    return np.asarray((np.log(alpha / (-d1 * beta)) + a - b + beta * (d0 + d2 * log_c)) / (alpha - d1 * beta))


def fit_law(cells: Sequence[Cell], *, draws: int = 1000, seed: int = 0) -> Law:
    """The law that so many sound cells carry. ValueError says what to add where they carry none."""
    grid = grid_of(cells) if cells else None
    if grid is None or len(cells) < 4:
        raise ValueError(
            f"{len(cells)} sound cells carry no law: add cells until at least 3 budgets have 4 sizes each, "
            f"{CELLS} or more for a law in N and D"
        )
    if len(cells) < CELLS:
        return _fit_compute(grid, draws=draws, seed=seed)
    return fit_parametric(grid, draws=draws, seed=seed)


def fit_parametric(grid: Grid, *, draws: int, seed: int = 0) -> Law:
    """Approach 3: the best of 4,500 starts, then cells redrawn with replacement."""
    best, objective = best_surface(grid)
    rng = np.random.default_rng(seed)
    redrawn = redraw(best, grid.x_TM, grid.log_loss[None], draws=draws, rng=rng)
    return parametric_law(grid, np.concatenate([best, redrawn]), objective, rng)


def redraw(best_SK: Array, x_TM: Array, y_SM: Array, *, draws: int, rng: np.random.Generator) -> Array:
    """Fits of cells drawn with replacement, `draws` for each of S data sets (S * draws, K)."""
    count = x_TM.shape[1]
    times = rng.multinomial(count, np.full(count, 1 / count), len(best_SK) * draws).astype(float)
    y = y_SM if len(y_SM) == 1 else np.repeat(y_SM, draws, 0)
    return minimise(np.repeat(best_SK, draws, 0), Problem(x_TM=x_TM, y_SM=y, weights_SM=times))[0]


def parametric_law(grid: Grid, params_SK: Array, objective: float, rng: np.random.Generator) -> Law:
    """From the fit and its redrawn fits; ValueError where too many of them have no minimum."""
    falls = np.all(params_SK[:, 3:] > 0, axis=1)
    _require_kept(falls)
    count = len(grid.log_c)
    residual = grid.log_loss - log_loss(params_SK[:1], grid.x_TM)[0]
    scatter = residual * np.sqrt(count / (count - params_SK.shape[1]))
    return Law(
        kind="parametric",
        grid=grid,
        params_SK=params_SK[falls],
        residual=residual,
        noise_BR=rng.choice(np.concatenate([scatter, -scatter]), (int(falls.sum()) - 1, _NOISES)),
        objective=objective,
    )


def best_surface(grid: Grid) -> tuple[Array, float]:
    """Parameters (1, 5) of least objective, and that; ValueError where the cells cannot tell size from tokens."""
    _require_spread(grid)
    problem = Problem(x_TM=grid.x_TM, y_SM=grid.log_loss[None])
    params, value = minimise(standard_starts(2), problem, steps=_FIRST_STEPS)
    params, value = minimise(params[value.argsort()[:_PURSUED]], problem)
    best, least = params[value.argmin()][None], float(value.min())
    alpha, beta = best[0, 3:]
    if min(alpha, beta) <= 0:
        raise ValueError(
            f"loss does not fall with {'size' if alpha <= beta else 'tokens'} in these cells (alpha {alpha:.3g}, beta "
            f"{beta:.3g}): check the columns, or add cells over a wider range"
        )
    return best, least


def _fit_compute(grid: Grid, *, draws: int, seed: int) -> Law:
    """L(C) through the parabolas' minima, and log N = intercept + slope log C."""
    parabolas = fit_parabolas(grid, draws=draws, seed=seed)
    kept = np.all(np.isfinite(parabolas.log_n_SK), axis=1)
    _require_kept(kept)
    log_n_SK, y_SK = parabolas.log_n_SK[kept], parabolas.log_loss_SK[kept]
    spread = parabolas.spread_B[kept[1:]]
    centre = parabolas.log_c.mean()
    x = (parabolas.log_c - centre)[None]
    starts = standard_starts(1)
    starts = starts[np.abs(starts[:, 0] - y_SK[0].mean()) < 5]
    # Least squares: a handful of minima leaves nothing to be robust against.
    params, value = minimise(starts, Problem(x_TM=x, y_SM=y_SK[:1], delta=1.0))
    best = params[value.argmin()][None]
    fits, values = minimise(np.repeat(best, len(y_SK), 0), Problem(x_TM=x, y_SM=y_SK, delta=1.0))
    line = np.stack([np.ones_like(parabolas.log_c), parabolas.log_c], 1)
    fits[:, 0] += fits[:, 2] * centre
    return Law(
        kind="compute",
        grid=grid,
        params_SK=np.concatenate([fits, log_n_SK @ np.linalg.pinv(line).T], 1),
        residual=parabolas.residual,
        noise_BR=spread[:, None] * np.random.default_rng(seed).standard_normal((len(spread), _NOISES)),
        objective=float(values[0]),
    )


def _require_spread(grid: Grid) -> None:
    """ValueError where size and tokens cannot be told apart."""
    for this, other, name in ((grid.log_n, grid.log_d, "size"), (grid.log_d, grid.log_n, "tokens")):
        line = np.stack([np.ones_like(other), other], 1)
        spread = float(np.std(this - line @ (np.linalg.pinv(line) @ this)))
        if spread < _LEAST_SPREAD:
            raise ValueError(
                f"{name} hardly varies on its own in these {len(this)} cells (by {spread:.1%} where the other stands "
                "still), so no law in N and D can be told: add cells of other sizes at the same budgets"
            )


def _require_kept(kept: NDArray[np.bool_]) -> None:
    if (lost := 1 - float(np.mean(kept))) > _MOST_LOST:
        raise ValueError(
            f"{lost:.0%} of the redrawn fits have no minimum, so an interval would be made up: add cells (more sizes "
            "on each budget, more budgets), or cut the noise of the held-out loss"
        )
