import numpy as np
import pytest

from scaling.cell import Cell
from scaling.isoflop import budgets_of, fit_parabolas, grid_of

E, A, B, ALPHA, BETA = 1.69, 406.4, 410.7, 0.34, 0.28
BEST = {1e18: 8.058e7, 1e20: 6.449e8, 1e22: 5.160e9}
"""Hoffmann et al. 2022, rounded constants: the size of least loss by budget."""


def hoffmann_cells(budgets, sizes=5, width=0.15, offset=0.0, per_token=6.0):
    cells = []
    for budget in budgets:
        best = (ALPHA * A / (BETA * B)) ** (1 / (ALPHA + BETA)) * (budget / per_token) ** (BETA / (ALPHA + BETA))
        for n in best * 10 ** (offset + np.linspace(-width, width, sizes)):
            d = budget / per_token / n
            loss = E + A / n**ALPHA + B / d**BETA
            cells.append(Cell(name=f"{budget:g}/{n:g}", parameters=n, tokens=d, flops=budget, loss=loss))
    return cells


def test_minima_of_a_narrow_grid_are_the_best_sizes():
    found = fit_parabolas(grid_of(hoffmann_cells(BEST)), draws=50, seed=0)
    assert np.allclose(np.exp(found.log_n_SK[0]), list(BEST.values()), rtol=0.01)
    assert found.exponent().value == pytest.approx(BETA / (ALPHA + BETA), abs=0.001)


def test_tokens_follow_from_the_cells_whatever_a_token_costs():
    grid = grid_of(hoffmann_cells(BEST, per_token=9.0))
    assert np.allclose(grid.tokens(np.log(1e9), np.log(1e21)), np.log(1e21 / 9 / 1e9))
    one_budget = grid_of(hoffmann_cells([1e20]))
    assert np.allclose(one_budget.tokens(one_budget.log_n, one_budget.log_c), one_budget.log_d)


def test_intervals_hold_the_noise_of_few_cells():
    cells = hoffmann_cells(BEST, sizes=4, width=0.6)
    grid, exponents, inside = grid_of(cells), [], 0
    exact = fit_parabolas(grid, draws=50, seed=0).exponent().value
    for seed in range(60):
        noise = 0.001 * np.random.default_rng(seed).standard_normal(len(cells))
        found = fit_parabolas(grid.with_loss(grid.log_loss + noise), draws=300, seed=seed).exponent()
        exponents.append(found.value)
        inside += found.low <= exact <= found.high
    assert abs(np.mean(exponents) - exact) < 3 * np.std(exponents) / np.sqrt(60)
    assert inside >= 52  # 57 expected; fewer than 52 once in 50 such tests


def test_budgets_that_were_not_quite_met_are_one_budget():
    cells = [
        Cell(**(vars(cell) | {"flops": cell.flops * (1 + 0.01 * i)})) for i, cell in enumerate(hoffmann_cells(BEST, 4))
    ]
    assert [len(rows) for rows in budgets_of(grid_of(cells).log_c)] == [4, 4, 4]


def test_a_budget_without_a_minimum_says_what_to_add():
    with pytest.raises(
        ValueError, match=r"2 budgets show .* 1e\+22: loss falls to its largest size .* add larger ones"
    ):
        fit_parabolas(grid_of(hoffmann_cells([1e18, 1e20]) + hoffmann_cells([1e22], offset=-0.5)), draws=10, seed=0)
    with pytest.raises(ValueError, match=r"1e\+22 has 2 sizes: add 2"):
        fit_parabolas(grid_of(hoffmann_cells([1e18, 1e20]) + hoffmann_cells([1e22], sizes=2)), draws=10, seed=0)


def test_a_budget_flat_within_its_noise_is_refused():
    cells = hoffmann_cells(BEST, sizes=4, width=0.02)
    grid = grid_of(cells)
    noise = 0.01 * np.random.default_rng(3).standard_normal(len(cells))
    with pytest.raises(ValueError, match="add"):
        fit_parabolas(grid.with_loss(grid.log_loss + noise), draws=10, seed=0)


def test_as_many_coefficients_as_cells_are_refused_whatever_evaluation_measured():
    cells = hoffmann_cells(BEST, sizes=3, width=0.5)
    known = [Cell(**(vars(cell) | {"standard_error": 0.001})) for cell in cells]
    for given in (cells, known):
        with pytest.raises(ValueError, match="9 cells on 3 budgets .* nothing to tell the error by: add a 4th size"):
            fit_parabolas(grid_of(given), draws=10, seed=0)
    one_more = hoffmann_cells([1e18, 1e20], 3, width=0.5) + hoffmann_cells([1e22], 4, width=0.5)
    assert fit_parabolas(grid_of(one_more), draws=10, seed=0).spread_B.max() < 0.1
