"""Layouts: legal ones resolve, the others are refused with the arithmetic and a way out."""

from pathlib import Path

import dacite
import pytest
import yaml

from parallel.dims import ParallelDims, split_blocks

CONF = Path(__file__).parents[2] / "conf" / "parallel"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tensor": 0}, "parallel.tensor is 0"),
        ({"context": 2}, r"parallel.context is 2, but context parallelism is not in this version; set parallel.cont"),
        ({"zero_stage": 3}, r"parallel.zero_stage is 3, but only ZeRO-1 .* set parallel.zero_stage=1"),
        ({"timeout_s": 0.0}, "parallel.timeout_s is 0.0"),
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
    assert ParallelDims().resolve(1) == ParallelDims(data=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tensor": 8}, r"parallel.tensor=8 does not divide model.num_heads=12 .*; .* are 6 and 12"),
        ({"tensor": 5}, r"tensor=5 .*num_heads=12 \(12 = 2 x 5 \+ 2\); .* are 4 and 6"),
        ({"pipeline": 7}, r"parallel.pipeline=7 stages need a block each, but model.num_blocks is 6; set par"),
    ],
)
def test_models_that_cannot_be_split_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ParallelDims(**options).check_model(num_heads=12, ffn_dim=48, num_blocks=6)


def test_packs_that_cannot_be_shared_are_refused():
    dims = ParallelDims(tensor=4).resolve(8)
    dims.check_packs(tokens_per_pack=1024, packs_per_step=4)
    with pytest.raises(ValueError, match=r"tokens_per_pack=1022 .* 4 equal shards .*; use 1020 or 1024"):
        dims.check_packs(tokens_per_pack=1022, packs_per_step=4)
    with pytest.raises(ValueError, match=r"packs_per_step=3 .* parallel.data=2 .* \(3 = 1 x 2 \+ 1\); use 2 or 4"):
        dims.check_packs(tokens_per_pack=1024, packs_per_step=3)
    ParallelDims(tensor=4, sequence=False).resolve(4).check_packs(tokens_per_pack=1022, packs_per_step=1)


@pytest.mark.parametrize(
    ("blocks", "stages", "counts"), [(8, 2, [4, 4]), (7, 2, [4, 3]), (10, 4, [2, 3, 3, 2]), (11, 4, [3, 3, 3, 2])]
)
def test_blocks_are_split_evenly_with_the_ends_light(blocks, stages, counts):
    parts = split_blocks(blocks, stages)
    assert [end - first for first, end in parts] == counts
    assert [first for first, _ in parts] == [0, *(end for _, end in parts[:-1])]
    assert parts[-1][1] == blocks


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_layouts_are_legal_for_the_processes_their_first_line_starts(path):
    text = path.read_text()
    dims = dacite.from_dict(ParallelDims, yaml.safe_load(text), dacite.Config(strict=True))
    first = text.splitlines()[0].split()
    world = int(first[first.index("--nproc-per-node") + 1]) if "torchrun" in first else 1
    assert dims.resolve(world).model_size * dims.resolve(world).data == world
    assert f"parallel={path.stem}" in first
