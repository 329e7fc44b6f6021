"""Cells from run folders: `config.yaml` and `metrics.jsonl`."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from model.dit import DiTConfig
from model.flops import parameter_count
from scaling.alike import measured, measured_in, require_alike, told_apart
from scaling.cell import Cell, read_cells
from trainer.compose import to_dataclass
from trainer.metrics import read_metrics

CELLS_NAME = "cells.jsonl"
"""What a sweep collected of its cells."""
MOST_GAP_GROWTH = 0.02
"""Of the loss; the gap from training to held-out clips grows by more where data was repeated too often."""


def read_runs(folders: Sequence[Path]) -> list[Cell]:
    """A cell per run folder; a sweep's folder gives what it collected, any other its runs one level down.

    Broken too are those whose loss was measured otherwise than that of most.
    """
    cells: list[Cell] = []
    runs: list[Path] = []
    for folder in folders:
        if (folder / CELLS_NAME).is_file():
            collected = read_cells(folder / CELLS_NAME)
            cells, runs = cells + collected, runs + [folder / "runs" / cell.name for cell in collected]
            continue
        here = [folder] if (folder / "config.yaml").is_file() else sorted(p for p in folder.glob("*/") if p.is_dir())
        if not here:
            raise ValueError(f"{folder} holds no run: give run folders, or a folder of them")
        found = [cell_of_run(run) for run in here]
        settings = [{} if cell.broken else settings_of_run(run) for cell, run in zip(found, here, strict=True)]
        cells, runs = cells + told_apart(found, settings), runs + here
    return compared(cells, runs)


def compared(cells: Sequence[Cell], runs: Sequence[Path]) -> list[Cell]:
    """Cells of these run folders; broken are those whose loss was measured otherwise than that of most."""
    checked, how = [], []
    for cell, run in zip(cells, runs, strict=True):
        found: dict[str, Any] = {}
        if not cell.broken and run.is_dir():
            try:
                found = measured(settings_of_run(run)) | measured_in(run)
            except ValueError as damage:
                cell = replace(cell, broken=str(damage))
        checked.append(cell)
        how.append(found)
    return require_alike(checked, how)


def cell_of_run(folder: Path, *, most_gap_growth: float = MOST_GAP_GROWTH) -> Cell:
    """The end of a run from its `config.yaml` and `metrics.jsonl`; broken where the last step has no held-out loss."""
    try:
        config, rows = settings_of_run(folder), rows_of_run(folder)
    except ValueError as error:
        return Cell(name=folder.name, broken=str(error))
    return cell_of_record(folder.name, config, rows, most_gap_growth=most_gap_growth)


def settings_of_run(folder: Path) -> dict[str, Any]:
    """A run's `config.yaml`; ValueError where there is none, or it is torn."""
    if not (folder / "config.yaml").is_file():
        raise ValueError("it has no config.yaml: the run did not start")
    try:
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"its config.yaml cannot be read ({' '.join(str(error).split())})") from error
    if not isinstance(config, dict):
        raise ValueError("its config.yaml holds no settings" + ("" if config else ": it is empty"))
    return config


def rows_of_run(folder: Path) -> list[dict[str, Any]]:
    """A run's `metrics.jsonl` but for a torn last line; ValueError where any other is no row of one."""
    try:
        rows = read_metrics(folder)
        path = folder / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    except UnicodeDecodeError as error:
        raise ValueError(f"its metrics.jsonl cannot be read ({error})") from error
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            raise ValueError(f"line {number} of its metrics.jsonl is no row of a run: {json.dumps(row)[:60]}")
    if len(lines) > len(rows) + 1:
        raise ValueError(f"line {len(rows) + 1} of its metrics.jsonl is torn, and {len(lines)} are there")
    return rows


def gaps_of(rows: Sequence[dict[str, Any]]) -> list[float]:
    """Held-out loss above that of training clips, as a share of it, at each evaluation but that of the start."""
    found = {row["step"]: row for row in rows if _is_gap(row)}
    return [found[step]["heldout/gap"] / found[step]["heldout/loss"] for step in sorted(found)]


def _is_gap(row: dict[str, Any]) -> bool:
    numbers = [row.get(key) for key in ("heldout/gap", "heldout/loss")]
    return row["step"] > 0 and all(isinstance(one, int | float) for one in numbers) and row["heldout/loss"] > 0


def repetition(rows: Sequence[dict[str, Any]], most_gap_growth: float) -> str:
    """Why a run is left out whose gap to training clips ends that much above its smallest; empty where it does not."""
    gaps = gaps_of(rows)
    if len(gaps) < 2 or gaps[-1] - min(gaps) <= most_gap_growth:
        return ""
    return (
        f"the gap to training clips grows by {gaps[-1] - min(gaps):.1%} of the loss, from {min(gaps):.1%} to "
        f"{gaps[-1]:.1%} (most: {most_gap_growth:.1%}): data is repeated too often"
    )


def cell_of_record(
    name: str, config: dict[str, Any], rows: Sequence[dict[str, Any]], *, most_gap_growth: float = MOST_GAP_GROWTH
) -> Cell:
    """A cell from a run's settings and its logged rows, wherever they were kept."""
    try:
        model, steps = to_dataclass(DiTConfig, config["model"]), int(config["run"]["steps"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return Cell(name=name, broken=f"its settings are not those of a training run ({error})")
    last = max((row["step"] for row in rows), default=0)
    ends = [row for row in rows if row["step"] == last and "tokens" in row]
    if last < steps or not ends:
        return Cell(name=name, broken=f"it stopped at step {last} of {steps}")
    heldout = next((row for row in reversed(ends) if "heldout/loss" in row), None)
    if heldout is None:
        return Cell(name=name, broken=f"step {last} has no finite held-out loss: it diverged or was not evaluated")
    if heldout.get("heldout/ratio_to_zero", 0.0) >= 1.0:
        return Cell(name=name, broken=f"it diverged: held-out loss {heldout['heldout/loss']:.4g} is that of no model")
    numbers = {key: heldout.get(key) for key in ("tokens", "flops", "heldout/loss")}
    if wrong := [key for key, value in numbers.items() if not isinstance(value, int | float)]:
        return Cell(name=name, broken=f"step {last} has {wrong[0]} {numbers[wrong[0]]!r}, which is no number")
    tokens, flops, loss = (float(value) for value in numbers.values() if value is not None)
    return Cell(
        name=name,
        parameters=float(parameter_count(model).non_embedding),
        tokens=tokens,
        flops=flops,
        loss=loss,
        standard_error=heldout.get("heldout/standard_error"),
        seed=config["seed"] if isinstance(config.get("seed"), int) else None,
        broken=repetition(rows, most_gap_growth),
    )
