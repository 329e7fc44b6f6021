"""Do 95 % intervals hold the truth in 95 of 100 cases? Measured on data sets drawn from a known law.

python -m scaling.coverage --sets 2000              6 budgets of 8 sizes: the law in N and D
python -m scaling.coverage --sets 2000 --few        3 budgets of 4 sizes: the law in C
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Sequence

import numpy as np

from data.command import command
from scaling.cell import Cell
from scaling.interval import Array
from scaling.isoflop import Grid, grid_of
from scaling.law import Law, fit_law, parametric_law, redraw, surface_best_log_n, surface_exponent
from scaling.powers import Problem, log_loss, minimise

PUBLISHED = np.array([[np.log(482.01), np.log(2085.43), np.log(1.8172), 0.3478, 0.3658]])
"""log A, log B, log E, alpha, beta of Besiroglu et al. 2024."""
NOISE, NOISE_OF_FEW = 0.005, 0.002
"""Standard deviation of log loss."""
_BATCH = 20
_SAYS_EVERY_S = 10.0


def published_cells(budgets: Array, sizes: int, *, width: float = 0.6, offset: float = 0.0) -> list[Cell]:
    """Cells without noise on the published law: `sizes` within 10^+-width of 10^offset times each budget's best."""
    rule = grid_of([Cell(name="", parameters=1.0, tokens=1.0, flops=6.0, loss=1.0)])
    cells = []
    for budget in budgets:
        best = float(np.exp(surface_best_log_n(PUBLISHED, rule, float(np.log(budget)))[0]))
        for n in best * 10 ** (offset + np.linspace(-width, width, sizes)):
            d = float(budget / 6 / n)
            loss = float(np.exp(log_loss(PUBLISHED, np.log([[n], [d]]))[0, 0]))
            cells.append(
                Cell(name=f"{budget:.3g}/{n:.3g}", parameters=float(n), tokens=d, flops=float(budget), loss=loss)
            )
    return cells


def holds(law: Law, rng: np.random.Generator) -> dict[str, bool]:
    """Which intervals hold the published truth, among them that of a run at ten (few cells: three) times the budget."""
    far, noise = (law.largest * 10, NOISE) if law.kind == "parametric" else (law.largest * 3, NOISE_OF_FEW)
    told = law.predict(far)
    n, d = told.parameters.value, told.tokens.value
    run = float(np.exp(log_loss(PUBLISHED, np.log([[n], [d]]))[0, 0] + noise * rng.standard_normal()))
    best = float(np.exp(surface_best_log_n(PUBLISHED, law.grid, float(np.log(far)))[0]))
    truth = {"N exponent": float(surface_exponent(PUBLISHED, law.grid)[0])}
    if law.kind == "parametric":
        truth |= dict(zip("ABE", np.exp(PUBLISHED[0, :3]))) | dict(zip(("alpha", "beta"), PUBLISHED[0, 3:]))
    table = law.table()
    found = {name: bool(table[name].low <= value <= table[name].high) for name, value in truth.items()}
    found["best N at a further budget"] = told.parameters.low <= best <= told.parameters.high
    return found | {"loss of a run there": told.loss.low <= run <= told.loss.high}


def parametric_laws(grid: Grid, y_SM: Array, *, draws: int, rng: np.random.Generator) -> list[Law]:
    """Laws of data sets side by side. They start from the truth, since 4,500 starts would find no better."""
    best, value = minimise(np.repeat(PUBLISHED, len(y_SM), 0), Problem(x_TM=grid.x_TM, y_SM=y_SM))
    redrawn = redraw(best, grid, y_SM, draws=draws, rng=rng).reshape(len(y_SM), draws, -1)
    return [
        parametric_law(grid.with_loss(y), np.concatenate([best[i : i + 1], redrawn[i]]), float(value[i]), rng)
        for i, y in enumerate(y_SM)
    ]


def few_laws(cells: Sequence[Cell], y_SM: Array, *, draws: int, seed: int) -> list[Law]:
    """The same for cells too few for a law in N and D."""
    return [
        fit_law(
            [Cell(**(vars(cell) | {"loss": float(np.exp(loss))})) for cell, loss in zip(cells, y)],
            draws=draws,
            seed=seed + i,
        )
        for i, y in enumerate(y_SM)
    ]


def coverage(sets: int, *, few: bool = False, draws: int = 200, seed: int = 0) -> dict[str, float]:
    """Share of data sets whose interval holds the truth, by quantity; says how far it is every 10 s."""
    rng = np.random.default_rng(seed)
    cells = published_cells(np.geomspace(1e19, 1e20, 3), 4) if few else published_cells(np.geomspace(6e18, 3e21, 6), 8)
    grid, counts, said = grid_of(cells), Counter[str](), time.monotonic()
    for first in range(0, sets, _BATCH):
        size = min(_BATCH, sets - first)
        y_SM = grid.log_loss + (NOISE_OF_FEW if few else NOISE) * rng.standard_normal((size, len(grid.log_c)))
        laws = (
            few_laws(cells, y_SM, draws=draws, seed=seed + first)
            if few
            else parametric_laws(grid, y_SM, draws=draws, rng=rng)
        )
        for law in laws:
            counts.update(holds(law, rng))
        if time.monotonic() - said > _SAYS_EVERY_S:
            said = time.monotonic()
            print(f"{first + size} of {sets} data sets", file=sys.stderr, flush=True)
    return {name: count / sets for name, count in counts.items()}


@command("stopped")
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; 1 where an interval covers too little or too much."""
    parser = argparse.ArgumentParser(
        prog="python -m scaling.coverage", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sets", type=int, default=2000, help="data sets (default: %(default)s)")
    parser.add_argument("--draws", type=int, default=200, help="redrawn fits of each (default: %(default)s)")
    parser.add_argument("--few", action="store_true", help="12 cells, as in a small sweep")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    given = parser.parse_args(arguments)
    if given.sets < 1:
        raise ValueError(f"--sets {given.sets} must be 1 or more")
    found = coverage(given.sets, few=given.few, draws=given.draws, seed=given.seed)
    for name, share in found.items():
        print(f"{name:28s} {share:.1%}")
    return int(not all(0.93 <= share <= 0.97 for share in found.values()))


if __name__ == "__main__":
    sys.exit(main())
