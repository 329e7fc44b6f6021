"""Attempts are counted over calls of a sweep: failures are bounded; what stopped or was refused is tried once more."""

import json
from dataclasses import replace

import pytest

from scaling.attempts import FILE_NAME, Attempts, judged, refusal_in
from scaling.outcome import outcome_of
from scaling.sweep import explained
from tests.scaling.sweep_case import cell
from tests.scaling.test_outcome import write_run


@pytest.fixture(scope="module")
def planned(inputs):
    return cell(inputs)


def attempts(folder, retries=1):
    return Attempts(folder, retries=retries)


def test_failures_are_bounded_over_sweeps(planned, tmp_path):
    other = replace(planned, name="other")
    assert not attempts(tmp_path).gives_up(planned)
    attempts(tmp_path).add(planned, "failed", why="killed", code="-9")
    assert not attempts(tmp_path).gives_up(planned)
    assert attempts(tmp_path, retries=0).gives_up(planned)
    attempts(tmp_path).add(planned, "failed", why="out of memory", code="1")
    assert attempts(tmp_path).gives_up(planned).startswith("it failed 2 times, last: out of memory")
    assert not attempts(tmp_path, retries=2).gives_up(planned)
    assert not attempts(tmp_path).gives_up(other)


@pytest.mark.parametrize("kind", ["stopped", "refused"])
def test_what_stopped_or_was_refused_is_never_given_up(planned, tmp_path, kind):
    for _ in range(3):
        attempts(tmp_path, retries=0).add(planned, kind, why="the disk is full", code="2")
    assert not attempts(tmp_path, retries=0).gives_up(planned)
    assert [one.why for one in attempts(tmp_path).of(planned)] == ["the disk is full"] * 3


def test_one_that_diverged_is_left_alone_until_its_settings_change(planned, tmp_path):
    attempts(tmp_path).add(planned, "diverged", why="step 3: not finite", code="2")
    assert "it diverged (step 3: not finite)" in attempts(tmp_path, retries=9).gives_up(planned)
    slower = replace(planned, words=(*planned.words, "schedule.lr=1e-5"))
    assert not attempts(tmp_path).gives_up(slower)


def test_the_last_words_of_a_run_that_diverged_are_said_once(planned, tmp_path):
    told = attempts(tmp_path)
    told.add(planned, "diverged", why="step 3: not finite", code="2")
    found = outcome_of(planned, tmp_path / "none", most_gap_growth=0.02)
    found = replace(found, cell=replace(found.cell, broken="it stopped at step 3 of 9: step 3: not finite"))
    assert explained(found, told, "").cell.broken == (
        "it stopped at step 3 of 9; it diverged (step 3: not finite) and would do so again with the same settings"
    )


def test_a_torn_last_line_is_no_attempt_and_the_next_begins_a_line_of_its_own(planned, tmp_path):
    attempts(tmp_path).add(planned, "failed", why="first", code="1")
    path = tmp_path / FILE_NAME
    path.write_text(path.read_text() + "\n" + path.read_text()[:30])
    attempts(tmp_path).add(planned, "failed", why="second", code="1")
    assert [one.why for one in attempts(tmp_path).of(planned)] == ["first", "second"]


@pytest.mark.parametrize("line", ['{"name": "a"}', "{3}"])
def test_a_foreign_line_is_named(tmp_path, line):
    (tmp_path / FILE_NAME).write_text(line)
    with pytest.raises(ValueError, match=r"line 1 of .*attempts.jsonl is no attempt at a cell \(.*\): delete it"):
        attempts(tmp_path)


REFUSED = "step 1\nerror: runs/a could not be written (the disk is full)  [TESSERA_TRACEBACK=1 shows where]\nExit\n"


@pytest.mark.parametrize(
    ("alert", "printed", "code", "kind", "why"),
    [
        (None, "", 75, "stopped", ""),
        (None, "", -15, "stopped", ""),
        (None, "Traceback", -9, "failed", "it stopped at step 5"),
        (None, REFUSED, 2, "refused", "runs/a could not be written (the disk is full)"),
        (None, REFUSED, 1, "refused", "runs/a could not be written (the disk is full)"),
        (("not finite", 20.0), "", 2, "diverged", "it stopped at step 5"),
        (("not finite", 5.0), REFUSED, 2, "refused", "the disk is full"),
        (("preemption", 20.0), "torchrun's words", 1, "stopped", ""),
        (("preemption", 5.0), "torchrun's words", 1, "failed", "it stopped at step 5"),
    ],
)
def test_how_a_run_ended_is_read_from_its_record_its_words_and_its_code(
    planned, tmp_path, alert, printed, code, kind, why
):
    """What it recorded before it was started, at second 10, tells nothing."""
    folder = write_run(planned, tmp_path / "run", until=5)
    if alert is not None:
        row = {"step": 5, "time": alert[1], "alert": {"kind": alert[0], "text": "words"}}
        with (folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
    found = outcome_of(planned, folder, most_gap_growth=1.0)
    got, said = judged(found, printed, began=10.0, code=code)
    assert got == kind and why in said


def test_one_that_never_started_says_what_it_printed_last(planned, tmp_path):
    found = outcome_of(planned, tmp_path / "none", most_gap_growth=1.0)
    printed = "Traceback\nImportError: no\n\n"
    assert judged(found, printed, began=0.0, code=1) == ("failed", "ImportError: no")
    assert refusal_in(printed) == ""
