"""One page of a whole sweep that opens without a server: law, curves, samples, cost, failures.

python -m scaling.report runs/sweep [--out FILE]
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from data.command import command
from scaling.attempts import FILE_NAME as ATTEMPTS_NAME
from scaling.bet import FOLDER as BET
from scaling.bet import Prediction, in_words, read_prediction, read_result
from scaling.cell import Cell, read_cells, sound_and_broken
from scaling.fit import Study, paragraph, study, table_rows
from scaling.isoflop import Parabolas
from scaling.law_plot import curves_of, law_figure
from scaling.outcome import TABLE_NAME
from scaling.report_samples import samples_part
from scaling.run_cell import CELLS_NAME, read_runs, rows_of_run

_HELDOUT_KIND, _BUCKET = "heldout/loss_", "loss_bucket/"
"""Begin what is logged of held-out loss by noise level, and of training loss by bucket."""
_LAST = 0.2
"""Of a run, over which its loss by bucket is averaged."""
_STYLE = (
    "body{font-family:sans-serif;max-width:1200px;margin:auto}td,th{padding:2px 12px;text-align:left;"
    "vertical-align:top}img{max-width:100%}"
)


def page(folder: Path, *, draws: int = 1000) -> str:
    """The HTML of a sweep's folder. A sweep that carries no law yet says so in its place."""
    runs = {path.parent.name: path.parent for path in sorted(folder.rglob("metrics.jsonl"))}
    cells, told = read_runs([folder]), read_prediction(folder / BET)
    path = folder / BET / CELLS_NAME
    held_out = read_cells(path) if path.is_file() else []
    try:
        sound, broken = sound_and_broken(cells)
        cells = [*sound, *broken]
        law = law_part(study(cells, budgets=[told.budget] if told else (), draws=draws), told, held_out)
    except ValueError as error:
        law = f"<p>No law yet: {escape(str(error))}</p>"
    rows = {name: _rows(run) for name, run in runs.items()}
    table = _table_rows(folder / TABLE_NAME) + _table_rows(folder / BET / TABLE_NAME)
    parts = {
        "Bet": bet_part(folder, told),
        "Law": law,
        "Training": curves_part(rows),
        "Cells": cells_part([*cells, *held_out], table),
        "Cost": cost_part([*cells, *held_out], rows),
        "Failures": failures_part([*cells, *held_out], folder),
        "Held-out loss by noise level": kinds_part(rows, _HELDOUT_KIND, share=0.0),
        "Training loss by bucket, over the last fifth of a run": kinds_part(rows, _BUCKET, share=_LAST),
        "Samples": samples_part([*cells, *held_out], runs, rows),
    }
    library = f"<script>{get_plotlyjs()}</script>"
    body = library + "".join(f"<h2>{title}</h2>{part}" for title, part in parts.items())
    head = f'<meta charset="utf-8"><title>{escape(folder.name)}</title><style>{_STYLE}</style>'
    return (
        f'<!doctype html><html lang="en"><head>{head}</head><body><h1>{escape(folder.name)}</h1>{body}</body></html>\n'
    )


def _rows(run: Path) -> list[dict[str, Any]]:
    try:
        return rows_of_run(run)
    except ValueError as error:
        print(f"no curves of {run.name}: {error}", file=sys.stderr)
        return []


