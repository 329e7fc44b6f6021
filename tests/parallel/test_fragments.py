"""Logical pieces of the optimizer: saved under one layout, loaded under another."""

import pytest
import torch
from layout_reference import MORE_STEPS, STEPS, assemble, read_ranks, reference_training, relative
from run_layouts import RESUMED

SAME = [source for source, target in RESUMED if source == target]
PAIRS = [(source, target) for source, target in RESUMED if source != target]


@pytest.mark.parametrize(("source", "target"), [*PAIRS, *((layout, layout) for layout in SAME)])
def test_what_is_loaded_is_what_was_saved_bit_for_bit(layouts, source, target):
    saved, loaded = assemble(layouts / f"training_{source}"), assemble(layouts / f"resumed_{source}_{target}")
    assert set(loaded) == {"master", "exp_avg", "exp_avg_sq", "ema"}
    for kind, tensors in loaded.items():
        assert set(tensors) == set(saved[kind])
        for name, tensor in tensors.items():
            assert torch.equal(tensor.view(torch.int32), saved[kind][name].view(torch.int32)), (kind, name)
    for _, notes in read_ranks(layouts / f"resumed_{source}_{target}"):
        assert notes["adam_steps"] == STEPS


@pytest.mark.parametrize("layout", SAME)
def test_resume_in_the_same_layout_is_bit_equal(layouts, layout):
    straight = read_ranks(layouts / f"training_{layout}")
    resumed = read_ranks(layouts / f"resumed_{layout}_{layout}")
    for (before, notes), (after, resumed_notes) in zip(straight, resumed, strict=True):
        assert torch.equal(before["predictions"], after["predictions"])
        assert notes["more_results"] == resumed_notes["more_results"]


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_resume_in_another_layout_goes_on_alike(layouts, source, target):
    reference = reference_training(STEPS + MORE_STEPS)["losses"][STEPS:]
    for _, notes in read_ranks(layouts / f"resumed_{source}_{target}"):
        assert [loss for loss, _, _ in notes["more_results"]] == pytest.approx(reference, rel=2e-5)


def test_moments_equal_plain_adamw(layouts):
    single, split = assemble(layouts / "training_single"), assemble(layouts / "training_tp2_pp2_dp2")
    for kind in ("exp_avg", "exp_avg_sq"):
        for name, tensor in split[kind].items():
            assert relative(tensor, single[kind][name]) <= 1e-3, (kind, name)


def test_no_rank_reads_more_than_its_rows(layouts):
    """Two data ranks read about half of the state each, and together little more than all of it."""
    total = sum(t.numel() for kind in assemble(layouts / "training_tp2_pp2_dp2").values() for t in kind.values())
    read = [notes["elements_read"] for _, notes in read_ranks(layouts / "resumed_tp2_pp2_dp2_dp2")]
    assert sum(read) <= 1.05 * total
    assert max(read) <= 0.6 * total
