from dataclasses import replace

import numpy as np
import pytest

from scaling.coverage import PUBLISHED, published_cells
from scaling.extrapolation import leave_highest_out, parabola_bias
from scaling.isoflop import grid_of
from scaling.law import parametric_law
from tests.scaling.published import noisy_cells


def published_law(**grid):
    found = grid_of(published_cells(np.geomspace(6e18, 3e21, 5), 9, **grid))
    return parametric_law(found, PUBLISHED.repeat(2, 0), 0.0, np.random.default_rng(0))


def test_parabolas_are_biased_on_a_wide_grid_and_on_one_off_its_centre():
    """On a narrow grid around the minima a parabola is right to second order; the error grows from there."""
    narrow = parabola_bias(published_law(width=0.1))
    wide = parabola_bias(published_law(width=1.5))
    aside = parabola_bias(published_law(width=0.6, offset=0.5))
    assert narrow.true_exponent == pytest.approx(0.3658 / (0.3478 + 0.3658))
    assert abs(narrow.size_ratio - 1) < 0.001
    assert abs(wide.size_ratio - 1) > 0.02
    assert abs(aside.size_ratio - 1) > 0.04
    assert abs(aside.exponent - aside.true_exponent) > 0.005 > 10 * abs(narrow.exponent - narrow.true_exponent)


def test_the_highest_budget_is_predicted_from_those_below():
    cells = noisy_cells(np.geomspace(6e18, 3e21, 6), 5, noise=0.001)
    found = leave_highest_out(cells, draws=100)
    assert set(found.names) == {cell.name for cell in cells[-5:]}
    assert found.times_largest == pytest.approx((3e21 / 6e18) ** 0.2)
    assert found.relative_error < 0.005 < found.no_change_error
    assert found.inside >= 0.6


def test_a_law_of_twenty_cells_is_judged_by_fifteen_as_a_law_in_size_and_tokens():
    cells = noisy_cells(np.geomspace(6e18, 3e20, 4), 5, noise=0.001)
    found = leave_highest_out(cells, draws=100)
    assert set(found.names) == {cell.name for cell in cells[-5:]}, "all sizes, not the best one alone"
    assert found.relative_error < 0.005 < found.no_change_error


@pytest.mark.parametrize("left", [3, 5, 6, 9])
def test_a_top_heavy_grid_leaves_too_little_for_a_law_in_size_and_tokens(left):
    cells = noisy_cells([1e19], left, noise=0.001) + noisy_cells([1e20], 17, noise=0.001)
    cells = [replace(cell, name=f"{number}") for number, cell in enumerate(cells)]
    with pytest.raises(ValueError, match=r"add cells"):
        leave_highest_out(cells, draws=100)


def test_too_little_is_left_to_predict_from():
    with pytest.raises(ValueError, match="2 budgets show a minimum over sizes and 3 are needed"):
        leave_highest_out(noisy_cells([1e19, 3e19, 1e20], 4, noise=0), draws=100)
