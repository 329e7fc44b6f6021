"""Logical rectangles, and that what other packages import of `parallel` does not load the engines."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn

from parallel.shard import is_on_every_stage, is_sharded, mark_sharded, shard_of


def test_shard_of_a_split_and_of_a_whole_parameter():
    grid = SimpleNamespace(tensor_rank=1, tensor_size=2)
    logical = torch.arange(24.0).view(4, 6)
    split, whole = nn.Parameter(torch.zeros(4, 3)), nn.Parameter(torch.zeros(4, 6))
    mark_sharded(split, 1)
    assert is_sharded(split) and not is_sharded(whole)
    shard = shard_of(split, grid)
    assert (shard.global_shape, shard.offset, shard.shape) == ((4, 6), (0, 3), (4, 3))
    assert torch.equal(shard.of(logical), logical[:, 3:])
    assert torch.equal(shard_of(whole, grid).of(logical), logical)


def test_only_the_conditioning_is_on_every_stage():
    assert is_on_every_stage("conditioning.time_in.weight")
    assert not is_on_every_stage("blocks.0.conditioning.weight")


def test_light_modules_load_no_engine():
    code = (
        "import sys, parallel.dims, parallel.fragments, parallel.optim, parallel.shard;"
        "print([m for m in sys.modules if m.split('.')[0] in ('megatron', 'deepspeed')])"
    )
    root = Path(__file__).parents[2]
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=120, check=True
    )
    assert run.stdout.strip() == "[]"
