"""Cells from run folders: `config.yaml` and `metrics.jsonl`."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from model.dit import DiTConfig
from model.flops import parameter_count
from scaling.cell import Cell, read_cells
from trainer.compose import to_dataclass
from trainer.config import TrainConfig
from trainer.metrics import read_metrics

CELLS_NAME = "cells.jsonl"
"""What a sweep collected of its cells."""


def read_runs(folders: Sequence[Path]) -> list[Cell]:
    """A cell per run folder; a sweep's folder gives what it collected, any other its runs one level down."""
    cells = []
    for folder in folders:
        if (folder / CELLS_NAME).is_file():
            cells += read_cells(folder / CELLS_NAME)
            continue
        runs = [folder] if (folder / "config.yaml").is_file() else sorted(p for p in folder.glob("*/") if p.is_dir())
        if not runs:
            raise ValueError(f"{folder} holds no run: give run folders, or a folder of them")
        cells += [cell_of_run(run) for run in runs]
    return cells


def cell_of_run(folder: Path) -> Cell:
    """The end of a run from its `config.yaml` and `metrics.jsonl`; broken where the last step has no held-out loss."""
    try:
        config, rows = settings_of_run(folder), rows_of_run(folder)
    except ValueError as error:
        return Cell(name=folder.name, broken=str(error))
    return cell_of_record(folder.name, config, rows)


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
    """A run's `metrics.jsonl`; ValueError where a line is no row of one."""
    try:
        rows = read_metrics(folder)
    except UnicodeDecodeError as error:
        raise ValueError(f"its metrics.jsonl cannot be read ({error})") from error
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            raise ValueError(f"line {number} of its metrics.jsonl is no row of a run: {json.dumps(row)[:60]}")
    return rows


def cell_of_record(name: str, config: dict[str, Any], rows: Sequence[dict[str, Any]]) -> Cell:
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
    seed, variant = identity_of(config)
    return Cell(
        name=name,
        parameters=float(parameter_count(model).non_embedding),
        tokens=tokens,
        flops=flops,
        loss=loss,
        standard_error=heldout.get("heldout/standard_error"),
        seed=seed,
        variant=variant,
    )


def identity_of(config: dict[str, Any]) -> tuple[int | None, str]:
    """A run's seed, and what else tells it apart from runs of its size and length; (None, "") for settings of old."""
    try:
        settings = to_dataclass(TrainConfig, config).defining()
    except ValueError:
        return None, ""
    seed = int(settings.pop("seed"))
    for name in ("run.steps", "schedule.warmup_steps"):  # follow from the seed's packs
        del settings[name]
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    return seed, f"lr {settings['schedule.lr']:.3g}, settings {digest}"
