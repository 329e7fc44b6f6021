"""Fit a scaling law to finished runs, and say what a budget buys.

python -m scaling.fit runs/sweep                            run folders, or a folder of them
python -m scaling.fit --cells cells.jsonl                   what scaling.sweep collected
python -m scaling.fit --csv FILE --n COLUMN --c COLUMN --loss COLUMN [--drop-highest K]
python -m scaling.fit --wandb ENTITY/PROJECT [--group NAME]

Writes law.json, law.png and law.html. Exit code 2 where the cells carry no law.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from rich.console import Console
from rich.table import Table

from data.command import command
from scaling.cell import Cell, Columns, left_out_lines, read_cells, read_csv, sound_and_broken
from scaling.envelope import Envelope, fit_envelope
from scaling.extrapolation import LeftOut, ParabolaBias, leave_highest_out, parabola_bias
from scaling.interval import Interval
from scaling.isoflop import Parabolas, fit_parabolas
from scaling.law import CELLS, Law, Prediction, fit_law
from scaling.law_plot import curves_of, law_figure, write_html, write_png

T = TypeVar("T")
_ROUNDING = 1e-9
_TRUSTED_FACTOR = 10.0
"""Further than this beyond the largest cell nothing here has been tried."""
_FAR_OFF, _LEAST_SCATTER = 10, 1e-3
"""So many times what runs deviate by, which is this at least, a cell is told of."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """A law and everything that says how far to trust it; what could not be had is the sentence that says why."""

    cells: list[Cell]
    broken: list[Cell]
    law: Law
    envelope: Envelope | str
    parabolas: Parabolas | str
    left_out: LeftOut | str
    bias: ParabolaBias | str
    predictions: list[Prediction]


def study(cells: Sequence[Cell], *, budgets: Sequence[float] = (), draws: int = 1000, seed: int = 0) -> Study:
    """Fit sound cells by all methods. ValueError, with what to add, where they carry no law."""
    sound, broken = sound_and_broken(cells)
    sound.sort(key=lambda cell: (cell.flops, cell.parameters))
    _say(f"fitting {len(sound)} cells ({len(broken)} left out), {draws} redrawn fits")
    try:
        law = fit_law(sound, draws=draws, seed=seed)
    except ValueError:  # what is missing may be among these
        for line in left_out_lines(broken):
            _say(line)
        raise
    _say("fitting without the highest budget, the envelope and the parabolas")
    parabolas = _or_why(lambda: _parabolas(law, draws, seed))
    return Study(
        cells=sound,
        broken=broken,
        law=law,
        envelope=_or_why(lambda: fit_envelope(sound, draws=draws, seed=seed)),
        parabolas=parabolas,
        left_out=_or_why(lambda: leave_highest_out(sound, draws=min(draws, 500), seed=seed)),
        bias=_or_why(lambda: parabola_bias(law)),
        predictions=[law.predict(budget) for budget in budgets or [_TRUSTED_FACTOR * law.largest]],
    )


def _parabolas(law: Law, draws: int, seed: int) -> Parabolas:
    """ValueError too where so many redrawn minima are lost that their slope has no interval."""
    found = fit_parabolas(law.grid, draws=draws, seed=seed)
    found.exponent()
    return found


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _or_why(part: Callable[[], T]) -> T | str:
    """What a part finds, or its sentence on what is missing, which the report prints in its place."""
    try:
        return part()
    except ValueError as error:
        return str(error)


def paragraph(law: Law, told: Prediction) -> str:
    """The prediction in words."""
    far = f"{told.times_largest:.3g} times the largest fitted budget"
    smallest = float(np.exp(law.grid.log_c.min()))
    if told.budget < smallest * (1 - _ROUNDING):
        far = f"{told.budget / smallest:.3g} times the smallest fitted budget, below all of them"
        if told.budget * _TRUSTED_FACTOR < smallest:
            far += ", and further than such laws are usually trusted"
    elif told.times_largest <= 1 + _ROUNDING:
        far = "inside the fitted budgets"
    elif told.times_largest > _TRUSTED_FACTOR:
        far += ", further than such laws are usually trusted: train a run in between first"
    text = (
        f"For a budget of {told.budget:.3g} FLOPs, train {_amount(told.parameters)} parameters on "
        f"{_amount(told.tokens)} tokens and expect a loss of {told.loss.value:.4g}; 95 of 100 such runs should end "
        f"between {told.loss.low:.4g} and {told.loss.high:.4g}. That is {far}."
    )
    if law.kind == "compute":
        text += (
            f" {law.grid.places} cells carry a law in compute only: what another size would reach at this budget "
            f"is not claimed, nor alpha and beta; {CELLS} cells or more would tell."
        )
    return text + "".join(f" Note: {note}." for note in law.notes())


def _amount(value: Interval) -> str:
    return f"{value.value:.3g} ({value.low:.3g} to {value.high:.3g})"


def table_rows(found: Study) -> list[tuple[str, str]]:
    """What is printed: name and value with its interval."""
    law = found.law
    kind = "L = E + A/N^alpha + B/D^beta" if law.kind == "parametric" else "L = E + K/C^gamma"
    cells = f"{law.grid.places} cells" + (f" ({len(found.cells)} runs)" if law.grid.places < len(found.cells) else "")
    rows = [("law", f"{kind}, {cells}, {len(law.params_SK) - 1} redrawn fits ({law.lost} lost)")]
    rows += [(name, f"{value:.4g}") for name, value in law.table().items()]
    rows += [("note", note) for note in [*law.notes(), *far_off(found)]]
    rows += [("sum of Huber terms", f"{law.objective:.8f}")] if law.kind == "parametric" else []
    rows += [("a run deviates by", f"{law.scatter:.2%} of the loss"), ("another seed", _seeds_text(law))]
    worst = int(np.nanargmax(np.abs(law.residual)))
    rows += [("largest residual", f"{found.cells[worst].name}: {np.expm1(law.residual[worst]):+.2%} of the loss")]
    if isinstance(found.envelope, Envelope):
        rows += [("N exponent, envelope", f"{found.envelope.parameters_exponent:.4g}")]
    else:
        rows += [("envelope", found.envelope)]
    if isinstance(found.parabolas, Parabolas):
        rows += [("N exponent, parabolas", f"{found.parabolas.exponent():.4g}")]
        rows += [("a budget left out", reason) for reason in found.parabolas.refused if law.kind == "compute"]
    else:
        rows += [("parabolas", found.parabolas)]
    if isinstance(found.bias, ParabolaBias):
        bias = found.bias
        rows += [
            (
                "bias of parabolas here",
                f"exponent {bias.exponent:.4f} for {bias.true_exponent:.4f}; size at 10x {bias.size_ratio:.3f} of best",
            )
        ]
    else:
        rows += [("bias of parabolas here", found.bias)]
    return [*rows, ("highest budget left out", _left_out_text(found.left_out))]


def far_off(found: Study) -> list[str]:
    """Notes on cells that no scatter of runs explains. Robust as it is, a fit gives way to them."""
    law = found.law
    return [
        f"{cell.name} lies {np.expm1(off):+.1%} off the law, more than {_FAR_OFF} times what runs deviate by: look at "
        "that run, or leave it out"
        for cell, off in zip(found.cells, law.residual, strict=True)
        if abs(off) > _FAR_OFF * max(law.scatter, _LEAST_SCATTER)
    ]


def _seeds_text(law: Law) -> str:
    noise, degrees = law.grid.seed_noise
    if not degrees:
        return "unknown: no cell was run with several seeds, so the scatter of cells has to tell"
    return f"{noise:.2%} of the loss (standard deviation, {degrees} degrees of freedom)"


def _left_out_text(left_out: LeftOut | str) -> str:
    if isinstance(left_out, str):
        return f"not to be told: without it, {left_out}"
    return (
        f"{len(left_out.names)} cells, {left_out.times_largest:.3g}x: best {left_out.predicted:.4g} predicted, "
        f"{left_out.observed:.4g} seen; error {left_out.relative_error:.2%} "
        f"(no change: {left_out.no_change_error:.2%}); {left_out.inside:.0%} inside the interval"
    )


def print_study(found: Study, console: Console) -> None:
    """Table, cells left out by name, paragraphs."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in table_rows(found):
        table.add_row(name, value)
    console.print(table)
    for line in left_out_lines(found.broken):
        console.print(line, highlight=False)
    for told in found.predictions:
        console.print("\n" + paragraph(found.law, told), highlight=False)


