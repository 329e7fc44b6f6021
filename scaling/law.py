"""The law of a sweep: what a budget buys, with intervals.

From 20 cells on, L(N, D) = E + A / N^alpha + B / D^beta (Hoffmann et al. 2022, approach 3). From fewer, only
L(C) = E + K / C^gamma through the minima of IsoFLOP parabolas and a straight line for log N.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from scaling.cell import Cell, places
from scaling.interval import Array, Interval, bias_corrected, percentiles, pooled_percentiles
from scaling.isoflop import Grid, fit_parabolas, grid_of
from scaling.powers import Problem, log_loss, minimise, standard_starts

CELLS = 20
"""Fewer do not carry five parameters."""
_LEAST_SPREAD = 0.1
"""Standard deviation of log N at fixed D, and the reverse, below which the two cannot be told apart."""
_MOST_LOST = 0.04
"""Share of redrawn fits lost above which there is no honest interval: from 5 % on they could be all of its tails."""
_NOISE_TAKES, _SHARE_OF_NOISE = 10, (0.2, 0.5)
"""Cells of noise that five constants, searched for from thousands of starts, describe; their share, between these."""
_NOTHING = 1e3
"""The log of a term that is none, with its sign changed."""
_NO_SHARE = 1e-3
"""An irreducible loss below this share of the least loss is at its boundary, which is 0."""
_TAIL = 0.025
_FIRST_STEPS, _PURSUED = 40, 500
"""All 4,500 starts descend for so many steps, and so many of the best go on to the end."""
_NOISES = 16


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What `budget` FLOPs buy: the size to train, its tokens and the loss of one run, with 95 % intervals.

    The loss's interval holds what is unknown about the law, and the scatter of single runs about it: what another
    training seed would change is in it as far as cells scatter by it, and exactly where cells were run with several.
    """

    budget: float
    parameters: Interval
    tokens: Interval
    loss: Interval
    times_largest: float
    """How far it extrapolates: the budget over the largest of the cells."""


@dataclass(frozen=True, kw_only=True)
class Law:
    """A fitted law. `params_SK`: the fit in row 0, redrawn fits below; a row of NaN is one that was lost.

    `parametric`: K is (log A, log B, log E, alpha, beta); `compute`: (log K, log E, gamma, intercept and slope of
    log N over log C, bend of the parabolas).
    """

    kind: Literal["parametric", "compute"]
    grid: Grid
    params_SK: Array
    residual: Array
    """Of the cells' log loss, in the grid's order; NaN where a cell was of no use."""
    noise_BR: Array
    """What single runs deviate in log loss, R drawn for each redrawn fit."""
    objective: float
    passes: bool = False
    """Through its points by construction: there are as many constants as points."""

    @property
    def largest(self) -> float:
        return float(np.exp(self.grid.log_c.max()))

    def interval(self, values_S: Array) -> Interval:
        return (bias_corrected if self.kind == "parametric" else percentiles)(float(values_S[0]), values_S[1:])

    @property
    def lost(self) -> int:
        """Redrawn fits that are no law: without a minimum, or with a loss that does not fall."""
        return int(np.isnan(self.params_SK[1:, 0]).sum())

    @property
    def scatter(self) -> float:
        """Standard deviation of a single run's log loss about the law, by the median of what is drawn for it."""
        return float(np.median(np.abs(self.noise_BR)) / NormalDist().inv_cdf(0.75))

    def notes(self) -> list[str]:
        """What the numbers do not say of themselves."""
        out = []
        log_e_S = self.params_SK[:, 1 if self.kind == "compute" else 2]
        gone_S = log_e_S < self.grid.log_loss.min() + np.log(_NO_SHARE)
        if gone_S[0] or np.mean(gone_S) >= _TAIL:
            where = "the fit puts it at 0" if gone_S[0] else f"{np.mean(gone_S):.0%} of the redrawn fits put it at 0"
            out.append(f"the irreducible loss is not determined ({where}): add budgets further apart")
        if self.passes:
            out.append(
                "three minima fix the three constants of L(C), so the curve passes through them by construction and "
                "nothing tests its form: a fourth budget would"
            )
        return out

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
            off_S = log_n - self.best_log_n(log_c)
            return log_loss(self.params_SK[:, :3], np.array([[log_c]]))[:, 0] + self.params_SK[:, 5] * off_S**2
        return log_loss(self.params_SK, np.array([[log_n], [log_d]]))[:, 0]

    def run_loss(self, log_n: float, log_d: float, log_c: float) -> Interval:
        """Loss of one run of that size, tokens and FLOPs, with its prediction interval."""
        loss_S = self.log_loss_S(log_n, log_d, log_c)
        return pooled_percentiles(float(loss_S[0]), loss_S[1:, None] + self.noise_BR).exp()

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
                for name, column in zip(names, columns[:5], strict=True)
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
    count = len(places(cells))
    if grid is None or count < 4:
        raise ValueError(
            f"{count} sound cells carry no law: add cells until at least 3 budgets have 4 sizes each, "
            f"{CELLS} or more for a law in N and D"
        )
    # Several seeds of a size and a budget say no more of N and D.
    if count < CELLS:
        return _fit_compute(grid, draws=draws, seed=seed)
    return fit_parametric(grid, draws=draws, seed=seed)


