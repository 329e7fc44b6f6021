"""Prediction through the schedule, the loss, and packs that do not fit; gradients are in `test_parity`."""

import pytest
import torch
from layout_reference import read_ranks, reference_training, relative
from run_layouts import TRAINED

from parallel.pipeline import weighted_error


@pytest.mark.parametrize("layout", TRAINED)
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
