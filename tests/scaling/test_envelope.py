import numpy as np
import pytest

from scaling.cell import Cell
from scaling.coverage import PUBLISHED, published_cells
from scaling.envelope import fit_envelope
from scaling.powers import log_loss
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
    assert fit_envelope([wasted, *good], draws=400, seed=0).names == tuple(cell.name for cell in good)
    assert fit_envelope([wasted, *good], draws=400, seed=0).parameters_exponent.value == pytest.approx(0.5)


def test_points_of_cooldown_branches_count():
    """Six runs, one of which finished a schedule early too: seven points."""
    cells = [
        Cell(name=f"{c:g}", parameters=c**0.5, tokens=c**0.5 / 6, flops=c, loss=1e18 / c + 1)
        for c in (1e18, 1e19, 1e20, 1e21, 1e22, 1e23)
    ]
    with pytest.raises(ValueError, match="3 points lie on the envelope and 4 are needed"):
        fit_envelope(cells[:3], draws=400, seed=0)
    branch = ((2e8, 1e18 * 1.2, 1.9),)
    longer = Cell(**(vars(cells[1]) | {"curve": branch}))
    found = fit_envelope([cells[0], longer, *cells[2:]], draws=400, seed=0)
    assert found.names == ("1e+18", "1e+19", "1e+19", "1e+20", "1e+21", "1e+22", "1e+23")


def widening_cells(budgets, *, per_budget=1.0):
    """Nine sizes around the best of each budget, the largest of which reach the further the larger the budget."""
    cells = []
    for i, budget in enumerate(budgets):
        (best,) = published_cells(np.array([budget]), 1, width=0.0)
        for k, factor in enumerate(np.concatenate([10 ** np.linspace(-0.6, 0, 5), 10 ** np.linspace(0.1, 0.2 + i, 4)])):
            flops = budget * per_budget ** (k / 8)
            n, d = best.parameters * factor, flops / 6 / best.parameters / factor
            loss = float(np.exp(log_loss(PUBLISHED, np.log([[n], [d]]))[0, 0]))
            cells.append(Cell(name=f"{i}/{k}", parameters=n, tokens=d, flops=flops, loss=loss))
    return cells


@pytest.mark.parametrize("spread", [1.0, 1.04])
def test_cells_of_one_budget_give_one_point(spread):
    """Six budgets of nine sizes, met exactly or nearly: sizes on the way to the best one are no points of their own."""
    found = fit_envelope(widening_cells(np.geomspace(6e18, 3e21, 6), per_budget=spread), draws=400, seed=0)
    assert len(found.names) == 6
    assert [name.split("/")[0] for name in found.names] == list("012345")
    assert found.parameters_exponent.value == pytest.approx(0.5126, abs=0.02)
    assert found.parameters_exponent.low < 0.5126 < found.parameters_exponent.high


def test_points_without_gaps_have_no_budget_in_common():
    cells = [
        Cell(name=f"{i}", parameters=c**0.5, tokens=c**0.5 / 6, flops=c, loss=3 - 0.01 * i)
        for i, c in enumerate(1e18 * 1.02 ** np.arange(40))
    ]
    assert len(fit_envelope(cells, draws=50, seed=0).names) == 40