def fit_parametric(grid: Grid, *, draws: int, seed: int = 0) -> Law:
    """Approach 3: the best of 4,500 starts, then cells redrawn with replacement."""
    best, objective = best_surface(grid)
    rng = np.random.default_rng(seed)
    redrawn = redraw(best, grid, grid.log_loss[None], draws=draws, rng=rng)
    return parametric_law(grid, np.concatenate([best, redrawn]), objective, rng)


def redraw(best_SK: Array, grid: Grid, y_SM: Array, *, draws: int, rng: np.random.Generator) -> Array:
    """Fits of cells drawn with replacement, each with all its seeds: `draws` for each of S data sets (S * draws, K)."""
    count = grid.places
    times = rng.multinomial(count, np.full(count, 1 / count), len(best_SK) * draws).astype(float)
    y = y_SM if len(y_SM) == 1 else np.repeat(y_SM, draws, 0)
    problem = Problem(x_TM=grid.x_TM, y_SM=y, weights_SM=times[:, grid.place_M])
    return minimise(np.repeat(best_SK, draws, 0), problem)[0]


def parametric_law(grid: Grid, params_SK: Array, objective: float, rng: np.random.Generator) -> Law:
    """From the fit and its redrawn fits; ValueError where too many of them have no minimum."""
    falls = np.all(params_SK[:, 3:] > 0, axis=1)
    assert falls[0], "`best_surface` refuses a fit without a minimum"
    _require_kept(falls[1:])
    count = len(grid.log_c)
    residual = grid.log_loss - log_loss(params_SK[:1], grid.x_TM)[0]
    scatter = residual * np.sqrt(count / (count - params_SK.shape[1]))
    return Law(
        kind="parametric",
        grid=grid,
        params_SK=np.where(falls[:, None], params_SK, np.nan),
        residual=residual,
        noise_BR=rng.choice(np.concatenate([scatter, -scatter]), (len(params_SK) - 1, _NOISES)),
        objective=objective,
    )


