"""The rule behind the ladder: shapes, rates, batches and layouts follow from a size."""

import math
from pathlib import Path

import pytest
import yaml

from model.dit import DiTConfig
from model.flops import parameter_count
from scaling.ladder import (
    LadderConfig,
    Rung,
    learning_rate,
    packs_per_step,
    parse_size,
    rung,
    rung_of_heads,
    tensor_ranks,
)

SHIPPED = sorted((Path(__file__).parents[2] / "conf/model").glob("ladder_*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_rungs_follow_from_their_names(path):
    shipped = yaml.safe_load(path.read_text())
    made = rung(parse_size(path.stem.removeprefix("ladder_")))
    names = ("num_blocks", "num_heads", "head_dim", "ffn_dim")
    assert {name: getattr(made, name) for name in names} == {name: shipped[name] for name in names}


@pytest.mark.parametrize("head_dim", [32, 64, 128])
def test_a_rung_is_the_nearest_there_is(head_dim):
    every = [rung_of_heads(n, head_dim) for n in [*range(1, 8), *range(8, 80, 2)]]
    sizes = [one.size for one in every]
    assert sizes == sorted(set(sizes))
    for size in (1e4, 3e5, 1e6, 2e7, 4e8, 3e9):
        assert rung(size, head_dim) == min(every, key=lambda one: abs(math.log(one.size / size)))


def test_at_one_depth_sizes_differ_in_width_alone():
    shapes = [rung(size, 16, 2) for size in (74e3, 131e3, 205e3, 295e3, 401e3, 524e3, 819e3)]
    assert [(shape.num_blocks, shape.num_heads) for shape in shapes] == [(2, n) for n in (3, 4, 5, 6, 7, 8, 10)]


def test_the_size_is_that_of_the_blocks_but_for_biases_norms_and_tables():
    shape = rung(3e7)
    config = DiTConfig(
        num_blocks=shape.num_blocks, num_heads=shape.num_heads, head_dim=64, ffn_dim=shape.ffn_dim, text_dim=384
    )
    assert parameter_count(config).blocks == pytest.approx(shape.size, rel=0.01)


@pytest.mark.parametrize(("text", "size"), [("1m", 1e6), ("290M", 2.9e8), ("1.5b", 1.5e9), ("64k", 64e3), (5e5, 5e5)])
def test_sizes_are_read(text, size):
    assert parse_size(text) == pytest.approx(size)


@pytest.mark.parametrize("text", ["large", "m", "-1m", "0", "nan", "inf"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ValueError, match="size"):
        parse_size(text)


def test_rates_fall_and_batches_grow_with_size_and_mup_keeps_the_rate():
    config = LadderConfig(lr=1e-3, base_size=1e6, packs_per_step=8)
    assert learning_rate(config, 1e6) == pytest.approx(1e-3)
    assert learning_rate(config, 1e8) == pytest.approx(1e-3 * 100**-0.1619)
    assert learning_rate(LadderConfig(lr=1e-3, mup=True), 1e8) == 1e-3
    assert [packs_per_step(config, size, 4) for size in (1e4, 1e6, 1e8)] == [4, 8, 20]
    assert packs_per_step(LadderConfig(), 1e8, 4) is None


def test_a_model_takes_as_few_tensor_ranks_as_it_fits():
    config = LadderConfig(memory_gib=80)
    shape = Rung(num_blocks=40, num_heads=40, head_dim=128)
    assert tensor_ranks(config, rung(1e9), parameters=1_000_000_000, ranks=8) == 1
    assert tensor_ranks(config, shape, parameters=14_000_000_000, ranks=64) == 4
    with pytest.raises(ValueError, match="do not fit 2 devices of 80 GiB"):
        tensor_ranks(config, shape, parameters=14_000_000_000, ranks=2)


@pytest.mark.parametrize(
    "wrong", [{"lr": 0.0}, {"head_dim": 7}, {"packs_per_step": 0}, {"num_blocks": 0}, {"base_size": -1.0}]
)
def test_a_rule_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match=f"ladder.{next(iter(wrong))}"):
        LadderConfig(**wrong)
