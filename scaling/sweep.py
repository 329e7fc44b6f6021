"""Train a grid of runs, each to the end of its own schedule: sizes, budgets, rates, or any grid of Hydra's.

python -m scaling.sweep sweep=isoflop 'train={experiment: demo}' dry_run=true
"""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import hydra
from omegaconf import DictConfig

from parallel.launch import Launch
from scaling.array import write_array
from scaling.grid import GridConfig, PlannedCell, Planner, names, points, word
from scaling.ladder import LadderConfig
from scaling.local import LocalRuns, locked
from scaling.outcome import Outcome, outcome_of, record
from scaling.pace import Pace
from scaling.run_cell import CELLS_NAME
from trainer.compose import to_dataclass, user_errors

log = logging.getLogger(__name__)
_HEADINGS = ("cell", "N", "D", "epochs", "steps", "FLOPs", "lr", "time", "state", "layout")


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """A sweep. It lives in `folder`; each cell is a run in `folder/runs`."""

    name: str
    folder: str
    grid: GridConfig
    ladder: LadderConfig
    train: dict[str, Any] | None = None
    """Settings of `trainer.train` that all cells share: `experiment: demo`, `data.folder: ...`."""
    launcher: Literal["local", "slurm"] = "local"
    ranks: int = 1
    """Processes of each cell."""
    jobs: int = 1
    """Cells that run at once on this machine."""
    retries: int = 1
    """Further attempts at a cell that failed."""
    most_gap_growth: float = 0.02
    """Left out are cells whose gap from training to held-out clips grows by more of the loss in the last part."""
    flops_per_s: float | None = None
    """For the times that are foretold; None takes what finished cells reached, else a measurement on this machine."""
    dry_run: bool = False

    def __post_init__(self) -> None:
        for name in ("ranks", "jobs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.retries < 0 or self.most_gap_growth < 0:
            raise ValueError(f"retries={self.retries} and most_gap_growth={self.most_gap_growth} must not be negative")

    @property
    def path(self) -> Path:
        return Path(self.folder)


def compose_train(words: Sequence[str]) -> DictConfig:
    """What `trainer.train` would get from these words."""
    return hydra.compose("train", overrides=list(words))


def plan(config: SweepConfig) -> list[PlannedCell]:
    """Every cell of the sweep, checked as far as can be without running it."""
    found = points(config.grid)
    base = [word(key, value) for key, value in (config.train or {}).items()]
    planner = Planner(base, config.grid, config.ladder, ranks=config.ranks, compose=compose_train)
    cells = []
    for name, point in zip(names(found), found, strict=True):
        tags = [tag for tag in (config.name, point.size) if tag]
        place: dict[str, Any] = {"name": name, "folder": str(config.path / "runs" / name), "wandb.group": config.name}
        place |= {"wandb.job_type": "sweep", "wandb.tags": tags}
        cells.append(planner.cell(name, point, [word(key, value) for key, value in place.items()]))
    return cells


def table(outcomes: Sequence[Outcome], pace: Pace, runs: LocalRuns) -> list[str]:
    """A line for each cell."""
    lines = [_HEADINGS]
    for one in outcomes:
        cell = one.planned
        lines.append(
            (
                cell.name,
                f"{cell.parameters:.3g}",
                f"{cell.tokens:.3g}",
                f"{cell.epochs:.2f}",
                str(cell.steps),
                f"{cell.flops:.3g}",
                f"{cell.config.schedule.lr:.2e}",
                in_words(pace.seconds(cell)),
                state(one, runs),
                cell.dims.describe(),
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(part.ljust(width) for part, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def state(one: Outcome, runs: LocalRuns) -> str:
    """In a word or two."""
    if one.is_done:
        return f"loss {one.cell.loss:.4f}"
    if runs.gives_up(one.cell.name) or one.is_left_out:
        return "left out"
    return f"step {one.step}" if one.has_started else "missing"


def in_words(seconds: float | None) -> str:
    """Of a duration."""
    if seconds is None:
        return "?"
    for unit, name in ((3600, "h"), (60, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.0f} s"


def run(config: SweepConfig) -> None:
    """Say what there is; run what is missing; write down what came of it."""
    Launch.require_single("scaling.sweep")
    cells = {cell.name: cell for cell in plan(config)}

    def look(name: str) -> Outcome:
        folder = config.path / "runs" / name
        return outcome_of(cells[name], folder, most_gap_growth=config.most_gap_growth)

    def all_outcomes() -> list[Outcome]:
        return [look(name) for name in cells]

    outcomes = all_outcomes()
    pace = Pace(config.flops_per_s, outcomes, measures=config.launcher == "local")
    runs = LocalRuns(config.path, look, jobs=config.jobs, retries=config.retries, say=log.info)
    for line in table(outcomes, pace, runs):
        log.info(line)
    todo = [one for one in outcomes if not (one.is_done or one.is_left_out or runs.gives_up(one.cell.name))]
    expected = [pace.seconds(one.planned) for one in todo]
    whole = None if None in expected else sum(filter(None, expected)) / config.jobs
    log.info("%d cells, %d of them to be run, in about %s", len(cells), len(todo), in_words(whole))
    if config.dry_run:
        return
    with locked(config.path):
        if todo and config.launcher == "slurm":
            submit(config, [one.planned for one in todo])
            return
        runs.run(todo, lambda: record(config.path, all_outcomes()))
        outcomes = all_outcomes()
        record(config.path, outcomes)
    summarise(config, outcomes)


def submit(config: SweepConfig, todo: Sequence[PlannedCell]) -> None:
    """Write the array of what is missing."""
    script = write_array(config.path, todo)
    log.info("RANKS_PER_NODE=%d sbatch %s   submits an array of %d cells", config.ranks, script, len(todo))


def summarise(config: SweepConfig, outcomes: Sequence[Outcome]) -> None:
    """What was left out, by name, and where the rest is; exit code 1 where nothing is left to fit."""
    broken = [one for one in outcomes if not one.is_done]
    for one in broken:
        log.info("left out: %s: %s", one.cell.name, one.cell.broken)
    log.info("%d of %d cells in %s", len(outcomes) - len(broken), len(outcomes), config.path / CELLS_NAME)
    if len(broken) == len(outcomes):
        sys.exit(1)


@user_errors
@hydra.main(config_path="../conf", config_name="sweep", version_base="1.3")
@user_errors
def main(config: DictConfig) -> None:
    """Hydra's entry."""
    run(to_dataclass(SweepConfig, config))


if __name__ == "__main__":
    main()