def best_surface(grid: Grid) -> tuple[Array, float]:
    """Parameters (1, 5) of least objective, and that; ValueError where the cells cannot tell size from tokens."""
    _require_spread(grid)
    problem = Problem(x_TM=grid.x_TM, y_SM=grid.log_loss[None])
    params, value = minimise(standard_starts(2), problem, steps=_FIRST_STEPS)
    params, value = minimise(params[value.argsort()[:_PURSUED]], problem)
    best, least = params[value.argmin()][None], float(value.min())
    same = np.array([[-_NOTHING, -_NOTHING, np.median(grid.log_loss), 0.0, 0.0]])
    noise_takes = np.clip(_NOISE_TAKES / len(grid.log_loss), *_SHARE_OF_NOISE)
    if not least < (1 - noise_takes) * (one_loss := float(problem.value_and_gradient(same)[0][0])):
        raise ValueError(
            "a law in N and D fits these cells hardly better than one loss for all of them (sum of Huber terms "
            f"{least:.3g}, not {one_loss:.3g}): check the columns, add cells over a wider range, or cut the noise of "
            "the held-out loss"
        )
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
    found = np.all(np.isfinite(parabolas.log_n_SK), axis=1)
    x = parabolas.log_c - parabolas.log_c.mean()
    fits, off_SK, objective = _fit_minima(x, parabolas.log_loss_SK[found])
    if fits[0, 2] <= 0:
        raise ValueError(
            f"loss does not fall with compute in these cells (gamma {fits[0, 2]:.3g}): check the columns of loss and "
            "FLOPs, train the larger budgets to the end of their schedule, or add budgets further apart"
        )
    params = np.full((len(found), 3), np.nan)
    params[found] = np.where(fits[:, 2:] > 0, fits, np.nan)
    _require_kept(np.isfinite(params[1:, 0]))
    params[:, 0] += params[:, 2] * parabolas.log_c.mean()
    # Where more minima than constants leave the curve untouched, runs deviate by that too.
    left = off_SK.shape[1] - params.shape[1]
    misfit_B = np.zeros(len(found))
    misfit_B[found] = np.sqrt((off_SK**2).sum(1) / left) if left else 0.0
    spread_B = np.hypot(parabolas.spread_B, misfit_B[1:])
    # Another stream than that of the minima, with which the noise of a run has nothing to do.
    noise = np.random.default_rng((seed, 1)).standard_normal((draws, _NOISES))
    line = np.stack([np.ones_like(parabolas.log_c), parabolas.log_c], 1)
    size = parabolas.log_n_SK @ np.linalg.pinv(line).T
    return Law(
        kind="compute",
        grid=grid,
        params_SK=np.where(
            np.isfinite(params[:, :1]),
            np.concatenate([params, size, parabolas.bend_SK.mean(1, keepdims=True)], 1),
            np.nan,
        ),
        residual=parabolas.residual,
        noise_BR=spread_B[:, None] * noise,
        objective=objective,
        passes=left == 0,
    )


def _fit_minima(x_K: Array, y_SK: Array) -> tuple[Array, Array, float]:
    """E + K / C^gamma by least squares through minima S: (log K, log E, gamma) S3, what is left SK, the objective.

    A handful of minima leaves nothing to be robust against. Losses are taken relative to their mean, whatever they are.
    """
    level, x = y_SK[0].mean(), x_K[None]
    starts = standard_starts(1)
    starts = starts[starts[:, 0] < 5]
    params, value = minimise(starts, Problem(x_TM=x, y_SM=y_SK[:1] - level, delta=1.0))
    best = params[value.argmin()]
    # A second start each, since from E = 0 there is no way back.
    again = best.copy()
    again[1] = -1.0
    problem = Problem(x_TM=x, y_SM=np.repeat(y_SK - level, 2, 0), delta=1.0)
    both, values = minimise(np.tile(np.stack([best, again]), (len(y_SK), 1)), problem)
    chosen = values.reshape(-1, 2).argmin(1) + 2 * np.arange(len(y_SK))
    fits = both[chosen]
    off_SK = y_SK - level - log_loss(fits, x)
    return fits + np.array([level, level, 0.0]), off_SK, float(values[chosen[0]])


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
            f"{lost:.0%} of the redrawn fits have no minimum or no falling loss, so an interval would be made up: "
            "add cells (more sizes on each budget, more budgets), or cut the noise of the held-out loss"
        )
