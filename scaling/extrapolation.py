"""How far a law may be trusted: what it says of cells it did not see, and what parabolas make of its own surface."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scaling.cell import Cell, mean_loss, places
from scaling.isoflop import fit_parabolas, grid_of
from scaling.law import CELLS, Law, best_surface, fit_law, fit_parametric, surface_best_log_n, surface_exponent
from scaling.powers import log_loss

_TOP = 1.25
"""Cells within this factor of the largest FLOPs are the highest budget,"""
_LEAST_SHARE = 0.05
"""and at least so many of all."""
_LEAST_JUDGED = 10
"""Cells: two for each constant."""


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """Losses of the highest budget, predicted from the cells below it."""

    names: tuple[str, ...]
    times_largest: float
    """FLOPs of the highest over the largest that was fitted."""
    predicted: float
    """Of the cell with the least loss, the mean of its seeds."""
    observed: float
    relative_error: float
    """Root mean square over the cells left out."""
    no_change_error: float
    """The same of who predicts the least loss seen so far for the best cell."""
    inside: float
    """Share of the cells in their 95 % prediction interval."""


def leave_highest_out(cells: Sequence[Cell], *, draws: int, seed: int = 0) -> LeftOut:
    """Fit without the highest budget and predict it. ValueError says what to add where too little is left."""
    ranked = sorted((cell.flops for cell in cells), reverse=True)
    top = min(ranked[0] / _TOP, ranked[int(_LEAST_SHARE * len(ranked))])
    held = [cell for cell in cells if cell.flops >= top]
    kept = [cell for cell in cells if cell.flops < top]
    # A law in N and D is judged as what it is, though what is left might not carry one by itself.
    carries = len(places(cells)) >= CELLS and len(places(kept)) >= _LEAST_JUDGED
    law = fit_parametric(grid_of(kept), draws=draws, seed=seed) if carries else fit_law(kept, draws=draws, seed=seed)
    best_seeds = min(places(held), key=mean_loss)
    best, observed = best_seeds[0], mean_loss(best_seeds)
    # The law of a few cells is one of the best size only.
    asked = held if law.kind == "parametric" else best_seeds
    told = {
        cell.name: law.run_loss(*(float(np.log(x)) for x in (cell.parameters, cell.tokens, cell.flops)))
        for cell in asked
    }
    errors = np.log([told[cell.name].value / cell.loss for cell in asked])
    return LeftOut(
        names=tuple(cell.name for cell in asked),
        times_largest=best.flops / law.largest,
        predicted=told[best.name].value,
        observed=observed,
        relative_error=float(np.sqrt((errors**2).mean())),
        no_change_error=float(abs(np.log(min(map(mean_loss, places(kept))) / observed))),
        inside=float(np.mean([told[cell.name].low <= cell.loss <= told[cell.name].high for cell in asked])),
    )


@dataclass(frozen=True, kw_only=True)
class ParabolaBias:
    """What IsoFLOP parabolas say of a law without noise on these cells, and what is true."""

    exponent: float
    true_exponent: float
    size_ratio: float
    """Size that parabolas recommend at ten times the largest budget, over the true one."""


def parabola_bias(law: Law) -> ParabolaBias:
    """Parabolas are no powers: on a wide grid, or one off the optimum, their minima drift with the budget.

    A few cells' own surface serves as well, though nothing else is claimed of it. ValueError where there is none, or
    where its minimum does not lie between the sizes of three budgets.
    """
    grid = law.grid
    params = law.params_SK[:1] if law.kind == "parametric" else best_surface(grid)[0]
    exact = fit_parabolas(grid.with_loss(log_loss(params, grid.x_TM)[0]), draws=1, seed=0)
    slope, intercept = np.polyfit(exact.log_c, exact.log_n_SK[0], 1)
    far = float(grid.log_c.max() + np.log(10))
    return ParabolaBias(
        exponent=float(slope),
        true_exponent=float(surface_exponent(params, grid)[0]),
        size_ratio=float(np.exp(intercept + slope * far - surface_best_log_n(params, grid, far)[0])),
    )
