"""Megatron's 1F1B schedule over packs against the dense model, and prediction through it."""

import pytest
import torch
from layout_reference import read_ranks, reference_training, relative
from test_tensor import check_gradients

from parallel.pipeline import weighted_error


@pytest.mark.parametrize("microbatches", [1, 2, 3])
@pytest.mark.parametrize(("layout", "data"), [("pp2", 1), ("pp3", 1), ("tp2_pp2_dp2", 2)])
def test_pipeline_gradients_equal_dense(layouts, layout, data, microbatches):
    check_gradients(layouts / f"gradients_{layout}_{microbatches}", data=data, microbatches=microbatches)


@pytest.mark.parametrize("layout", ["single", "tp2_sp", "pp2", "dp2", "tp2_pp2_dp2"])
def test_predictions_are_the_same_on_every_rank_of_every_layout(layouts, layout):
    reference = reference_training(10)
    for tensors, _ in read_ranks(layouts / f"training_{layout}"):
        for kind in ("predictions", "averaged_predictions"):
            assert relative(tensors[kind], reference[kind]) <= 2e-5


def test_a_pack_that_cannot_be_cut_is_refused(layouts):
    for _, notes in read_ranks(layouts / "refusals_tp2_sp"):
        assert "23 tokens cannot be cut into 2 equal shards" in notes["error"]
        assert "pad it to 24" in notes["error"]


def test_weighted_error_is_a_sum_over_tokens_of_patch_means():
    prediction_LP = torch.tensor([[1.0, 3.0], [0.0, 0.0]])
    target_LP = torch.tensor([[0.0, 0.0], [2.0, 0.0]])
    total = weighted_error(prediction_LP, target_LP, torch.tensor([0.5, 3.0]))
    assert float(total) == 0.5 * (1 + 9) / 2 + 3.0 * 4 / 2
