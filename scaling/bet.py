"""Bet on a sweep's law: write down what it says of a larger run, make that run with several seeds, and compare.

python -m scaling.bet sweep=demo                    the words of `scaling.sweep`; at 3.2 times the largest fitted budget
python -m scaling.bet sweep=isoflop 'train={experiment: demo}' --times 10 --seeds 0 1 2

`bet/prediction.json` in the sweep's folder is written before the first of the runs starts and never again; the same
command goes on from there, and ends in `bet/result.json`. Exit code 1 where the bet is lost, or still open.
"""

import argparse
import hashlib
import json
import logging
import math
import os
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import hydra

from scaling.cell import Cell, left_out_lines, mean_loss, places, read_cells, sound_and_broken
from scaling.grid import names, points
from scaling.interval import Interval
from scaling.law import fit_law
from scaling.run_cell import CELLS_NAME, rows_of_run
from scaling.sweep import SweepConfig, plan, run
from slurm.compose import configs
from trainer.compose import to_dataclass, user_errors

log = logging.getLogger(__name__)
FOLDER, PREDICTION, RESULT = "bet", "prediction.json", "result.json"
_OF = "prediction_sha256"
"""In the result's file: of the prediction's."""
_TIMES, _SEEDS = 3.2, (0, 1)
"""Times the largest fitted budget: further than 3 also where a run ends a step early."""
_MOST_RATIO = 1 / 3
"""Of the error over that of predicting no change."""
_TOP = 1.25
"""Cells within this factor of the largest FLOPs are the largest budget."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What the law says of the runs that are to come, and what it was fitted to."""

    written_at: float
    """Seconds since 1970."""
    cells_sha256: str
    """Of the sweep's `cells.jsonl`."""
    cells: int
    kind: str
    """Of the law."""
    budget: float
    times_largest: float
    seeds: tuple[int, ...]
    recommended: Interval
    """Parameters that the law would train."""
    size: str
    """As `grid.sizes` takes it; the ladder's rung nearest to it has:"""
    parameters: float
    tokens: float
    flops: float
    steps: int
    loss: Interval
    """95 % of single runs should end in it."""
    no_change: float
    """The least mean loss of the largest fitted budget."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """How the runs ended."""

    losses: dict[str, float]
    inside: dict[str, bool]
    error: float
    """Of the prediction, relative to the mean loss."""
    no_change_error: float

    @property
    def ratio(self) -> float:
        return self.error / self.no_change_error

    @property
    def is_won(self) -> bool:
        """Every run ended inside the interval, and the law says far more of them than that nothing changes."""
        return all(self.inside.values()) and self.ratio <= _MOST_RATIO


def held_out(config: SweepConfig, size: str, budget: float, seeds: tuple[int, ...]) -> SweepConfig:
    """The sweep of the runs that are bet on. ValueError for a sweep over anything but sizes, budgets and seeds."""
    grid = config.grid
    if grid.axes or len(grid.lr_factors) > 1 or not (grid.sizes and grid.budgets):
        raise ValueError(
            "a bet is on a law of sizes and budgets: the sweep needs grid.sizes and grid.budgets, one of "
            "grid.lr_factors and no grid.axes"
        )
    grid = replace(grid, sizes=(size,), budgets=(budget,), seeds=seeds, middle_seeds=())
    # What repeated data do to the loss is part of what is bet on, so no run is left out for it.
    name, folder = f"{config.name}-bet", str(config.path / FOLDER)
    return replace(config, name=name, folder=folder, grid=grid, most_gap_growth=math.inf)


def predict(config: SweepConfig, *, times: float, seeds: tuple[int, ...], draws: int) -> Prediction:
    """Fit the sweep's cells and say what a run of `times` the largest budget will come to. ValueError where they end
    in no law, or are not all run yet.
    """
    path = config.path / CELLS_NAME
    if not path.is_file():
        raise ValueError(f"{path} is not there: run `python -m scaling.sweep` with the same words first")
    data, cells = path.read_bytes(), read_cells(path)
    if missing := sorted({*names(points(config.grid))} - {cell.name for cell in cells}):
        raise ValueError(
            f"{len(missing)} cells of the sweep have not ended ({missing[0]}, say): run `python -m scaling.sweep` "
            "with the same words first"
        )
    sound, broken = sound_and_broken(cells)
    for line in left_out_lines(broken):
        log.info(line)
    law = fit_law(sound, draws=draws)
    budget = float(f"{times * law.largest:.3g}")
    recommended = law.predict(budget).parameters
    size = in_thousands(recommended.value)
    cell = plan(held_out(config, size, budget, seeds))[0]
    return Prediction(
        written_at=time.time(),
        cells_sha256=hashlib.sha256(data).hexdigest(),
        cells=len(sound),
        kind=law.kind,
        budget=budget,
        times_largest=cell.flops / law.largest,
        seeds=seeds,
        recommended=recommended,
        size=size,
        parameters=cell.parameters,
        tokens=cell.tokens,
        flops=cell.flops,
        steps=cell.steps,
        loss=law.run_loss(math.log(cell.parameters), math.log(cell.tokens), math.log(cell.flops)),
        no_change=least_of_largest(sound),
    )


def least_of_largest(cells: list[Cell]) -> float:
    """The least mean loss of the largest budget."""
    largest = max(cell.flops for cell in cells)
    return min(mean_loss(place) for place in places(cells) if place[0].flops * _TOP >= largest)


def in_thousands(parameters: float) -> str:
    """As `grid.sizes` takes it."""
    return f"{parameters / 1e3:.3g}k" if parameters < 1e6 else f"{parameters / 1e6:.3g}m"


def write_prediction(folder: Path, told: Prediction) -> None:
    """Once: ValueError where there is one, or where runs are there already."""
    if runs := sorted((folder / "runs").glob("*/metrics.jsonl")):
        raise ValueError(
            f"{runs[0].parent} began before a prediction was written, so nothing can be bet on it: remove {folder}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    scratch = folder / f"{PREDICTION}.{os.getpid()}.tmp"
    scratch.write_text(json.dumps(asdict(told), indent=1) + "\n", encoding="utf-8")
    try:
        os.link(scratch, folder / PREDICTION)  # unlike a rename, fails where there is one
    except FileExistsError as error:
        raise ValueError(f"{folder / PREDICTION} is there already, and a prediction is written once") from error
    finally:
        scratch.unlink()


def read_prediction(folder: Path) -> Prediction | None:
    """What was written; None where nothing is. ValueError where it cannot be read."""
    path = folder / PREDICTION
    return to_dataclass(Prediction, _object(path)) if path.is_file() else None


def read_result(folder: Path) -> Result | None:
    """How the bet ended; None while it has not, and where the prediction is another one now."""
    path = folder / RESULT
    found = _object(path) if path.is_file() else {}
    if found.pop(_OF, "") != _sha256(folder / PREDICTION):
        return None
    return to_dataclass(Result, found)


def write_result(folder: Path, result: Result) -> None:
    """Beside the prediction that it is of."""
    found = asdict(result) | {_OF: _sha256(folder / PREDICTION)}
    (folder / RESULT).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "none"


def _object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} cannot be read ({error}): it was changed after it was written") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no settings: it was changed after it was written")
    return found


def settle(told: Prediction, cells: list[Cell], began: dict[str, float]) -> Result:
    """Compare the runs, all sound; `began` says when each logged its first row, ValueError where that was too early."""
    if early := sorted(name for name, at in began.items() if at < told.written_at):
        raise ValueError(f"{early[0]} began before the prediction was written, so nothing can be bet on it")
    losses = {cell.name: cell.loss for cell in cells}
    mean = mean_loss(cells)
    return Result(
        losses=losses,
        inside={name: told.loss.low <= loss <= told.loss.high for name, loss in losses.items()},
        error=abs(told.loss.value / mean - 1),
        no_change_error=abs(told.no_change / mean - 1),
    )


def in_words(told: Prediction, result: Result | None) -> list[str]:
    """Lines to print and to show."""
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(told.written_at))
    first = (
        f"predicted at {at} from {told.cells} cells (sha256 {told.cells_sha256[:12]}): {told.times_largest:.2f} times "
        f"the largest fitted budget, {told.flops:.3g} FLOPs, buys {told.parameters:.3g} parameters on "
        f"{told.tokens:.3g} tokens (the law: {told.recommended:.3g} parameters) and a loss of {told.loss:.4f}"
    )
    if result is None:
        return [first]
    lines = [first]
    for name, loss in result.losses.items():
        lines.append(f"{name}: loss {loss:.4f}, {'inside' if result.inside[name] else 'OUTSIDE'} the interval")
    share = f"{'at' if result.ratio <= _MOST_RATIO else 'NOT at'} most {_MOST_RATIO:.2f}"
    lines.append(
        f"error {result.error:.2%} of the mean loss; predicting no change ({told.no_change:.4f}): "
        f"{result.no_change_error:.2%}; ratio {result.ratio:.2f}, {share}"
    )
    return [*lines, f"the bet is {'won' if result.is_won else 'lost'}"]


def _began(folder: Path) -> dict[str, float]:
    """When each run logged its first row."""
    rows = {path.parent.name: rows_of_run(path.parent) for path in sorted(folder.glob("runs/*/metrics.jsonl"))}
    return {name: of_run[0]["time"] for name, of_run in rows.items() if of_run and "time" in of_run[0]}


def require_of_prediction(told: Prediction, folder: Path, times: float | None, seeds: tuple[int, ...] | None) -> None:
    """ValueError where another bet is asked for than the one that stands."""
    largest = told.flops / told.times_largest
    if times is not None and float(f"{times * largest:.3g}") != told.budget:
        asked = f"--times {times:g}"
    elif seeds is not None and sorted(seeds) != sorted(told.seeds):
        asked = f"--seeds {' '.join(map(str, seeds))}"
    else:
        return
    raise ValueError(
        f"{asked}: the prediction in {folder / PREDICTION} is for {told.budget / largest:.3g} times and seeds "
        f"{' '.join(map(str, told.seeds))}, and is written once: leave {asked.split()[0]} away, or move {folder} aside"
    )


def bet(config: SweepConfig, *, times: float | None, seeds: tuple[int, ...] | None, draws: int) -> Result | None:
    """Predict where that was not done, run what is missing, compare; None while a run has no loss."""
    folder = config.path / FOLDER
    told = read_prediction(folder)
    if told is None:
        told = predict(config, times=times or _TIMES, seeds=seeds or _SEEDS, draws=draws)
        write_prediction(folder, told)
    elif _sha256(config.path / CELLS_NAME) != told.cells_sha256:
        log.info("the sweep's cells have changed since the prediction was written, which stands as it is")
    require_of_prediction(told, folder, times, seeds)
    for line in in_words(told, None):
        log.info(line)
    held = held_out(config, told.size, told.budget, told.seeds)
    run(held)
    cells = read_cells(held.path / CELLS_NAME) if (held.path / CELLS_NAME).is_file() else []
    ended = [cell for cell in cells if not cell.broken]
    if missing := sorted({*names(points(held.grid))} - {cell.name for cell in ended}):
        why = next((cell.broken for cell in cells if cell.name == missing[0]), "it has not begun")
        log.info("the bet is open: %s has no loss (%s); the same command goes on from here", missing[0], why)
        return None
    result = settle(told, ended, _began(folder))
    write_result(folder, result)
    for line in in_words(told, result)[1:]:
        log.info(line)
    return result


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scaling.bet", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("words", nargs="*", metavar="SETTING", help="of the sweep, as scaling.sweep takes them")
    add("--times", type=float, help=f"the largest fitted budget (default: {_TIMES})")
    add("--seeds", type=int, nargs="+", help=f"of the runs (default: {' '.join(map(str, _SEEDS))})")
    add("--bootstraps", type=int, default=2000, metavar="B", help="redrawn fits (default: %(default)s)")
    return parser


@user_errors
def main() -> None:
    """Command line; exit code 1 where the bet is lost or open."""
    given = _parser().parse_intermixed_args()
    if given.times is not None and not 1 < given.times < math.inf:
        raise ValueError(f"--times {given.times:g} must be above 1, and finite")
    if given.bootstraps < 100:
        raise ValueError(f"--bootstraps {given.bootstraps} must be at least 100")
    with configs():
        config = to_dataclass(SweepConfig, hydra.compose("sweep", overrides=given.words))
        seeds = tuple(given.seeds) if given.seeds else None
        result = bet(config, times=given.times, seeds=seeds, draws=given.bootstraps)
    sys.exit(0 if result is not None and result.is_won else 1)


if __name__ == "__main__":
    main()
