"""Cells follow from axes: how many, how long, by which words, under which names."""

import math
from dataclasses import replace

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from model.flops import parameter_count
from scaling.grid import GridConfig, names, points, require_distinct, word
from scaling.ladder import LadderConfig, learning_rate, rung
from tests.scaling.sweep_case import LADDER, cell, planner


def test_there_is_a_cell_for_each_combination_and_the_cheap_ones_come_first():
    grid = GridConfig(sizes=("1m", 3e6), budgets=(1e12, 4e12), seeds=(0, 1), axes={"optim.beta2": (0.9, 0.95)})
    found = points(grid)
    assert len(found) == 16 == len(set(found))
    assert [point.budget for point in found] == [1e12] * 8 + [4e12] * 8
    called = names(found)
    assert called[:3:2] == ["1m-c1e12-beta2-0.9", "1m-c1e12-beta2-0.95"] and len(set(called)) == 16


def test_further_seeds_go_where_a_prediction_leans_most():
    grid = GridConfig(sizes=("1m", "2m", "4m"), budgets=(1e12, 4e12), middle_seeds=(1, 2))
    assert names(points(grid))[6:] == ["2m-c4e12-s1", "2m-c4e12-s2"]
    assert names(points(replace(grid, sizes=("4m", "1m", 2e6), budgets=(4e12, 1e12))))[6:] == [
        "2e06-c4e12-s1",
        "2e06-c4e12-s2",
    ]
    assert names(points(replace(grid, sizes=(), budgets=()))) == ["run", "s1", "s2"]


def test_samples_are_written_so_many_times_in_a_run(inputs):
    found = cell(inputs, made=planner(inputs, grid=GridConfig(train_samples=8, samples=2)), budget=1e8)
    assert found.config.run.sample_every == math.ceil(found.steps / 2)
    assert cell(inputs, budget=1e8).config.run.sample_every == 0


def test_names_say_what_differs_and_can_be_folders():
    assert names(points(GridConfig())) == ["run"]
    assert names(points(GridConfig(sizes=("1m", 3e6), seeds=(3,)))) == ["1m-s3", "3e06-s3"]
    before = names(points(GridConfig(sizes=("1m",), budgets=(1e12,))))
    assert before[0] in names(points(GridConfig(sizes=("1m", "2m"), budgets=(1e12, 2e12), seeds=(0, 1))))
    assert names(points(GridConfig(lr_factors=(0.5, 1, 2)))) == ["lr0.5", "run", "lr2"]
    awkward = names(points(GridConfig(axes={"data.mix.weights": ({"image": 0.5}, {})})))
    assert all(name.replace("-", "").replace(".", "").isalnum() for name in awkward) and len(set(awkward)) == 2
    with pytest.raises(ValueError, match="two cells that would be called 1m"):
        names(points(GridConfig(sizes=("1m", "1m"))))


@pytest.mark.parametrize(
    "value",
    [
        1,
        2.5e-4,
        True,
        None,
        "runs/a b/c",
        "a=b",
        'say "x\\y"',
        [1, "two"],
        {"image": 0.5, "b": [None]},
        "1e-3:x",
        "1e-3",
        "",
        "null",
    ],
)
def test_words_are_read_back_by_hydra(value):
    assert OverridesParser.create().parse_override(word("a.b", value)).value() == value


def test_a_cell_is_as_long_as_its_budget_says(inputs):
    made = planner(inputs)
    small, large = cell(inputs, made=made, budget=1e8), cell(inputs, made=made, budget=4e8)
    for found, budget in ((small, 1e8), (large, 4e8)):
        assert found.flops == pytest.approx(budget, rel=0.05)
        assert found.config.run.steps == found.steps
        assert found.epochs == found.tokens / found.unique_tokens
        assert found.config.schedule.warmup_steps == round(0.05 * found.steps)
    assert 3.6 < large.tokens / small.tokens < 4.4
    shape = rung(3e3, 8)
    assert (small.config.model.num_blocks, small.config.model.dim) == (shape.num_blocks, shape.dim)
    assert small.parameters == parameter_count(small.config.model).blocks
    assert small.config.schedule.lr == pytest.approx(learning_rate(LADDER, shape.size), rel=1e-5)


