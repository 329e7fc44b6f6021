"""Layouts: legal ones resolve, the others are refused with the arithmetic and a way out."""

from pathlib import Path

import dacite
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from parallel.dims import ParallelDims, interleaving_group

CONF = Path(__file__).parents[2] / "conf" / "parallel"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tensor": 0}, "parallel.tensor is 0"),
        ({"virtual_pipeline": 0}, "parallel.virtual_pipeline is 0"),
        ({"zero_stage": 4}, r"parallel.zero_stage is 4; ZeRO has the stages 0, 1, 2 and 3"),
        (
            {"recompute_blocks": 2},
            r"parallel.recompute_blocks is 2 with recompute=none; .* recompute=selective or full",
        ),
        ({"blocks_per_stage": (3, 0)}, r"parallel.blocks_per_stage is \[3, 0\]; each stage needs 1 block"),
        ({"timeout_s": 0.0}, "parallel.timeout_s is 0.0"),
        ({"start_timeout_s": -1.0}, "parallel.start_timeout_s is -1.0"),
        ({"heartbeat_timeout_s": 0.0}, "parallel.heartbeat_timeout_s is 0.0"),
    ],
)
def test_sizes_that_are_never_legal_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ParallelDims(**options)


@pytest.mark.parametrize(
    ("options", "world", "message"),
    [
        ({"tensor": 2, "pipeline": 2}, 6, r"2 x 1 x 2 = 4 .* does not divide 6; start 4 or 8 processes"),
        ({"tensor": 4}, 1, r"4 x 1 x 1 = 4 .* does not divide 1; start 4 processes"),
        ({"data": 3}, 4, r"parallel.data is 3, but 4 processes / .* = 4; set parallel.data=4 .*, or start 3 proc"),
    ],
)
def test_worlds_that_do_not_fit_are_refused(options, world, message):
    with pytest.raises(ValueError, match=message):
        ParallelDims(**options).resolve(world)


def test_data_takes_what_is_left():
    assert ParallelDims(tensor=2, pipeline=2).resolve(8).data == 2
    assert ParallelDims(precision="bf16").resolve(1) == ParallelDims(data=1, precision="bf16")


@pytest.mark.parametrize(
    ("blocks", "stages", "counts"), [(8, 2, [4, 4]), (7, 2, [4, 3]), (10, 4, [2, 3, 3, 2]), (11, 4, [3, 3, 3, 2])]
)
def test_blocks_are_split_evenly_with_the_ends_light(blocks, stages, counts):
    parts = ParallelDims(pipeline=stages).stages(blocks)
    assert [end - first for first, end in parts] == counts
    assert [first for first, _ in parts] == [0, *(end for _, end in parts[:-1])]
    assert parts[-1][1] == blocks


def test_blocks_are_split_as_told():
    assert ParallelDims(pipeline=3, blocks_per_stage=(1, 4, 2)).stages(7) == [(0, 1), (1, 5), (5, 7)]


@pytest.mark.parametrize("pipeline", [2, 3, 4, 7])
def test_groups_of_interleaved_packs_are_legal_for_megatron(pipeline):
    for packs in range(pipeline, 40):
        size = interleaving_group(packs, pipeline)
        assert pipeline <= size <= packs
        assert packs % size == 0 or packs % size >= pipeline


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_layouts_are_legal_for_the_processes_their_first_line_starts(path):
    first = path.read_text().splitlines()[0].split()
    with initialize_config_dir(str(CONF.parent), version_base="1.3"):
        values = compose("train", [f"parallel={path.stem}"]).parallel
    dims = dacite.from_dict(ParallelDims, OmegaConf.to_container(values), dacite.Config(strict=True, cast=[tuple]))
    world = int(first[first.index("--nproc-per-node") + 1]) if "torchrun" in first else 1
    assert dims.resolve(world).model_size * dims.resolve(world).data == world
    assert f"parallel={path.stem}" in first


def test_a_layout_is_told_in_words():
    dims = ParallelDims(tensor=2, context=2, pipeline=2, virtual_pipeline=2, recompute="full", precision="bf16")
    assert dims.resolve(16).describe() == (
        "2 tensor with sequence parallelism x 2 context x 2 pipeline of 2 stages each x 2 data, ZeRO-1, bf16, "
        "full recomputation"
    )
    assert ParallelDims(precision="fp32", deterministic=True).resolve(1).describe().endswith("fp32, deterministic")