def _table_rows(path: Path) -> list[dict[str, Any]]:
    """Lines of JSON; [] where there is no such file."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def bet_part(folder: Path, told: Prediction | None) -> str:
    """What was predicted, when, and what came of it."""
    if told is None:
        return "<p>None made: <code>python -m scaling.bet</code> makes one.</p>"
    lines = in_words(told, read_result(folder / BET))
    return "".join(f"<p>{escape(line)}</p>" for line in lines)


def law_part(found: Study, told: Prediction | None, held_out: Sequence[Cell]) -> str:
    """Words, constants and pictures, in which the runs that were bet on stand beside what was said of them."""
    parabolas = found.parabolas if isinstance(found.parabolas, Parabolas) else None
    figure = law_figure(
        found.law, curves_of(found.law, parabolas, found.predictions), [cell.name for cell in found.cells]
    )
    if told is not None:
        loss = told.loss
        ends = {"symmetric": False, "array": [loss.high - loss.value], "arrayminus": [loss.value - loss.low]}
        point = go.Scatter(x=[told.flops], y=[loss.value], error_y=ends, mode="markers", name="bet: predicted")
        figure.add_trace(point.update(marker={"color": "black", "symbol": "diamond"}), row=1, col=1)
        seen = [cell for cell in held_out if not cell.broken]
        point = go.Scatter(x=[cell.flops for cell in seen], y=[cell.loss for cell in seen], mode="markers")
        figure.add_trace(point.update(name="bet: observed", marker={"color": "#d62728", "symbol": "x"}), row=1, col=1)
    words = "".join(f"<p>{escape(paragraph(found.law, one))}</p>" for one in found.predictions)
    return words + _table(("", ""), table_rows(found)) + figure.to_html(full_html=False, include_plotlyjs=False)


def curves_part(rows: dict[str, list[dict[str, Any]]]) -> str:
    """Training and held-out loss over FLOPs."""
    figure = go.Figure()
    for name, of_run in rows.items():
        for key, mode in (("loss", "lines"), ("heldout/loss", "markers")):
            seen = [row for row in of_run if key in row and row.get("flops")]
            trace = go.Scatter(x=[row["flops"] for row in seen], y=[row[key] for row in seen], mode=mode)
            figure.add_trace(trace.update(name=f"{name} {key}", legendgroup=name))
    figure.update_xaxes(type="log", title="training FLOPs").update_yaxes(type="log", title="loss")
    return str(
        figure.update_layout(height=500, template="plotly_white").to_html(full_html=False, include_plotlyjs=False)
    )


def cells_part(cells: Sequence[Cell], table: Sequence[Mapping[str, Any]]) -> str:
    """What each cell is, and how often it saw its data."""
    known = {row["name"]: row for row in table}
    lines = []
    for cell in sorted((cell for cell in cells if not cell.broken), key=lambda cell: cell.flops):
        row = known.get(cell.name, {})
        numbers = [_number(value) for value in (cell.parameters, cell.tokens, cell.flops, cell.loss)]
        numbers += [_number(row.get(key)) for key in ("standard_error", "epochs", "unique_tokens", "gap", "lr")]
        lines.append((cell.name, *numbers, _number(cell.seed)))
    head = ("cell", "N", "D", "FLOPs", "held-out loss", "s.e.", "epochs", "unique tokens", "gap, of the loss", "lr")
    return _table((*head, "seed"), lines)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def cost_part(cells: Sequence[Cell], rows: Mapping[str, list[dict[str, Any]]]) -> str:
    """FLOPs, and where the time of all runs went; that of cells left out apart."""
    broken = {cell.name for cell in cells if cell.broken}
    lines, kinds = [], ("step", "data", "start", "evaluation", "samples", "checkpoints", "lost")
    for title, names in (("fitted or bet on", rows.keys() - broken), ("left out", rows.keys() & broken)):
        spent = [_spent(rows[name]) for name in names]
        flops = sum(max((row.get("flops", 0) for row in rows[name]), default=0) for name in names)
        seconds = [sum(one.get(kind, 0.0) for one in spent) for kind in kinds]
        lines.append(
            (title, str(len(names)), f"{flops:.3g}", *(f"{value / 3600:.3g}" for value in (*seconds, sum(seconds))))
        )
    return _table(("runs", "", "FLOPs", *(f"{kind}, h" for kind in kinds), "together, h"), lines)


def _spent(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Seconds of a run by what it did; `lost` is work that an interruption undid."""
    last: Mapping[str, Any] = next((row for row in reversed(rows) if "goodput/step_s" in row), {})
    found = {key.removeprefix("goodput/").removesuffix("_s"): value for key, value in last.items() if "goodput/" in key}
    if not found and rows:
        before, found["step"] = 0, 0.0
        for row in (row for row in rows if "s_per_step" in row):
            found["step"], before = found["step"] + row["s_per_step"] * (row["step"] - before), row["step"]
    return found


def failures_part(cells: Sequence[Cell], folder: Path) -> str:
    """Cells left out, by name, and attempts that came to no end."""
    broken = [(cell.name, cell.broken) for cell in cells if cell.broken]
    tries = _table_rows(folder / ATTEMPTS_NAME) + _table_rows(folder / BET / ATTEMPTS_NAME)
    left_out = _table(("cell", "why it is left out"), broken) if broken else "<p>No cell is left out.</p>"
    if not tries:
        return left_out + "<p>No attempt ended early.</p>"
    lines = [(str(one["name"]), str(one["code"]), str(one["why"])) for one in tries]
    return left_out + _table(("attempt at", "exit code", "why it ended"), lines)


def kinds_part(rows: Mapping[str, list[dict[str, Any]]], prefix: str, *, share: float) -> str:
    """Each run's losses by kind: the mean over that last share of its steps, or the last there is."""
    found = {}
    for name, of_run in rows.items():
        seen = [row for row in of_run if any(key.startswith(prefix) for key in row)]
        end = max((row["step"] for row in seen), default=0)
        values: dict[str, list[float]] = {}
        for row in (row for row in seen if row["step"] >= (1 - share) * end):
            for key in (key for key in row if key.startswith(prefix)):
                values.setdefault(key, []).append(row[key])
        found[name] = {key: sum(of_kind) / len(of_kind) for key, of_kind in values.items()}
    kinds = sorted({key for of_run in found.values() for key in of_run})
    lines = [(name, *(_number(of_run.get(key)) for key in kinds)) for name, of_run in found.items()]
    return _table(("cell", *(key.removeprefix(prefix) for key in kinds)), lines) if kinds else "<p>None logged.</p>"


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    def row(items: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(item)}</{tag}>" for item in items) + "</tr>"

    return f"<table>{row(head, 'th')}{''.join(row(line, 'td') for line in lines)}</table>"


@command()
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m scaling.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="of the sweep")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: report.html in the folder")
    given = parser.parse_args(arguments)
    if not given.folder.is_dir():
        raise ValueError(f"{given.folder} is no folder: give that of a sweep")
    path = given.out or given.folder / "report.html"
    path.write_text(page(given.folder), encoding="utf-8")
    print(f"{path} written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
