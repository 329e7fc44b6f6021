import json
import math
import time
from dataclasses import replace

import pytest
from hydra import compose, initialize_config_dir

from scaling import bet as module
from scaling.bet import (
    Prediction,
    Result,
    held_out,
    in_words,
    predict,
    read_prediction,
    read_result,
    settle,
    write_prediction,
    write_result,
)
from scaling.cell import Cell, write_cells
from scaling.interval import Interval
from scaling.sweep import SweepConfig
from tests.scaling.sweep_case import ROOT, settings
from trainer.compose import to_dataclass

TOLD = Prediction(
    written_at=1000.0,
    cells_sha256="ab" * 32,
    cells=12,
    kind="compute",
    budget=3e12,
    times_largest=3.0,
    seeds=(0, 1),
    recommended=Interval(value=4e5, low=3e5, high=5e5),
    size="400k",
    parameters=395_000,
    tokens=1e6,
    flops=3e12,
    steps=2000,
    loss=Interval(value=1.50, low=1.45, high=1.56),
    no_change=1.65,
)


def run_of(name, loss, **changes):
    return Cell(name=name, parameters=395_000, tokens=1e6, flops=3e12, loss=loss, **changes)


def small_sweep(inputs, folder):
    """Of four sizes and three budgets, on forty clips."""
    grid = {"sizes": ["1k", "3k", "6k", "12k"], "budgets": [2.5e7, 5e7, 1e8], "train_samples": 8}
    config = {
        "name": "small",
        "folder": str(folder),
        "train": settings(inputs),
        "grid": grid,
        "ladder": {"head_dim": 8, "base_size": 4e3, "lr": 1e-2},
    }
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        composed = compose("sweep")
    for key, value in config.items():
        composed[key] = {**composed[key], **value} if key in ("grid", "ladder") else value
    return to_dataclass(SweepConfig, composed)


def write_small_cells(config):
    """On a law whose best size is 3,000 times the square root of the budget over 5e7."""
    cells = []
    for name, size, budget in zip(
        module.names(module.points(config.grid)),
        [1e3, 3e3, 6e3, 12e3] * 3,
        [c for c in (2.5e7, 5e7, 1e8) for _ in "abcd"],
    ):
        off = math.log(size / 3e3) - 0.5 * math.log(budget / 5e7)
        wiggle = 1e-4 * math.sin(3 * size + budget)
        loss = (1 + 0.5 * (budget / 2.5e7) ** -0.3) * math.exp(0.02 * off**2 + wiggle)
        cells.append(Cell(name=name, parameters=size, tokens=budget / 6 / size, flops=budget, loss=loss))
    config.path.mkdir(parents=True)
    write_cells(config.path / "cells.jsonl", cells)
    return cells


def test_a_prediction_is_written_once_and_comes_back(tmp_path):
    write_prediction(tmp_path / "bet", TOLD)
    assert read_prediction(tmp_path / "bet") == TOLD
    with pytest.raises(ValueError, match=r"prediction.json is there already, and a prediction is written once"):
        write_prediction(tmp_path / "bet", replace(TOLD, no_change=2.0))
    assert read_prediction(tmp_path / "bet") == TOLD
    assert [path.name for path in (tmp_path / "bet").iterdir()] == ["prediction.json"]
    assert read_prediction(tmp_path) is None


def test_nothing_is_predicted_once_a_run_is_there(tmp_path):
    run = tmp_path / "bet" / "runs" / "400k-c3e12"
    run.mkdir(parents=True)
    (run / "metrics.jsonl").write_text("")
    with pytest.raises(ValueError, match="400k-c3e12 began before a prediction was written"):
        write_prediction(tmp_path / "bet", TOLD)
    assert read_prediction(tmp_path / "bet") is None


def test_a_prediction_that_was_changed_is_refused(tmp_path):
    (tmp_path / "prediction.json").write_text('{"written_at": 10')
    with pytest.raises(ValueError, match="prediction.json cannot be read"):
        read_prediction(tmp_path)


def test_another_bet_than_the_one_that_stands_is_refused(tmp_path):
    require = module.require_of_prediction
    times = TOLD.budget / (TOLD.flops / TOLD.times_largest)
    require(TOLD, tmp_path, None, None)
    require(TOLD, tmp_path, times, TOLD.seeds)
    with pytest.raises(
        ValueError, match=r"--times 5: the prediction in .* is written once: leave --times away, or move"
    ):
        require(TOLD, tmp_path, 5.0, None)
    with pytest.raises(ValueError, match=r"--seeds 7 8: the prediction in .* seeds 0 1, and is written once"):
        require(TOLD, tmp_path, None, (7, 8))


def test_a_result_is_of_the_prediction_beside_it(tmp_path):
    write_prediction(tmp_path, TOLD)
    result = settle(TOLD, [run_of("a", 1.52), run_of("b", 1.48)], {})
    write_result(tmp_path, result)
    assert read_result(tmp_path) == result
    (tmp_path / "prediction.json").unlink()
    assert read_result(tmp_path) is None
    write_prediction(tmp_path, replace(TOLD, no_change=3.0))
    assert read_result(tmp_path) is None


