"""Train a grid of runs, each to the end of its own schedule: sizes, budgets, rates, or any grid of Hydra's.

python -m scaling.sweep sweep=isoflop 'train={experiment: demo}' dry_run=true
python -m scaling.sweep sweep=isoflop 'train={experiment: demo}' launcher=slurm cluster=bare_metal ranks=8
"""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import hydra
from omegaconf import DictConfig

from parallel.launch import Launch
from scaling.array import Array, count_ends, in_queue
from scaling.attempts import Attempts
from scaling.grid import GridConfig, PlannedCell, Planner, names, points, word
from scaling.ladder import LadderConfig
from scaling.live import in_words
from scaling.local import LocalRuns, locked, runs_here
from scaling.outcome import Outcome, comparable, outcome_of, record
from scaling.pace import Pace
from scaling.run_cell import CELLS_NAME, MOST_GAP_GROWTH
from slurm.cluster import ClusterConfig
from slurm.compose import configs
from trainer.compose import EXIT_INTERRUPTED, to_dataclass, user_errors

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
    """Where what is missing is run: here, or as an array of SLURM jobs, which a later call finds again."""
    cluster: ClusterConfig
    """For SLURM."""
    ranks: int = 1
    """Processes of each cell; on SLURM as many nodes as hold them."""
    jobs: int | None = None
    """Cells that run at once; None is one here, and as many as SLURM lets."""
    retries: int = 1
    """Further attempts at a cell that failed."""
    most_gap_growth: float = MOST_GAP_GROWTH
    """Left out are cells whose gap from training to held-out clips ends by more of the loss above its smallest."""
    flops_per_s: float | None = None
    """For the times that are foretold; None takes what finished cells reached, else a measurement on this machine."""
    dry_run: bool = False

    def __post_init__(self) -> None:
        for name in ("ranks", "jobs"):
            if (number := getattr(self, name)) is not None and number < 1:
                raise ValueError(f"{name}={number} must be at least 1")
        if self.retries < 0 or self.most_gap_growth < 0:
            raise ValueError(f"retries={self.retries} and most_gap_growth={self.most_gap_growth} must not be negative")

    @property
    def path(self) -> Path:
        return Path(self.folder)


def compose_train(words: Sequence[str]) -> DictConfig:
    """What `trainer.train` would get from these words."""
    with configs():
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


@dataclass(frozen=True, kw_only=True)
class Survey:
    """All cells as they lie."""

    outcomes: list[Outcome]
    todo: list[Outcome]
    """Cells to be run."""
    at_work: dict[str, str]
    """Cells that a job or a process has in hand, and its state: `queued` or `running`."""
    given_up: dict[str, str]
    """Cells that are not tried again, and why."""

    def state(self, one: Outcome) -> str:
        """In a word or two."""
        if one.is_done:
            return f"loss {one.cell.loss:.4f}"
        if one.is_left_out or one.planned.name in self.given_up:
            return "left out"
        doing = self.at_work.get(one.planned.name, "")
        at = f"step {one.step}" if one.has_started else ""
        return " ".join(filter(None, (doing, at))) or "missing"


class Sweep:
    """The cells of a sweep and what lies in its folder."""

    def __init__(self, config: SweepConfig) -> None:
        self.config, self._cells = config, {cell.name: cell for cell in plan(config)}

    def look(self, name: str) -> Outcome:
        """At one cell."""
        folder = self.config.path / "runs" / name
        return outcome_of(self._cells[name], folder, most_gap_growth=self.config.most_gap_growth)

    def survey(self, attempts: Attempts) -> Survey:
        """At all of them."""
        first = {name: self.look(name) for name in self._cells}
        queue = in_queue([one.folder for one in first.values() if not _is_settled(one)])
        # Once more, now that it is known which jobs have ended: one that ended in between has left its last rows.
        outcomes = comparable([one if _is_settled(one) else self.look(name) for name, one in first.items()])
        unfinished = [one for one in outcomes if not _is_settled(one)]
        if not self.config.dry_run:
            count_ends([one for one in unfinished if one.folder not in queue], attempts, log.info)
        here = {one.planned.name for one in unfinished if runs_here(one.folder)}
        given_up = {one.planned.name: why for one in unfinished if (why := attempts.gives_up(one.planned))}
        # A process that an earlier sweep left is waited for here, and does not reach a job on another machine.
        settled = given_up.keys() | (here if self.config.launcher == "slurm" else set())
        at_work = {one.planned.name: queue[one.folder] for one in unfinished if one.folder in queue}
        at_work |= dict.fromkeys(here, "running")
        return Survey(
            outcomes=[explained(one, attempts, at_work.get(one.planned.name, "")) for one in outcomes],
            todo=[one for one in unfinished if one.folder not in queue and one.planned.name not in settled],
            at_work=at_work,
            given_up=given_up,
        )

    def record(self, attempts: Attempts) -> Survey:
        """Write down what there is."""
        found = self.survey(attempts)
        record(self.config.path, found.outcomes)
        return found


