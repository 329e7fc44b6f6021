"""Before a time limit nothing is begun that would end after it."""

import time

import pytest

from trainer import deadline
from trainer.deadline import Deadline


@pytest.fixture
def clock(monkeypatch):
    """A clock that tests set; it starts at 1000."""
    now = [1000.0]
    monkeypatch.setattr(time, "time", lambda: now[0])
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def take(limit, clock, kind, seconds):
    with limit.measured(kind):
        clock[0] += seconds


def test_without_a_limit_nothing_is_forbidden(clock):
    limit = Deadline(None, closing_s=30.0)
    take(limit, clock, "step", 1e9)
    assert limit.forbids(["step", "save"]) is None


def test_the_longest_yet_of_each_kind_and_a_reserve_have_to_fit(clock, monkeypatch):
    monkeypatch.setattr(deadline, "_MARGIN_S", 10.0)
    monkeypatch.setattr(deadline, "_SLOWER", 1.5)
    limit = Deadline(2000.0, closing_s=30.0)
    for kind, seconds in (("step", 4), ("step", 8), ("step", 2), ("save", 20), ("evaluate", 100)):
        take(limit, clock, kind, seconds)
    needed = 1.5 * (8 + 20) + 10 + 30
    clock[0] = 2000.0 - needed
    assert limit.forbids(["step", "save"]) is None
    assert limit.forbids(["step", "evaluate", "save"]) == ("the job's time limit (82 s are left, 232 s may be needed)")
    clock[0] += 1
    assert limit.forbids(["step", "save"]) == "the job's time limit (81 s are left, 82 s may be needed)"


def test_a_log_says_at_its_top_when_time_is_up(clock):
    assert Deadline(None).told() is None
    told = Deadline(8200.0).told()
    assert told.startswith("the job's time is up at ")
    assert told.endswith("in 2 h 00 min: the run saves and leaves before that")
    assert "in 0 s" in Deadline(0.0).told()
