"""Recomputation: the same numbers to the last bit, and fewer of them kept."""

from dataclasses import replace

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from model.dit import DiTConfig, Stage, VideoDiT
from parallel.dims import ParallelDims
from parallel.optim import AdamWConfig
from parallel.recompute import set_recompute
from parallel.reference import Trial, dense_model, loss_sum

CONFIG = DiTConfig(num_blocks=4, num_heads=2, head_dim=16, ffn_dim=64, text_dim=8)
TRIAL = Trial(model=CONFIG, tokens_per_pack=96, packs_per_step=1, steps=1, optim=AdamWConfig(), lr=1e-3)


def run(dims, stages=None):
    """Gradients, and bytes autograd kept for the backward pass beside parameters."""
    model = dense_model(TRIAL, torch.float64, torch.device("cpu"))
    if stages:
        model.stages = stages
    set_recompute(model, dims)
    kept, own = {}, {parameter.data_ptr() for parameter in model.parameters()}

    def pack(tensor):
        if tensor.data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = loss_sum(model, TRIAL.packs(0)[0])
    loss.backward()
    return [parameter.grad for parameter in model.parameters()], sum(kept.values())


@pytest.mark.parametrize("policy", ["selective", "full"])
def test_gradients_are_bit_equal(policy):
    for plain, again in zip(run(ParallelDims())[0], run(ParallelDims(recompute=policy))[0], strict=True):
        assert torch.equal(plain, again)


def test_full_keeps_least_and_a_count_of_blocks_lies_between():
    none, full = run(ParallelDims())[1], run(ParallelDims(recompute="full"))[1]
    counts = [run(ParallelDims(recompute="full", recompute_blocks=n))[1] for n in (1, 2, 3)]
    assert none > counts[0] > counts[1] > counts[2] > full
    assert full < none / 3


def test_the_count_is_of_each_stage_from_its_first_block():
    dims = ParallelDims(pipeline=2, recompute="full", recompute_blocks=1)
    stages = (Stage(0, 2, True, False), Stage(2, 4, False, True))
    model = VideoDiT(CONFIG, stages=stages)
    set_recompute(model, dims)
    chosen = model.run_block.__closure__[0].cell_contents
    assert chosen == {model.blocks["0"], model.blocks["2"]}


def test_nothing_is_recomputed_without_gradients():
    model = dense_model(TRIAL, torch.float64, torch.device("cpu"))
    calls = []
    model.blocks["0"].register_forward_pre_hook(lambda *_: calls.append(1))
    set_recompute(model, replace(ParallelDims(), recompute="full"))
    with torch.no_grad():
        loss_sum(model, TRIAL.packs(0)[0])
    assert len(calls) == 1
    loss_sum(model, TRIAL.packs(0)[0]).backward()
    assert len(calls) == 3
