"""The environment is the one that constraints/ describes."""

import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["model", "diffusion", "data", "parallel", "trainer", "slurm", "scaling"])
def test_our_packages_are_the_ones_imported(name):
    """The names are general: another distribution's `data` must not come first."""
    assert ROOT in Path(importlib.import_module(name).__file__).parents


def test_torch_is_the_pinned_one_and_torchvision_is_absent():
    if torch.cuda.is_available():
        pytest.skip("a machine with a GPU has a torch and perhaps a torchvision of its own")
    pins = (ROOT / "constraints" / "cpu.txt").read_text().splitlines()
    pinned = next(line.removeprefix("torch==") for line in pins if line.startswith("torch=="))
    # Without its suffix: not every Python has a CPU build ("+cpu").
    assert torch.__version__.split("+")[0] == pinned, "a plain install replaced it: install with -c constraints/cpu.txt"
    assert importlib.util.find_spec("torchvision") is None, "torchvision breaks transformers beside a CPU torch"


def test_the_engines_are_imported_without_a_word():
    """Their complaints of what nothing here uses change with every version: see parallel/__init__.py."""
    if torch.cuda.is_available():
        pytest.skip("what the engines say of a GPU is another matter")
    command = [sys.executable, "-c", "import parallel.engine"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    assert (done.stdout, done.stderr) == ("", "")
