"""Runs on this machine: started where missing, tried again where they failed, and never by two sweeps at once."""

import json
from types import SimpleNamespace

import pytest

from scaling.local import ATTEMPTS_NAME, Attempts, LocalRuns, locked
from scaling.outcome import outcome_of
from tests.scaling.sweep_case import cell


def test_a_second_sweep_in_a_folder_is_refused_and_a_later_one_is_not(tmp_path):
    here = tmp_path / "sweep"
    with locked(here), pytest.raises(ValueError, match="another sweep is at work in"), locked(here):
        pass
    with locked(here):
        pass


def test_attempts_are_bounded_over_sweeps(tmp_path):
    def fresh(retries=1):
        return LocalRuns(tmp_path, look=SimpleNamespace, jobs=1, retries=retries, say=print)

    assert not fresh().gives_up("a")
    Attempts(tmp_path).add("a", 1, "killed")
    assert not fresh().gives_up("a") and fresh(retries=0).gives_up("a")
    Attempts(tmp_path).add("a", -9, "killed")
    assert fresh().gives_up("a") and not fresh(retries=2).gives_up("a") and not fresh().gives_up("b")
    Attempts(tmp_path).add("b", 2, "not finite")
    assert fresh(retries=5).gives_up("b"), "it would end alike"


@pytest.mark.slow
def test_a_run_that_cannot_start_is_tried_once_and_says_why(inputs, tmp_path):
    planned = cell(inputs, "bad")
    words = tuple("data.folder=nowhere" if word.startswith("data.folder=") else word for word in planned.words)
    bad = SimpleNamespace(**{**vars(planned), "words": words})
    said = []

    def look(_name):
        return outcome_of(bad, tmp_path / "runs/bad", most_gap_growth=1.0)

    runs = LocalRuns(tmp_path, look, jobs=1, retries=3, say=said.append)
    records = []
    runs.run([look("bad")], lambda: records.append(1))
    rows = [json.loads(line) for line in (tmp_path / ATTEMPTS_NAME).read_text().splitlines()]
    assert [(row["name"], row["code"]) for row in rows] == [("bad", 2)] and "nowhere" in rows[0]["why"]
    assert runs.gives_up("bad") and len(records) == 1
    assert any("bad: failed with exit code 2" in line and "nowhere" in line for line in said)
    assert LocalRuns(tmp_path, look, jobs=1, retries=3, say=said.append).gives_up("bad"), "nor by a later sweep"
