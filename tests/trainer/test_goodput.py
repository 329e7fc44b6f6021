"""Where time went is counted over all starts of a run, and what had to be done again is counted as lost."""

import time
from types import SimpleNamespace

import pytest

from trainer.goodput import PARTS, Goodput, clock, counted, duration, is_counted, process_age_s


def test_a_restart_goes_on_from_the_row_it_resumes_at_and_counts_the_rest_as_lost():
    first = Goodput()
    first.seconds |= {"start": 5.0, "step": 10.0, "data": 1.0}
    before = first.row()
    first.seconds |= {"step": 17.0, "checkpoints": 2.0}
    undone = first.row()
    assert is_counted(before) and not is_counted({"loss": 1.0})
    assert before["goodput/share"] == pytest.approx(10 / 16, abs=1e-4)

    second = Goodput()
    second.carry(before, undone)
    second.seconds |= {"start": 4.0, "step": 7.0}
    row = second.row()
    assert row["goodput/lost_s"] == 9.0, "7 s of steps and 2 s of checkpoints came after the row"
    assert (row["goodput/step_s"], row["goodput/start_s"], row["goodput/data_s"]) == (17.0, 9.0, 1.0)

    third = Goodput()
    third.carry(row, {})
    assert third.row() == row, "a run that stopped at a checkpoint loses nothing"
    from_the_start = Goodput()
    from_the_start.carry({}, undone)
    assert from_the_start.row()["goodput/lost_s"] == 25.0


def test_a_counted_function_adds_to_its_part_even_when_it_fails():
    run = SimpleNamespace(metrics=SimpleNamespace(goodput=Goodput()))

    @counted("evaluation")
    def evaluate(run, words):
        time.sleep(0.02)
        if words:
            raise ValueError(words)
        return 7

    assert evaluate(run, "") == 7
    with pytest.raises(ValueError, match="broken"):
        evaluate(run, "broken")
    seconds = run.metrics.goodput.seconds
    assert seconds["evaluation"] >= 0.04
    assert not any(seconds[part] for part in PARTS if part != "evaluation")


def test_a_process_knows_its_age():
    first = process_age_s()
    time.sleep(0.05)
    assert 0 < first < process_age_s() < 24 * 3600


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(45.2, "45 s"), (61, "1 min"), (59.7 * 60, "1 h 00 min"), (3.085 * 3600, "3 h 05 min"), (52.2 * 3600, "2 d 4 h")],
)
def test_durations_are_read_at_a_glance(seconds, words):
    assert duration(seconds) == words


def test_the_end_says_where_time_went():
    goodput = Goodput()
    goodput.seconds |= {"step": 900.0, "start": 70.0, "data": 30.0, "samples": 1.0}
    assert goodput.told() == "17 min: step 90%, start 7%, data 3%"


def test_an_hour_of_another_day_has_its_day():
    now = time.time()
    assert clock(now) == time.strftime("%H:%M", time.localtime(now))
    assert clock(now + 48 * 3600) == time.strftime("%a %d %b %H:%M", time.localtime(now + 48 * 3600))