def test_sizes_of_one_budget_trade_parameters_for_tokens(inputs):
    made = planner(inputs)
    cells = [cell(inputs, made=made, size=size, budget=4e8) for size in ("1k", "4k", "16k")]
    assert [c.parameters for c in cells] == sorted(c.parameters for c in cells)
    assert [c.tokens for c in cells] == sorted((c.tokens for c in cells), reverse=True)
    assert max(c.flops for c in cells) / min(c.flops for c in cells) < 1.1


def test_tokens_for_each_parameter_make_a_ladder(inputs):
    grid = GridConfig(tokens_per_parameter=2, evaluations=3)
    found = cell(inputs, made=planner(inputs, grid=grid), budget=None)
    assert found.tokens == pytest.approx(2 * found.parameters, rel=0.02)
    assert found.config.run.evaluate_every * 3 >= found.steps


def test_without_axes_a_cell_is_the_run_itself(inputs):
    made = planner(inputs, run__steps=30, schedule__lr=5e-3)
    found = cell(inputs, made=made, size=None, budget=None)
    assert (found.steps, found.config.schedule.lr, found.config.model.num_blocks) == (30, 5e-3, 4)
    assert cell(inputs, made=made, size=None, budget=None, lr_factor=2.0).config.schedule.lr == 1e-2
    assert cell(inputs, made=made, size=None, budget=None, words=("optim.beta2=0.9",)).config.optim.beta2 == 0.9
    shorter = cell(inputs, made=made, size=None, budget=None, words=("run.steps=50", "schedule.warmup_steps=9"))
    assert (shorter.steps, shorter.config.schedule.warmup_steps) == (50, 9)


def test_mup_keeps_the_rate_and_knows_the_base_width(inputs):
    made = planner(inputs, ladder=replace(LADDER, mup=True))
    cells = [cell(inputs, made=made, size=size) for size in ("1k", "16k")]
    assert {c.config.schedule.lr for c in cells} == {LADDER.lr}
    assert {c.config.model.mup_base_dim for c in cells} == {rung(LADDER.base_size, 8).dim}
    flat = replace(LADDER, mup=True, num_blocks=3)
    made = planner(inputs, ladder=flat)
    cells = [cell(inputs, made=made, size=size) for size in ("1k", "16k")]
    assert {c.config.model.num_blocks for c in cells} == {3}
    assert {c.config.model.mup_base_dim for c in cells} == {rung(LADDER.base_size, 8, 3).dim}


def test_sizes_that_are_one_model_are_refused():
    with pytest.raises(ValueError, match="grid.sizes 1m and 900k are the same model, 3 blocks of width 128"):
        require_distinct(["1m", "900k"], LadderConfig())
    require_distinct(["1m", "1.6m"], LadderConfig(head_dim=32))


def test_several_ranks_get_a_layout_that_holds_the_model(inputs):
    tight = replace(LADDER, memory_gib=2.5e-4)
    small, large = (
        cell(inputs, made=planner(inputs, ladder=tight, ranks=2, data__packs_per_step=2), size=size)
        for size in ("1k", "8k")
    )
    assert (small.dims.tensor, small.dims.data) == (1, 2)
    assert (large.dims.tensor, large.dims.data) == (2, 1)


def test_cells_that_make_no_sense_are_refused(inputs):
    with pytest.raises(ValueError, match="would take 1 steps"):
        cell(inputs, budget=1e5)
    with pytest.raises(ValueError, match="schedule.kind=constant"):
        cell(inputs, made=planner(inputs, schedule__kind="constant"))
    with pytest.raises(ValueError, match=r"by its budget, but grid.axes says run.steps=50"):
        cell(inputs, words=("run.steps=50",))
    for wrong in (
        {"budgets": (1e9,), "tokens_per_parameter": 20},
        {"seeds": ()},
        {"budgets": (0.0,)},
        {"evaluations": 0},
    ):
        with pytest.raises(ValueError, match=f"grid.*{next(iter(wrong))}"):
            GridConfig(**wrong)
