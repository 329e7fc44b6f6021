"""The environment is the one that constraints/ describes."""

import importlib
import importlib.util
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["model", "diffusion", "data", "parallel", "trainer", "slurm", "scaling"])
def test_our_packages_are_the_ones_imported(name):
    """The names are general: another distribution's `data` must not come first."""
    assert ROOT in Path(importlib.import_module(name).__file__).parents


def test_cpu_environment_has_no_cuda_build_and_no_torchvision():
    if torch.cuda.is_available():
        pytest.skip("a GPU is here, and so is the CUDA build of torch")
    assert torch.version.cuda is None, "a plain install replaced the CPU build: install with -c constraints/cpu.txt"
    assert importlib.util.find_spec("torchvision") is None, "torchvision breaks transformers beside a CPU torch"
