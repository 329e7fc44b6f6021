"""Loss as a constant plus falling powers, fitted robustly from many starts at once.

log L = log(exp(e) + sum_j exp(c_j - p_j x_j)), x_j = log N, log D (Hoffmann et al. 2022, eq. 10) or log C.

Shapes: S fits side by side, M cells, T terms, K = 2T + 1 parameters (c_1..c_T, e, p_1..p_T).
"""

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

HUBER_DELTA = 1e-3
"""Of the residual in log loss (Hoffmann et al. 2022, section 3.3)."""
_CHUNK_VALUES = 50_000
"""Residuals in work at once: more no longer fit a processor's caches, and take twice the time."""
_BACKTRACKS = 12
_HOLDS, _LEAST_GAIN = 3, 1e-12
"""A fit is done after so many steps that each gained no larger share."""


def standard_starts(terms: int) -> Array:
    """Grid SK of starts: for two terms the 4,500 of Hoffmann et al. 2022."""
    coefficients, exponents = np.arange(0, 26, 5.0), np.arange(0, 2.1, 0.5)
    return np.array(list(product(*[coefficients] * terms, np.arange(-1, 1.1, 0.5), *[exponents] * terms)))


def log_loss(params_SK: Array, x_TM: Array) -> Array:
    """Predicted log loss SM; `x_TM` may also be TSM."""
    terms = len(x_TM)
    parts = [params_SK[:, j, None] - params_SK[:, terms + 1 + j, None] * x_TM[j] for j in range(terms)]
    total = np.broadcast_to(params_SK[:, terms, None], parts[0].shape)
    with np.errstate(invalid="ignore"):  # a fit that was lost is NaN, and so is what it says
        for part in parts:
            total = np.logaddexp(total, part)
    return total


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What S fits minimise: the sum (not the mean) of weighted Huber terms over their cells."""

    x_TM: Array
    y_SM: Array
    """Log losses; one row serves all fits."""
    weights_SM: Array | None = None
    delta: float = HUBER_DELTA

    def of(self, rows: Any) -> "Problem":
        """The same for some of the fits."""
        y_SM = self.y_SM if len(self.y_SM) == 1 else self.y_SM[rows]
        weights = None if self.weights_SM is None else self.weights_SM[rows]
        return Problem(x_TM=self.x_TM, y_SM=y_SM, weights_SM=weights, delta=self.delta)

    def value_and_gradient(self, params_SK: Array) -> tuple[Array, Array]:
        """Objective S and its gradient SK. Works in place: this is where all the time goes."""
        x, terms = self.x_TM, len(self.x_TM)
        parts = [params_SK[:, j, None] - params_SK[:, terms + 1 + j, None] * x[j] for j in range(terms)]
        top = np.maximum(parts[0], params_SK[:, terms, None])
        for part in parts[1:]:
            np.maximum(top, part, out=top)
        constant = np.exp(params_SK[:, terms, None] - top)
        total = constant.copy()
        for part in parts:
            part -= top
            total += np.exp(part, out=part)
        residual = np.log(total)
        residual += top
        residual -= self.y_SM
        size = np.abs(residual)
        capped = np.minimum(size, self.delta)
        huber = capped * (size - 0.5 * capped)
        slope = np.clip(residual, -self.delta, self.delta)
        if self.weights_SM is not None:
            huber *= self.weights_SM
            slope *= self.weights_SM
        slope /= total
        gradient = np.empty_like(params_SK)
        gradient[:, terms] = (constant * slope).sum(1)
        for j, part in enumerate(parts):
            part *= slope
            gradient[:, j] = part.sum(1)
            gradient[:, terms + 1 + j] = -(part @ x[j])
        return huber.sum(1), gradient


def minimise(starts_SK: Array, problem: Problem, *, steps: int = 200) -> tuple[Array, Array]:
    """Parameters SK and objective S that each start leads to, `steps` BFGS steps at most.

    With K <= 5 parameters the limited memory of L-BFGS would save nothing, so the whole inverse Hessian is kept.
    """
    rows = max(1, _CHUNK_VALUES // problem.x_TM.shape[1])
    found = [
        _Descent(starts_SK[part].copy(), problem.of(part)).run(steps)
        for part in (slice(begin, begin + rows) for begin in range(0, len(starts_SK), rows))
    ]
    return np.concatenate([params for params, _ in found]), np.concatenate([value for _, value in found])


class _Descent:
    """BFGS with backtracking on many fits side by side; those that are done drop out."""

    def __init__(self, params_SK: Array, problem: Problem) -> None:
        self.params, self.problem = params_SK, problem
        self.value, self.gradient = problem.value_and_gradient(params_SK)
        self.inverse = _steepest(self.gradient, 1.0)
        self.fresh = np.ones(len(params_SK), bool)  # no curvature seen yet
        self.held = np.zeros(len(params_SK), int)

    def run(self, steps: int) -> tuple[Array, Array]:
        live = np.arange(len(self.params))
        for _ in range(steps):
            if not live.size:
                break
            self._step(live)
            live = live[self.held[live] < _HOLDS]
        return self.params, self.value

    def _step(self, live: NDArray[np.int64]) -> None:
        before, value, gradient = self.params[live], self.value[live], self.gradient[live]
        direction = -np.einsum("sij,sj->si", self.inverse[live], gradient)
        slope = (direction * gradient).sum(1)
        if (uphill := slope >= 0).any():
            self.inverse[live[uphill]] = _steepest(gradient[uphill], 1.0)
            direction[uphill] = -np.einsum("sij,sj->si", self.inverse[live[uphill]], gradient[uphill])
            slope = (direction * gradient).sum(1)
        moved = self._search(live, direction, slope)
        self._learn(live, self.params[live] - before, self.gradient[live] - gradient)
        idle = value - self.value[live] <= _LEAST_GAIN * np.abs(value)
        self.held[live] = np.where(idle, self.held[live] + 1, 0)
        stuck = live[~moved]
        self.inverse[stuck] = _steepest(self.gradient[stuck], 1e-2)
        self.fresh[stuck] = True

    def _search(self, live: NDArray[np.int64], direction: Array, slope: Array) -> NDArray[np.bool_]:
        """Backtrack by quadratic interpolation until Armijo's condition holds; which fits moved."""
        start, length, moved = self.params[live], np.ones(len(live)), np.zeros(len(live), bool)
        todo = np.arange(len(live))
        for _ in range(_BACKTRACKS):
            rows = live[todo]
            tried = start[todo] + length[todo, None] * direction[todo]
            value, gradient = self.problem.of(rows).value_and_gradient(tried)
            bound = self.value[rows] + 1e-4 * length[todo] * slope[todo]
            good = value <= bound
            self.params[rows[good]], self.gradient[rows[good]] = tried[good], gradient[good]
            self.value[rows[good]] = value[good]
            moved[todo[good]] = True
            todo, rise = todo[~good], (value - self.value[rows])[~good]
            if not todo.size:
                break
            old = length[todo]
            best = -slope[todo] * old**2 / (2 * (rise - slope[todo] * old))
            length[todo] = np.clip(best, 0.1 * old, 0.5 * old)
        return moved

    def _learn(self, live: NDArray[np.int64], moved_SK: Array, turned_SK: Array) -> None:
        """The BFGS update, where it keeps the inverse Hessian positive definite."""
        along = (moved_SK * turned_SK).sum(1)
        sizes = np.linalg.norm(moved_SK, axis=1) * np.linalg.norm(turned_SK, axis=1)
        use = (along > 1e-14 * sizes) & (sizes > 0)
        rows, moved, turned, along = live[use], moved_SK[use], turned_SK[use], along[use]
        first = self.fresh[rows]
        scale = along[first] / (turned[first] ** 2).sum(1)
        self.inverse[rows[first]] = scale[:, None, None] * np.eye(self.params.shape[1])
        self.fresh[rows[first]] = False
        turned_by = np.einsum("sij,sj->si", self.inverse[rows], turned)
        weight = (1 + (turned * turned_by).sum(1) / along) / along
        cross = turned_by[:, :, None] * moved[:, None, :]
        self.inverse[rows] += weight[:, None, None] * moved[:, :, None] * moved[:, None, :]
        self.inverse[rows] -= (cross + cross.transpose(0, 2, 1)) / along[:, None, None]


def _steepest(gradient_SK: Array, length: float) -> Array:
    """Inverse Hessians SKK whose first step goes straight downhill for `length`."""
    size = np.maximum(np.linalg.norm(gradient_SK, axis=1), 1e-300)
    return length * np.eye(gradient_SK.shape[1]) / size[:, None, None]
