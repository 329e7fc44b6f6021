"""Bytes of training, kind by kind: the arithmetic, and DeepSpeed's own settings behind it."""

from dataclasses import replace

import pytest
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

from parallel.dims import ParallelDims
from parallel.memory import (
    LIVE_ELEMENTS,
    SUB_GROUP_ELEMENTS,
    flat_partitions,
    lasting_memory,
    passing_memory,
    start_memory,
)

GROUPS = ([(100,), (31,)], [(7, 6)])
DIMS = ParallelDims(precision="bf16", context=2, data=2)


def test_partitions_are_padded_as_deepspeed_does():
    assert flat_partitions(GROUPS, DIMS) == [34, 4]
    assert flat_partitions(GROUPS, replace(DIMS, context=1, zero_stage=2)) == [66, 8]
    assert flat_partitions(GROUPS, replace(DIMS, zero_stage=3)) == [25 + 8, 2 + 2]


def test_zero3_updates_in_flat_tensors_of_limited_size():
    dims = replace(DIMS, zero_stage=3)
    assert flat_partitions([[(2 * 10**9,)] * 5, [(4,)]], dims) == [10**9, 10**9, 5 * 10**8, 1]
    assert DeepSpeedZeroConfig().sub_group_size == SUB_GROUP_ELEMENTS
    assert DeepSpeedZeroConfig().max_live_parameters == LIVE_ELEMENTS


def test_more_replicas_hold_less_each_and_zero0_shares_nothing():
    totals = [lasting_memory(GROUPS, replace(DIMS, data=data), replica=0).total for data in (1, 2, 8)]
    assert totals == sorted(totals, reverse=True) and totals[0] > totals[-1]
    alone = replace(DIMS, precision="fp32", zero_stage=0, data=1, context=1)
    assert lasting_memory(GROUPS, alone, replica=0) == lasting_memory(GROUPS, replace(alone, data=64), replica=5)


def test_zero2_in_float32_keeps_gradients_whole_that_it_shares():
    """As they arrive: the 31 and the 7 + 6 are needed by both of the replicas that they are cut between."""
    dims = ParallelDims(precision="fp32", data=2, zero_stage=2)
    held = [lasting_memory(GROUPS, dims, replica=replica).gradients for replica in range(2)]
    assert held == [4 * (100 + 13), 4 * (100 + 31 + 13)]


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_shares_of_one_replica_are_the_whole(stage):
    """Nothing to divide and nothing to pad (even sizes): two float32 moments, an average, weights, gradients."""
    dims = ParallelDims(precision="fp32", data=1, zero_stage=stage)
    memory = lasting_memory(([(10,), (6,)], [(4,)]), dims, replica=0)
    flats = 6 if stage == 0 else 4  # words of step counts: one a parameter, or one a flat tensor
    assert memory.weights == memory.gradients == memory.average == 80
    assert (memory.masters, memory.moments - 160) == (0 if stage == 0 else 80, {6: 12, 4: 8}[flats])
    assert start_memory(([(10,), (6,)], [(4,)]), dims) >= 160


def test_what_comes_on_top_is_named():
    assert passing_memory(GROUPS, DIMS) == {"reduction": 4 * 4 * (34 + 4)}
    assert passing_memory(([(6 * 10**8,)], [(10,)]), DIMS) == {"reduction": 0}
    assert set(passing_memory(GROUPS, replace(DIMS, zero_stage=3))) == {"gathered weights", "reduction", "update"}
    large = passing_memory(([(10**8,)] * 40, [(10,)]), replace(DIMS, zero_stage=3))
    assert large["gathered weights"] == 2 * 10**9 and large["reduction"] == 6 * 50_000_000