def test_runs_are_held_against_what_was_said():
    result = settle(TOLD, [run_of("a", 1.52), run_of("b", 1.48)], {"a": 1001.0, "b": 1002.0})
    mean = math.sqrt(1.52 * 1.48)
    assert result.inside == {"a": True, "b": True}
    assert result.is_won
    assert result.error == pytest.approx(1.50 / mean - 1)
    assert result.ratio == pytest.approx((1.50 / mean - 1) / (1.65 / mean - 1))
    words = "\n".join(in_words(TOLD, result))
    assert "a loss of 1.5000 (1.4500 to 1.5600)" in words
    assert "a: loss 1.5200, inside the interval" in words
    assert "ratio 0.00, at most 0.33" in words
    assert words.endswith("the bet is won")


def test_one_seed_outside_loses_the_bet():
    result = settle(TOLD, [run_of("a", 1.57), run_of("b", 1.50)], {})
    assert result.inside == {"a": False, "b": True}
    assert "a: loss 1.5700, OUTSIDE the interval" in in_words(TOLD, result)
    assert in_words(TOLD, result)[-1] == "the bet is lost"


def test_an_interval_so_wide_that_no_change_would_do_loses_the_bet():
    wide = replace(TOLD, loss=Interval(value=1.50, low=1.2, high=1.9))
    result = settle(wide, [run_of("a", 1.59), run_of("b", 1.60)], {})
    assert all(result.inside.values())
    assert result.ratio > 1
    assert "NOT at most 0.33" in in_words(wide, result)[-2]
    assert not result.is_won


def test_a_run_that_began_before_the_prediction_is_refused():
    with pytest.raises(ValueError, match="b began before the prediction was written"):
        settle(TOLD, [run_of("a", 1.5), run_of("b", 1.5)], {"a": 1001.0, "b": 999.0})


def test_a_law_of_twelve_cells_says_what_a_larger_run_will_cost_and_come_to(inputs, tmp_path):
    config = small_sweep(inputs, tmp_path / "sweep")
    cells = write_small_cells(config)
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        told = predict(config, times=3.2, seeds=(0, 1), draws=200)
    assert (told.kind, told.cells, told.budget) == ("compute", 12, 3.2e8)
    assert told.no_change == min(cell.loss for cell in cells[8:])
    best = 3e3 * math.sqrt(3.2e8 / 5e7)
    assert told.recommended.value == pytest.approx(best, rel=0.05)
    assert told.flops == pytest.approx(3.2e8, rel=0.05)
    off = math.log(told.parameters / best)
    truth = (1 + 0.5 * (told.flops / 2.5e7) ** -0.3) * math.exp(0.02 * off**2)
    assert told.loss.value == pytest.approx(truth, rel=0.01)
    assert told.loss.low < truth < told.loss.high
    assert abs(told.written_at - time.time()) < 60


def test_a_sweep_that_has_not_ended_is_no_ground_for_a_bet(inputs, tmp_path):
    config = small_sweep(inputs, tmp_path / "sweep")
    with pytest.raises(ValueError, match="cells.jsonl is not there: run `python -m scaling.sweep`"):
        predict(config, times=3.2, seeds=(0,), draws=100)
    write_cells(tmp_path / "cells.jsonl", [])
    config.path.mkdir()
    write_cells(config.path / "cells.jsonl", [run_of("1k-c2.5e07", 1.0)])
    with pytest.raises(ValueError, match="11 cells of the sweep have not ended"):
        predict(config, times=3.2, seeds=(0,), draws=100)


def test_a_sweep_over_other_axes_is_no_ground_for_a_bet(inputs, tmp_path):
    config = small_sweep(inputs, tmp_path / "sweep")
    held = held_out(config, "20k", 1e9, (3, 4))
    assert (held.folder, held.name) == (str(tmp_path / "sweep" / "bet"), "small-bet")
    assert (held.grid.sizes, held.grid.budgets, held.grid.seeds) == (("20k",), (1e9,), (3, 4))
    rates = replace(config, grid=replace(config.grid, lr_factors=(0.5, 1.0)))
    with pytest.raises(ValueError, match=r"a bet is on a law of sizes and budgets"):
        held_out(rates, "20k", 1e9, (0,))


@pytest.mark.slow
def test_a_bet_is_run_and_settled_and_stands(inputs, tmp_path, monkeypatch, caplog):
    """Through `bet` itself: a prediction, two real runs, and the same words again run nothing."""
    config = small_sweep(inputs, tmp_path / "sweep")
    write_small_cells(config)
    monkeypatch.chdir(ROOT)
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        caplog.set_level("INFO")
        first = module.bet(config, times=3.2, seeds=(0, 1), draws=200)
        files = {path: path.stat().st_mtime_ns for path in config.path.rglob("metrics.jsonl")}
        again = module.bet(config, times=3.2, seeds=(0, 1), draws=200)
    assert isinstance(first, Result)
    assert first == again
    assert len(first.losses) == 2
    assert files == {path: path.stat().st_mtime_ns for path in config.path.rglob("metrics.jsonl")}
    assert json.loads((config.path / "bet" / "result.json").read_text())["losses"] == first.losses
    assert sum("the bet is" in line for line in caplog.messages) == 2
