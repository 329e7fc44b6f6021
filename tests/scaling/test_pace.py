"""Times are foretold from what finished cells reached, else from this machine."""

import pytest

from scaling.outcome import outcome_of
from scaling.pace import START_S, Pace, measured_rate
from tests.scaling.sweep_case import cell
from tests.scaling.test_outcome import write_run


def test_a_given_rate_is_taken(inputs):
    planned = cell(inputs)
    assert Pace(1e9, [], measures=False).seconds(planned) == pytest.approx(START_S + planned.all_flops / 1e9)
    assert planned.all_flops > planned.flops


def test_finished_cells_of_the_size_say_how_fast_it_is(inputs, tmp_path):
    planned = cell(inputs)
    done = outcome_of(planned, write_run(planned, tmp_path / "run"), most_gap_growth=1.0)
    rate = done.cell.flops / (0.5 * planned.steps)
    assert Pace(None, [done], measures=False).seconds(planned) == pytest.approx(START_S + planned.all_flops / rate)


def test_elsewhere_nothing_is_known(inputs):
    assert Pace(None, [], measures=False).seconds(cell(inputs)) is None


def test_this_machine_is_measured(inputs):
    planned = cell(inputs)
    assert 1e5 < measured_rate(planned) < 1e13
    assert Pace(None, [], measures=True).seconds(planned) > START_S
