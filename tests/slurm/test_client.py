"""SLURM's programs answer, or the user is told in one sentence why not."""

import pytest

from slurm import client
from slurm.client import ask


def test_what_is_printed_comes_back():
    assert ask("printf", "%s\n", "one two") == "one two"


def test_a_refusal_is_told_in_the_programs_own_words():
    with pytest.raises(ValueError, match=r"^ls /nowhere failed: ls: cannot access '/nowhere': No such file"):
        ask("ls", "/nowhere")
    with pytest.raises(ValueError, match=r"false failed: without a word"):
        ask("false")


def test_a_machine_without_slurm_is_told_apart():
    with pytest.raises(ValueError, match=r"there is no sbatch-of-nowhere on PATH: use a node from which jobs are"):
        ask("sbatch-of-nowhere")


def test_a_controller_that_does_not_answer_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(client, "_PATIENCE_S", 0.2)
    with pytest.raises(ValueError, match=r"sleep did not answer in 0 s: is SLURM's controller up\?"):
        ask("sleep", "20")
