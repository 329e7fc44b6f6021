from dataclasses import replace

import numpy as np
import pytest

from scaling.coverage import PUBLISHED
from scaling.isoflop import grid_of
from scaling.law import fit_law, surface_best_log_n
from tests.scaling.published import noisy_cells

BUDGETS = np.geomspace(6e18, 3e21, 6)
FEW = np.geomspace(1e19, 1e20, 3)


@pytest.fixture(scope="module")
def law():
    return fit_law(noisy_cells(BUDGETS, 5, noise=0.002), draws=200)


@pytest.fixture(scope="module")
def few():
    return fit_law(noisy_cells(FEW, 4, noise=0.001), draws=200)


def test_parameters_of_the_published_law_are_recovered(law):
    table = law.table()
    for name, value in zip(("alpha", "beta"), PUBLISHED[0, 3:]):
        assert abs(table[name].value - value) < 0.03
        assert table[name].low < table[name].value < table[name].high
    assert abs(table["N exponent"].value - 0.5126) < 0.02
    assert abs(table["E"].value - 1.8172) < 0.05


def test_the_best_size_has_the_least_loss_of_its_budget(law):
    log_c = float(np.log(1e22))
    best = law.best_log_n(log_c)[0]
    sizes = best + np.linspace(-0.5, 0.5, 101)
    losses = [law.log_loss_S(n, float(law.grid.tokens(n, log_c)), log_c)[0] for n in sizes]
    assert sizes[np.argmin(losses)] == pytest.approx(best, abs=0.006)
    told = law.predict(1e22)
    assert told.parameters.value * told.tokens.value * 6 == pytest.approx(1e22)
    assert told.times_largest == pytest.approx(1e22 / 3e21)


def test_intervals_widen_as_the_budget_grows(law, few):
    for one in (law, few):
        near, far = (one.predict(one.largest * factor) for factor in (1, 1000))
        for quantity in ("parameters", "tokens", "loss"):
            low, high = getattr(near, quantity), getattr(far, quantity)
            assert low.high / low.low < high.high / high.low


def test_few_cells_carry_a_law_in_compute_only(few):
    assert few.kind == "compute"
    assert set(few.table()) == {"K", "E", "gamma", "N intercept", "N exponent"}
    told = few.predict(3e20)
    grid = grid_of(noisy_cells(FEW, 4, noise=0))
    best = float(np.exp(surface_best_log_n(PUBLISHED, grid, float(np.log(3e20)))[0]))
    assert told.parameters.low < told.parameters.value < told.parameters.high
    assert told.parameters.value == pytest.approx(best, rel=0.1)
    assert told.loss.high / told.loss.low < 1.05
    with pytest.raises(ValueError, match="budget -1 must be a positive number"):
        few.predict(-1)


def test_too_few_cells_say_what_to_add():
    with pytest.raises(ValueError, match="3 sound cells carry no law: add cells until at least 3 budgets have 4 sizes"):
        fit_law(noisy_cells([1e19], 3, noise=0))
    with pytest.raises(ValueError, match="2 budgets show a minimum over sizes and 3 are needed: add cells"):
        fit_law(noisy_cells([1e19, 1e20], 4, noise=0))


def test_cells_on_a_line_say_what_to_add():
    cells = noisy_cells(np.geomspace(1e18, 1e21, 24), 1, noise=0.001)
    with pytest.raises(ValueError, match="hardly varies on its own in these 24 cells .* add cells of other sizes"):
        fit_law(cells)


def test_a_loss_that_does_not_fall_with_size_is_no_law():
    cells = noisy_cells(BUDGETS, 4, noise=0)
    upside_down = [
        replace(cell, loss=2 + (cell.parameters / 1e9) ** 0.3 + (cell.tokens / 1e10) ** -0.3) for cell in cells
    ]
    with pytest.raises(ValueError, match="loss does not fall with size in these cells"):
        fit_law(upside_down)
