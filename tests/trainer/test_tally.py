"""Losses by level and by bucket are parts of the loss: over all of them they make it again."""

from types import SimpleNamespace

import pytest
import torch

from model.packed import PackedInputs
from trainer.batch import Microbatch
from trainer.tally import LossTally, bins_of

BUCKETS, LEVELS = ("image", "video"), 4


def pack(times, buckets, *, rows, lengths, weight):
    count = len(rows)
    inputs = PackedInputs(
        patch_LP=None,
        position_L3=torch.zeros(count, 3, dtype=torch.int64),
        row_L=torch.tensor(rows),
        segment_lengths=lengths,
        time_R=torch.tensor(times),
        is_condition_R=torch.zeros(len(times), dtype=torch.bool),
        text_KE=torch.zeros(len(lengths), 1),
        text_lengths=(1,) * len(lengths),
    )
    keys = tuple(f"clip{number}" for number in range(len(buckets)))
    return Microbatch(inputs=inputs, target_LP=None, weight_L=torch.tensor(weight), keys=keys, buckets=buckets)


def one_rank(context_rank=0, context_size=1):
    return SimpleNamespace(
        device=torch.device("cpu"),
        tensor_rank=0,
        context_rank=context_rank,
        context_size=context_size,
        sum_over_ranks=torch.clone,
    )


# Two samples, one of two frames at two levels, and two tokens of padding.
PACK = pack(
    [0.1, 0.6, 1.0, 0.0],
    ("video", "image"),
    rows=[0, 0, 1, 1, 2, 2, 3, 3],
    lengths=(4, 2, 2),
    weight=[0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0],
)
ERROR = torch.tensor([9.0, 9.0, 1.0, 3.0, 5.0, 6.0, 9.0, 9.0])


def test_a_token_counts_for_the_bucket_of_its_sample_and_the_level_of_its_frame():
    assert bins_of(PACK.inputs, [1, 0], LEVELS).tolist() == [4, 4, 6, 6, 3, 3, 0, 0]


def test_means_by_level_and_bucket_leave_out_what_has_no_weight_and_begin_anew():
    tally = LossTally(one_rank(), BUCKETS, LEVELS)
    tally.add(PACK, ERROR, PACK.weight_L)
    assert tally.row() == {
        "loss_t0.625": 2.0,
        "loss_t0.875": 5.5,
        "loss_bucket/image": 5.5,
        "loss_bucket/video": 2.0,
    }
    assert tally.row() == {}
    for _ in range(2):
        tally.add(PACK, ERROR, PACK.weight_L)
    assert tally.row()["loss_bucket/video"] == 2.0, "a mean over steps, not a sum"


def test_context_shards_hold_parts_of_the_same_table():
    whole = LossTally(one_rank(), BUCKETS, LEVELS)
    whole.add(PACK, ERROR, PACK.weight_L)
    parts = [LossTally(one_rank(rank, 2), BUCKETS, LEVELS) for rank in range(2)]
    for rank, tally in enumerate(parts):
        shard = slice(4 * rank, 4 * rank + 4)
        tally.add(PACK, ERROR[shard], PACK.weight_L[shard])
    assert torch.equal(parts[0]._sums + parts[1]._sums, whole._sums)


def test_the_same_over_tensor_ranks_counts_once():
    grid = one_rank()
    grid.tensor_rank = 1
    tally = LossTally(grid, BUCKETS, LEVELS)
    tally.add(PACK, ERROR, PACK.weight_L)
    assert tally.row() == {}


def test_the_loss_is_the_weighted_mean_of_its_parts():
    tally = LossTally(one_rank(), BUCKETS, LEVELS)
    tally.add(PACK, ERROR, PACK.weight_L)
    row = tally.row()
    loss = float((ERROR * PACK.weight_L).sum() / PACK.weight_L.sum())
    assert loss == pytest.approx((row["loss_bucket/video"] * 2 + row["loss_bucket/image"] * 2) / 4)
