"""Dry runs: bytes as real ranks hold them, every parameter once, and a thousand ranks in one process."""

from dataclasses import replace
from math import prod

import pytest
import torch.distributed as dist
from layout_reference import CONFIG, TRIAL, read_ranks
from run_layouts import LAYOUTS, MEASURED

from model.dit import DiTConfig
from parallel.dims import ParallelDims
from parallel.dryrun import dry_run, fake_grid

WAN_14B = DiTConfig(num_blocks=40, num_heads=40, head_dim=128, ffn_dim=13824, text_dim=4096)
SCALARS = 64
"""Bytes a rank holds beside: losses, norms, a flag."""


def layout(name):
    dims = ParallelDims(**{"precision": "fp32"} | LAYOUTS[name])
    return dims, dims.model_size * (dims.data or 1)


@pytest.mark.parametrize("name", MEASURED)
def test_bytes_are_those_that_real_ranks_hold(layouts, name):
    dims, world_size = layout(name)
    notes = [notes for _, notes in read_ranks(layouts / f"memory_{name}")]
    assert len(notes) == world_size
    for place, report in enumerate(dry_run(dims, CONFIG, world_size=world_size).ranks):
        ranks = [note for note in notes if note["pipeline_rank"] == place]
        assert len(ranks) == report.last_rank - report.first_rank + 1
        for kind in ("weights", "masters", "moments", "average"):
            assert {rank["held"][kind] for rank in ranks} == {getattr(report.lasting, kind)}, kind
        assert 0 <= max(rank["held"]["rest"] for rank in ranks) - report.lasting.gradients <= SCALARS
        assert all(0 <= rank["start"] - report.start <= SCALARS for rank in ranks), "such as a flag of ZeRO-3"
        stream = TRIAL.tokens_per_pack // dims.stream_shards * CONFIG.dim * dims.dtype.itemsize
        gathered = stream * dims.tensor if dims.shards_sequence else 0
        assert {rank["held"]["gathering"] for rank in ranks} == {gathered}
        # What each stage received last, and its gradient: let go in the next step.
        received = sum(not stage.has_input for stage in report.stages)
        assert {rank["held"]["streams"] for rank in ranks} == {2 * received * stream}


@pytest.mark.timeout(60)
def test_wan_14b_on_1024_ranks():
    dims = ParallelDims(tensor=4, context=2, pipeline=8, precision="bf16")
    found = dry_run(dims, WAN_14B, world_size=1024)
    assert found.dims.data == 16 and found.parameters == 14_288_496_704
    assert [(rank.first_rank, rank.last_rank) for rank in found.ranks] == [(128 * p, 128 * p + 127) for p in range(8)]
    assert [rank.stages[0].first_block for rank in found.ranks] == list(range(0, 40, 5))
    assert found.fullest.lasting.weights >= 2 * found.fullest.parameters.total
    assert not dist.is_initialized()


@pytest.mark.parametrize(
    "options",
    [
        {"pipeline": 5, "blocks_per_stage": (1, 3, 2, 2, 2)},
        {"pipeline": 2, "virtual_pipeline": 2},
        {"pipeline": 2, "virtual_pipeline": 2, "tensor": 2, "blocks_per_stage": (1, 4, 3, 2)},
    ],
)
def test_uneven_and_interleaved_stages(options):
    config = replace(CONFIG, num_blocks=10)
    dims = ParallelDims(precision="bf16", **options)
    found = dry_run(dims, config, world_size=20, tokens_per_pack=24)
    stages = sorted((stage for rank in found.ranks for stage in rank.stages), key=lambda stage: stage.first_block)
    assert [(stage.first_block, stage.end_block) for stage in stages] == dims.stages(10)
    for rank in found.ranks:
        blocks = sum(stage.end_block - stage.first_block for stage in rank.stages)
        assert rank.parameters.blocks == blocks * found.ranks[0].parameters.blocks // blocks_of(found.ranks[0])
        assert rank.parameters.total == rank.parameters.sharded + rank.parameters.replicated
        assert rank.activations > 0 and rank.total == rank.lasting.total + rank.activations
    assert found.message_bytes == 24 // dims.stream_shards * config.dim * 2


def blocks_of(rank):
    return sum(stage.end_block - stage.first_block for stage in rank.stages)


def test_tensor_ranks_share_what_is_sharded():
    whole, halves = (
        dry_run(ParallelDims(tensor=tensor, precision="bf16"), CONFIG, world_size=4).ranks[0].parameters
        for tensor in (1, 2)
    )
    assert halves.sharded * 2 == whole.sharded and halves.replicated == whole.replicated


def test_activations_only_where_they_can_be_told():
    assert dry_run(ParallelDims(precision="bf16"), CONFIG, world_size=2).ranks[0].activations is None
    wide = dry_run(ParallelDims(precision="fp32"), CONFIG, world_size=2, tokens_per_pack=24)
    assert wide.ranks[0].activations is None and wide.message_bytes is None


def test_illegal_layouts_are_refused_before_any_group():
    with pytest.raises(ValueError, match=r"tensor=8 x context=2 does not divide model.num_heads=40 .*tensor=4\.$"):
        dry_run(ParallelDims(tensor=8, context=2, pipeline=8), WAN_14B, world_size=1024)
    assert not dist.is_initialized()


def test_a_fake_grid_is_taken_down_where_something_fails_in_it():
    dims = ParallelDims(tensor=2, pipeline=2, precision="bf16")
    with pytest.raises(KeyError), fake_grid(dims, 5, 8):
        raise KeyError
    with fake_grid(dims, 5, 8) as grid:
        place = grid.tensor_rank, grid.data_rank, grid.pipeline_rank
        assert place == (1, 0, 1) and prod((grid.tensor_size, grid.data_size, grid.pipeline_size)) == 8
