"""Cells from the runs of a W&B project, through the public API."""

from typing import Any

import wandb

from scaling.alike import measured, require_alike, told_apart
from scaling.cell import Cell
from scaling.run_cell import cell_of_record


def read_project(path: str, *, group: str | None = None) -> list[Cell]:
    """A cell per run of `ENTITY/PROJECT`, of one group where it is given. ValueError where W&B does not answer."""
    try:
        runs = list(wandb.Api().runs(path, filters={"group": group} if group else None))
    except (wandb.errors.Error, ValueError) as error:
        raise ValueError(f"W&B project {path} could not be read ({error}): check the name and `wandb login`") from error
    if not runs:
        raise ValueError(f"W&B project {path} has no runs" + (f" in group {group}" if group else ""))
    settings = [_nested(run.config) for run in runs]
    cells = told_apart([cell_of_wandb(run) for run in runs], settings)
    return require_alike(cells, [measured(one) for one in settings])


def cell_of_wandb(run: Any) -> Cell:
    """The end of a run by its settings and history, as a run folder's `metrics.jsonl` would tell it."""
    name = f"{run.name} ({run.id})"
    if run.state not in ("finished", "running"):
        return Cell(name=name, broken=f"W&B calls it {run.state}")
    config = _nested(run.config)
    if "model" not in config or "run" not in config:
        return Cell(name=name, broken="its W&B config has no model and run: another program wrote it")
    rows = [*run.scan_history(keys=["step", "tokens", "flops", "heldout/loss", "heldout/ratio_to_zero"])]
    # Asked for alone: W&B gives rows that have all of what is asked for, and runs need not log a gap.
    gaps = [*run.scan_history(keys=["step", "heldout/loss", "heldout/gap"])]
    return cell_of_record(name, config, [*gaps, *rows])


def _nested(flat: dict[str, Any]) -> dict[str, Any]:
    """`model.dim` -> ["model"]["dim"]."""
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *groups, last = key.split(".")
        inner = nested
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[last] = value
    return nested
