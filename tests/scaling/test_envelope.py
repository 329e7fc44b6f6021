import numpy as np
import pytest

from scaling.cell import Cell
from scaling.envelope import fit_envelope
from tests.scaling.published import noisy_cells


def test_the_envelope_rises_as_the_best_sizes_do():
    cells = noisy_cells(np.geomspace(6e18, 3e21, 9), 9, noise=0.001, width=0.5)
    found = fit_envelope(cells, draws=400, seed=0)
    assert found.parameters_exponent.low < 0.513 < found.parameters_exponent.high
    assert found.parameters_exponent.high - found.parameters_exponent.low < 0.2
    # D = C / 6 N: the two exponents share one.
    assert found.parameters_exponent.value + found.tokens_exponent.value == pytest.approx(1)


def test_a_cell_that_a_cheaper_one_beats_is_not_on_it():
    budgets = [1e18, 1e19, 1e20, 1e21]
    good = [
        Cell(name=f"{c:g}", parameters=c**0.5, tokens=c**0.5 / 6, flops=c, loss=3 / (i + 1))
        for i, c in enumerate(budgets)
    ]
    wasted = Cell(name="wasted", parameters=1e3, tokens=1e15, flops=5e20, loss=2.9)
    assert fit_envelope([wasted, *good], draws=50, seed=0).names == tuple(cell.name for cell in good)
    assert fit_envelope([wasted, *good], draws=50, seed=0).parameters_exponent.value == pytest.approx(0.5)


def test_points_of_cooldown_branches_count():
    """Three runs, one of which finished a schedule early too: four points."""
    cells = [
        Cell(name=f"{c:g}", parameters=c**0.5, tokens=c**0.5 / 6, flops=c, loss=1e18 / c + 1)
        for c in (1e18, 1e19, 1e20)
    ]
    with pytest.raises(ValueError, match="3 points lie on the envelope and 4 are needed"):
        fit_envelope(cells, draws=50, seed=0)
    branch = ((2e8, 1e18 * 1.2, 1.9),)
    longer = Cell(**(vars(cells[1]) | {"curve": branch}))
    assert fit_envelope([cells[0], longer, cells[2]], draws=50, seed=0).names == ("1e+18", "1e+19", "1e+19", "1e+20")
