"""Cells whose loss was measured on other clips, levels, weights or data are left out by name."""

import json

import pytest
import yaml

from data.balance import PackCost
from data.mixture import MixConfig
from data.plan import FILE_NAME, PlanConfig
from scaling.alike import measured_in, require_alike, told_apart
from scaling.cell import Cell, write_cells
from scaling.run_cell import read_runs
from tests.scaling.test_run_cell import END, MODEL

SAME = {"evaluation": {"max_samples": 8, "levels": 4, "caption_kind": "short"}, "text": {"pad_to": None}}


def write_run(folder, *, shards="a" * 64, clips=(2, 2), changes=None):
    folder.mkdir(parents=True)
    config = {"model": MODEL, "run": {"steps": 10, "ema_half_life_fraction": 0.03}, "seed": 0} | SAME | (changes or {})
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "metrics.jsonl").write_text(json.dumps(END) + "\n")
    losses = {f"shot{number}": [1.0] * count for number, count in enumerate(clips)}
    (folder / "heldout.json").write_text(json.dumps(losses))
    sizes = {"tokens_per_pack": 16, "packs_per_step": 1, "window": 16, "limit_samples": None}
    rest = {"mix": MixConfig(), "curriculum": (), "cost": PackCost()}
    PlanConfig(folders={"latents": 1.0}, seed=0, **sizes, **rest).write(folder, shards=shards)


@pytest.mark.parametrize(
    ("odd", "why"),
    [
        ({"shards": "b" * 64}, "shards bbbbbbbbbbbb, there aaaaaaaaaaaa; that is other data"),
        ({"clips": (2, 1)}, "held-out clips 3 of 2 sources, there 4 of 2 sources"),
        ({"clips": (1, 3)}, "other held-out sources"),
        ({"changes": {"evaluation": SAME["evaluation"] | {"levels": 8}}}, "evaluation.levels 8, there 4"),
        ({"changes": {"run": {"steps": 10, "ema_half_life_fraction": 0.1}}}, "run.ema_half_life_fraction 0.1"),
        ({"changes": {"text": {"pad_to": 512}}}, "text.pad_to 512, there None"),
    ],
)
def test_the_odd_one_of_three_is_left_out_by_name(tmp_path, odd, why):
    for name, changes in (("a", {}), ("b", odd), ("c", {})):
        write_run(tmp_path / "runs" / name, **changes)
    cells = {cell.name: cell.broken for cell in read_runs([tmp_path / "runs"])}
    assert cells["a"] == cells["c"] == ""
    assert cells["b"].startswith("its loss was not measured as that of a and 1 more was: ") and why in cells["b"]


def test_collected_sweeps_are_compared_with_one_another(tmp_path):
    for name, shards in (("first", "a" * 64), ("second", "b" * 64)):
        write_run(tmp_path / name / "runs" / name, shards=shards)
        write_cells(tmp_path / name / "cells.jsonl", [Cell(name=name, parameters=1, tokens=2, flops=3, loss=4)])
    first, second = read_runs([tmp_path / "first", tmp_path / "second"])
    assert not first.broken and "that is other data" in second.broken


def test_what_is_not_known_differs_from_nothing_and_the_broken_have_no_say():
    cells = [Cell(name=name, broken=why) for name, why in (("a", ""), ("b", ""), ("c", "killed"), ("d", "killed"))]
    other = {"evaluation.levels": 8, "shards": "b"}
    how = [{"evaluation.levels": 4, "shards": "a"}, {"evaluation.levels": 4}, other, other]
    assert require_alike(cells, how) == cells


def test_a_damaged_file_breaks_its_run_by_name(tmp_path):
    for name in ("a", "b"):
        write_run(tmp_path / "runs" / name)
    (tmp_path / "runs/a/heldout.json").write_text('{"shot0": [1.')
    a, b = read_runs([tmp_path / "runs"])
    assert "its heldout.json cannot be read" in a.broken and not b.broken
    (tmp_path / "runs/b" / FILE_NAME).write_text("{")
    with pytest.raises(ValueError, match=FILE_NAME):
        measured_in(tmp_path / "runs/b")


def test_what_runs_of_a_size_differ_in_tells_them_apart_but_length_and_seed_do_not(tmp_path):
    for name, lr, warmup in (("a", 1e-3, 1), ("b", 2e-3, 1), ("c", 1e-3, 9)):
        write_run(tmp_path / "runs" / name, changes={"schedule": {"lr": lr, "warmup_steps": warmup}, "seed": len(name)})
    cells = read_runs([tmp_path / "runs"])
    assert [(cell.variant, cell.seed) for cell in cells] == [(f"schedule.lr {lr}", 1) for lr in (1e-3, 2e-3, 1e-3)]
    sizes = [Cell(name="x", parameters=1.0), Cell(name="y", parameters=2.0)]
    assert told_apart(sizes, [{"schedule": {"lr": 1}}, {"schedule": {"lr": 2}}]) == sizes
