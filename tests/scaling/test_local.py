"""Runs on this machine: started where missing, tried again where they failed, and never two in one folder."""

import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from scaling.attempts import Attempts
from scaling.local import CONSOLE_NAME, LocalRuns, _asked_to_end, _kill, claim, locked, runs_here
from scaling.outcome import outcome_of
from tests.scaling.sweep_case import cell

SLEEPS = "import time; print('here', flush=True); time.sleep(600)"


def test_a_second_sweep_in_a_folder_is_refused_and_a_later_one_is_not(tmp_path):
    here = tmp_path / "sweep"
    with locked(here), pytest.raises(ValueError, match="another sweep is at work in"), locked(here):
        pass
    with locked(here):
        pass


def test_a_run_folder_is_free_when_the_last_process_that_prints_there_has_ended(tmp_path):
    assert not runs_here(tmp_path) and not (tmp_path / CONSOLE_NAME).exists(), "asking writes nothing"
    with claim(tmp_path) as console:
        process = subprocess.Popen([sys.executable, "-c", SLEEPS], stdout=console, start_new_session=True)
    try:
        assert runs_here(tmp_path) and claim(tmp_path) is None
    finally:
        process.kill()
        process.wait()
    assert not runs_here(tmp_path)
    with claim(tmp_path):
        assert runs_here(tmp_path)


def test_what_is_killed_takes_all_that_descends_from_it_along(tmp_path):
    """As torchrun's ranks, each in a session of its own."""
    grandchild = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {SLEEPS!r}], start_new_session=True)"
    with claim(tmp_path) as console:
        process = subprocess.Popen([sys.executable, "-c", grandchild], stdout=console, start_new_session=True)
    end = time.monotonic() + 60
    while "here" not in (tmp_path / CONSOLE_NAME).read_text():
        assert time.monotonic() < end
        time.sleep(0.05)
    _kill(process)
    while runs_here(tmp_path):
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_being_asked_to_end_is_ctrl_c_once_and_nohup_is_heeded(number):
    before = signal.signal(number, signal.SIG_DFL)  # whoever started the tests may have used nohup

    def ask_twice():
        """As a terminal that closes."""
        with _asked_to_end():
            try:
                os.kill(os.getpid(), number)
                time.sleep(5)
            finally:
                os.kill(os.getpid(), number)

    try:
        with pytest.raises(KeyboardInterrupt):
            ask_twice()
        assert signal.getsignal(number) == signal.SIG_DFL
        signal.signal(number, signal.SIG_IGN)
        with _asked_to_end():
            os.kill(os.getpid(), number)
    finally:
        signal.signal(number, before)


@pytest.mark.slow
def test_a_run_that_is_refused_is_tried_once_a_call_and_says_why(inputs, tmp_path):
    planned = cell(inputs, "bad")
    words = tuple("data.folder=nowhere" if word.startswith("data.folder=") else word for word in planned.words)
    bad = SimpleNamespace(**{**vars(planned), "words": words})
    said, records = [], []

    def look(_name):
        return outcome_of(bad, tmp_path / "runs/bad", most_gap_growth=1.0)

    LocalRuns(look, Attempts(tmp_path, retries=3), jobs=1, say=said.append).run(
        [look("bad")], lambda: records.append(1)
    )
    attempts = Attempts(tmp_path, retries=3)
    assert [(one.kind, one.code) for one in attempts.of(bad)] == [("refused", "2")]
    assert "nowhere" in attempts.of(bad)[0].why and not attempts.gives_up(bad) and len(records) == 1
    assert any("bad: refused with exit code 2" in line and "nowhere" in line for line in said)
