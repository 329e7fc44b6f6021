"""What came of a cell: a point of the law, or the reason why it is left out."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from scaling.alike import measured
from scaling.cell import Cell, write_cells
from scaling.grid import PlannedCell
from scaling.run_cell import CELLS_NAME, cell_of_run, compared, gaps_of, rows_of_run, settings_of_run
from trainer.compose import to_dataclass
from trainer.config import TrainConfig, differences
from trainer.evaluation import standard_error
from trainer.metrics import HELDOUT_NAME

TABLE_NAME = "table.jsonl"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A cell's run as it lies in its folder."""

    cell: Cell
    planned: PlannedCell
    folder: Path
    rows: list[dict[str, Any]]

    @property
    def is_done(self) -> bool:
        return not self.cell.broken

    @property
    def is_left_out(self) -> bool:
        """It came to its end, and is no point of the law all the same."""
        return bool(self.cell.broken) and self.step == self.planned.steps

    @property
    def has_started(self) -> bool:
        return bool(self.rows)

    @property
    def step(self) -> int:
        return max((int(row["step"]) for row in self.rows), default=0)

    @property
    def seconds(self) -> float:
        """Of training alone."""
        timed, before, total = [row for row in self.rows if "s_per_step" in row], 0, 0.0
        for row in timed:
            total, before = total + row["s_per_step"] * (row["step"] - before), row["step"]
        return total

    @property
    def last_alert(self) -> tuple[str, float]:
        """Its kind and time; empty and 0 where there is none."""
        alerts = [row for row in self.rows if isinstance(row.get("alert"), dict)]
        return (str(alerts[-1]["alert"].get("kind", "")), float(alerts[-1].get("time", 0))) if alerts else ("", 0.0)

    def row(self) -> dict[str, Any]:
        """For the table of a sweep."""
        cell, planned, gaps = self.cell, self.planned, gaps_of(self.rows)
        plain = {key: value for key, value in asdict(cell).items() if key != "curve" and value == value}
        return plain | {
            "folder": str(self.folder),
            "steps": planned.steps,
            "lr": planned.config.schedule.lr,
            "layout": planned.dims.describe(),
            "planned_tokens": round(planned.tokens),
            "planned_flops": planned.flops,
            "unique_tokens": planned.unique_tokens,
            "epochs": round(planned.epochs, 4),
            "gap": round(gaps[-1], 6) if gaps else None,
            "smallest_gap": round(min(gaps), 6) if gaps else None,
            "seconds": round(self.seconds, 2),
        }


def outcome_of(planned: PlannedCell, folder: Path, *, most_gap_growth: float) -> Outcome:
    """What lies in a run folder, held against what was planned."""
    cell = replace(cell_of_run(folder, most_gap_growth=most_gap_growth), name=planned.name)
    cell = replace(cell, seed=planned.config.seed, variant=planned.variant)
    try:
        rows = rows_of_run(folder)
        changed = _changed(planned, folder) if rows else ()
    except ValueError as damage:
        return Outcome(cell=replace(cell, broken=str(damage)), planned=planned, folder=folder, rows=[])
    if changed:
        cell = Cell(name=planned.name, broken=f"its folder holds a run of other settings ({'; '.join(changed)})")
    elif cell.broken and (error := last_error(folder)):
        cell = replace(cell, broken=f"{cell.broken}: {error}")
    return Outcome(cell=cell, planned=planned, folder=folder, rows=rows)


def _changed(planned: PlannedCell, folder: Path) -> list[str]:
    saved = to_dataclass(TrainConfig, settings_of_run(folder))
    now = planned.config
    return differences(saved.defining() | measured(asdict(saved)), now.defining() | measured(asdict(now)))


def last_error(folder: Path) -> str:
    """The last line of a run's log that says why it ended; empty where none does."""
    path = folder / "log.txt"
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    return next((line.partition("error: ")[2] for line in reversed(lines) if "error: " in line), "")


def paired_errors(outcomes: Sequence[Outcome]) -> Mapping[str, float]:
    """Standard error of each finished cell's loss against the mean of all, clustered by source.

    That clips differ in difficulty is common to all cells and drops out. Empty where cells have no clips in common.
    """
    losses: dict[str, dict[str, list[float]]] = {}
    for one in outcomes:
        path = one.folder / HELDOUT_NAME
        if one.is_done and path.is_file():
            losses[one.cell.name] = json.loads(path.read_text(encoding="utf-8"))
    shapes = {tuple((source, len(values)) for source, values in of_cell.items()) for of_cell in losses.values()}
    if len(losses) < 2 or len(shapes) != 1:
        return {}
    (shape,) = shapes
    sources = [source for source, count in shape for _ in range(count)]
    table = np.array([np.concatenate([*of_cell.values()]) for of_cell in losses.values()])
    return dict(zip(losses, (standard_error(row, sources) for row in table - table.mean(0)), strict=True))


def comparable(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """All, with those broken whose loss was measured otherwise than that of most."""
    cells = compared([one.cell for one in outcomes], [one.folder for one in outcomes])
    return [replace(one, cell=cell) for one, cell in zip(outcomes, cells, strict=True)]


def _with_error(one: Outcome, error: float | None) -> Outcome:
    return one if error is None else replace(one, cell=replace(one.cell, standard_error=error))


def record(folder: Path, outcomes: Sequence[Outcome]) -> None:
    """Write `cells.jsonl`, with broken cells under their reason, and `table.jsonl`, with all that is known."""
    outcomes = [one for one in outcomes if one.folder.is_dir()]
    errors = paired_errors(outcomes)
    outcomes = [_with_error(one, errors.get(one.cell.name)) for one in outcomes]
    scratch = folder / f"{CELLS_NAME}.tmp"
    write_cells(scratch, [one.cell for one in outcomes])
    scratch.replace(folder / CELLS_NAME)
    table = "".join(json.dumps(one.row()) + "\n" for one in outcomes)
    (folder / TABLE_NAME).write_text(table, encoding="utf-8")
