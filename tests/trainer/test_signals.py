"""A stop is remembered, asked twice at once it is still one stop, and asked again later it ends the process."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trainer.signals import EXIT_STOPPED, StopRequest

ROOT = Path(__file__).parents[2]
WAITING = """
import time
import trainer.signals
trainer.signals._GRACE_S = 0.5
with trainer.signals.StopRequest() as stop:
    print("ready", flush=True)
    while True:
        time.sleep(0.01)
        if stop.signal_name:
            print(stop.signal_name, flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_remembered_by_its_name_and_said_once(number, capfd):
    with StopRequest() as stop:
        assert stop.signal_name is None
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal_name == number.name
    assert capfd.readouterr().err == f"{number.name}: saving after this step; asked again, leaving without\n"


def test_a_rank_that_does_not_speak_is_silent(capfd):
    with StopRequest(speaks=False) as stop:
        os.kill(os.getpid(), signal.SIGINT)
    assert stop.signal_name == "SIGINT"
    assert capfd.readouterr().err == ""


def test_afterwards_signals_do_what_they_did_before():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    with StopRequest():
        assert signal.getsignal(signal.SIGINT) not in before
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)] == before


def test_a_second_signal_within_the_grace_is_the_same_stop_and_a_later_one_ends_it():
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "SIGINT\n"
    process.send_signal(signal.SIGINT)
    time.sleep(0.7)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 128 + signal.SIGTERM


def test_the_signal_before_a_time_limit_leaves_the_one_at_the_limit_its_time():
    """SLURM sends SIGUSR1, later SIGTERM, and kills only after its KillWait: a save goes on so long."""
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGUSR1)
    assert process.stdout.readline() == "SIGUSR1\n"
    for number in (signal.SIGUSR1, signal.SIGTERM):
        time.sleep(0.7)
        process.send_signal(number)
    time.sleep(0.2)
    assert process.poll() is None
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 128 + signal.SIGTERM


def test_the_exit_code_says_try_again():
    assert EXIT_STOPPED == os.EX_TEMPFAIL