def _is_settled(one: Outcome) -> bool:
    return one.is_done or one.is_left_out


def explained(one: Outcome, attempts: Attempts, doing: str) -> Outcome:
    """With the reason of its last attempt, where it came to no end."""
    if _is_settled(one):
        return one
    said = [one.cell.broken, f"now {doing}"] if doing else [one.cell.broken]
    if not doing and (tries := attempts.of(one.planned)):
        why = attempts.gives_up(one.planned) or f"{tries[-1].kind}, {tries[-1].why}"
        # Both have the run's last words.
        said = [why] if one.cell.broken in why else [one.cell.broken.removesuffix(f": {tries[-1].why}"), why]
    return replace(one, cell=replace(one.cell, broken="; ".join(said)))


def table(found: Survey, pace: Pace) -> list[str]:
    """A line for each cell."""
    lines = [_HEADINGS]
    for one in found.outcomes:
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
                found.state(one),
                cell.dims.describe(),
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(part.ljust(width) for part, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def run(config: SweepConfig) -> None:
    """Say what there is; run what is missing; write down what came of it."""
    Launch.require_single("scaling.sweep")
    sweep = Sweep(config)
    if config.dry_run:
        found = show(sweep, Attempts(config.path, retries=config.retries))
        if config.launcher == "slurm" and found.todo:
            log.info("\n%s\ndry_run=true: nothing was written or submitted", array_of(config).script(planned(found)))
        return
    with locked(config.path):
        attempts = Attempts(config.path, retries=config.retries)
        found = show(sweep, attempts)
        record(config.path, found.outcomes)
        if found.todo and config.launcher == "slurm":
            submit(array_of(config), planned(found), attempts)
        elif found.todo:
            runs = LocalRuns(sweep.look, attempts, jobs=config.jobs or 1, say=log.info)
            try:
                runs.run(found.todo, lambda: sweep.record(attempts))
            except KeyboardInterrupt:
                sweep.record(attempts)
                log.info("stopped; the same command goes on from here")
                sys.exit(EXIT_INTERRUPTED)
        summarise(config, sweep.record(attempts))


def show(sweep: Sweep, attempts: Attempts) -> Survey:
    """All cells, and how long what is missing will take."""
    config, found = sweep.config, sweep.survey(attempts)
    pace = Pace(config.flops_per_s, found.outcomes, measures=config.launcher == "local")
    for line in table(found, pace):
        log.info(line)
    expected = [pace.seconds(one.planned) for one in found.todo]
    at_once = config.jobs or (1 if config.launcher == "local" else max(len(expected), 1))
    whole = None if None in expected else sum(filter(None, expected)) / at_once
    log.info("%d cells, %d of them to be run, in about %s", len(found.outcomes), len(expected), in_words(whole))
    return found


def planned(found: Survey) -> list[PlannedCell]:
    """What is to be run."""
    return [one.planned for one in found.todo]


def array_of(config: SweepConfig) -> Array:
    """How it is submitted."""
    return Array(config.cluster, ranks=config.ranks, at_once=config.jobs)


def submit(array: Array, cells: Sequence[PlannedCell], attempts: Attempts) -> None:
    """Hand the cells in; those that could not run are told by name."""

    def refused(cell: PlannedCell, why: str) -> None:
        attempts.add(cell, "refused", why=why, code="")
        log.info("%s: not submitted, %s", cell.name, why)

    array.submit(cells, refused)


def summarise(config: SweepConfig, found: Survey) -> None:
    """What was left out, by name, and where the rest is; exit code 1 where nothing is left to fit, or to wait for."""
    done = [one for one in found.outcomes if one.is_done]
    for one in found.outcomes:
        if not one.is_done and one.planned.name not in found.at_work:
            log.info("left out: %s: %s", one.cell.name, one.cell.broken)
    waiting = f", {len(found.at_work)} queued or running" if found.at_work else ""
    log.info("%d of %d cells in %s%s", len(done), len(found.outcomes), config.path / CELLS_NAME, waiting)
    if found.at_work:
        log.info("the same command shows how far they are; python -m slurm.jobs status knows the jobs")
    elif not done:
        sys.exit(1)


@user_errors
@hydra.main(config_path="../conf", config_name="sweep", version_base="1.3")
@user_errors
def main(config: DictConfig) -> None:
    """Hydra's entry."""
    run(to_dataclass(SweepConfig, config))


if __name__ == "__main__":
    main()
