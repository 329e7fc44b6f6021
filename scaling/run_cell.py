"""Cells from run folders: `config.yaml` and `metrics.jsonl`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from model.dit import DiTConfig
from model.flops import parameter_count
from scaling.cell import Cell, read_cells
from trainer.compose import to_dataclass
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
    path = folder / "config.yaml"
    if not path.is_file():
        return Cell(name=folder.name, broken="it has no config.yaml: the run did not start")
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    return cell_of_record(folder.name, config, read_metrics(folder))


def cell_of_record(name: str, config: dict[str, Any], rows: Sequence[dict[str, Any]]) -> Cell:
    """A cell from a run's settings and its logged rows, wherever they were kept."""
    try:
        model, steps = to_dataclass(DiTConfig, config["model"]), int(config["run"]["steps"])
    except (ValueError, KeyError, TypeError) as error:
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
    return Cell(
        name=name,
        parameters=float(parameter_count(model).non_embedding),
        tokens=float(heldout["tokens"]),
        flops=float(heldout["flops"]),
        loss=float(heldout["heldout/loss"]),
        standard_error=heldout.get("heldout/standard_error"),
    )