def as_json(found: Study) -> dict[str, Any]:
    """Everything printed, as plain data."""
    law = found.law
    return {
        "kind": law.kind,
        "cells": len(found.cells),
        "largest_flops": law.largest,
        "constants": {name: asdict(value) for name, value in law.table().items()},
        "objective": law.objective,
        "lost_fits": law.lost,
        "notes": [*law.notes(), *far_off(found)],
        "residuals": {
            cell.name: round(float(value), 6)
            for cell, value in zip(found.cells, law.residual, strict=True)
            if np.isfinite(value)
        },
        "left_out_cells": {cell.name: cell.broken for cell in found.broken},
        "envelope": _plain(found.envelope),
        "parabolas": found.parabolas
        if isinstance(found.parabolas, str)
        else {"exponent": asdict(found.parabolas.exponent()), "refused": found.parabolas.refused},
        "highest_budget_left_out": _plain(found.left_out),
        "parabola_bias": _plain(found.bias),
        "predictions": [asdict(told) | {"in_words": paragraph(law, told)} for told in found.predictions],
    }


def _plain(part: Any) -> Any:
    return asdict(part) if is_dataclass(part) and not isinstance(part, type) else part


def write_study(found: Study, folder: Path) -> list[Path]:
    """law.json, law.png, law.html."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / name for name in ("law.json", "law.png", "law.html")]
    paths[0].write_text(json.dumps(as_json(found), indent=1) + "\n", encoding="utf-8")
    words = " ".join(paragraph(found.law, told) for told in found.predictions)
    parabolas = found.parabolas if isinstance(found.parabolas, Parabolas) else None
    curves = curves_of(found.law, parabolas, found.predictions)
    write_png(found.law, curves, paths[1])
    write_html(law_figure(found.law, curves, [cell.name for cell in found.cells]), paths[2], words=words)
    return paths


def cells_of(given: argparse.Namespace) -> list[Cell]:
    """Cells from wherever the command line says; ValueError for none, or for several sources."""
    sources = [name for name in ("runs", "cells", "csv", "wandb") if getattr(given, name)]
    if len(sources) != 1:
        raise ValueError(f"give one source of cells (run folders, --cells, --csv or --wandb), not {sources or 'none'}")
    if given.csv:
        if not (given.n and given.loss and (given.c or given.d)):
            raise ValueError("--csv needs --n COLUMN, --loss COLUMN, and --c COLUMN or --d COLUMN")
        cells = read_csv(given.csv, Columns(parameters=given.n, loss=given.loss, flops=given.c, tokens=given.d))
    elif given.cells:
        cells = read_cells(given.cells)
    # Imported here: torch and W&B take seconds, which a table does not need.
    elif given.wandb:
        from scaling.wandb_runs import read_project

        cells = read_project(given.wandb, group=given.group)
    else:
        from scaling.run_cell import read_runs

        cells = read_runs(given.runs)
    return _without_highest(cells, given.drop_highest)


def _without_highest(cells: list[Cell], count: int) -> list[Cell]:
    sound, broken = sound_and_broken(cells)
    if not 0 <= count <= len(sound):
        raise ValueError(f"--drop-highest {count} must lie between 0 and the {len(sound)} sound cells")
    ranked = sorted(sound, key=lambda cell: cell.loss, reverse=True)
    dropped = [
        Cell(name=cell.name, broken=f"loss {cell.loss:.4g} is one of the {count} highest") for cell in ranked[:count]
    ]
    names = {cell.name for cell in dropped}
    return [cell for cell in sound if cell.name not in names] + broken + dropped


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scaling.fit", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUNS", help="run folders, or folders of them")
    add = parser.add_argument
    add("--cells", type=Path, metavar="FILE", help="cells as JSON lines")
    add("--csv", type=Path, metavar="FILE", help="a table with a header")
    add("--n", metavar="COLUMN", help="of the CSV: parameters")
    add("--c", metavar="COLUMN", help="of the CSV: training FLOPs (default: 6 N D)")
    add("--d", metavar="COLUMN", help="of the CSV: tokens (default: C / 6 N)")
    add("--loss", metavar="COLUMN", help="of the CSV: final loss")
    add("--drop-highest", type=int, default=0, metavar="K", help="leave out the K highest losses")
    add("--wandb", metavar="ENTITY/PROJECT", help="finished runs of a W&B project")
    add("--group", help="of the W&B project: only this group")
    add("--budget", type=float, action="append", metavar="FLOPS", help="predict for it (default: 10x the largest cell)")
    add("--bootstraps", type=int, default=1000, metavar="B", help="redrawn fits (default: %(default)s)")
    add("--seed", type=int, default=0, help="of the redrawing (default: %(default)s)")
    add("--out", type=Path, default=Path("runs/fit"), metavar="FOLDER", help="default: %(default)s")
    return parser


@command()
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; the exit code."""
    given = _parser().parse_args(arguments)
    started = time.perf_counter()
    if given.bootstraps < 100:
        raise ValueError(f"--bootstraps {given.bootstraps} must be 100 or more for a 95 % interval")
    cells = cells_of(given)
    found = study(cells, budgets=given.budget or (), draws=given.bootstraps, seed=given.seed)
    print_study(found, Console(width=None if sys.stdout.isatty() else 160))
    paths = write_study(found, given.out)
    print(f"\n{', '.join(map(str, paths))} written; {time.perf_counter() - started:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
