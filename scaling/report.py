"""One page of a whole sweep that opens without a server: law, curves, samples, cost, failures.

python -m scaling.report runs/sweep [--out FILE]
"""

import argparse
import base64
import sys
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from scaling.cell import Cell
from scaling.fit import Study, paragraph, study, table_rows
from scaling.isoflop import Parabolas
from scaling.law_plot import curves_of, law_figure
from scaling.run_cell import read_runs, rows_of_run

_PER_KIND = "heldout/loss_"
"""Begins what is logged of held-out loss by noise level or bucket."""


def page(folder: Path, *, draws: int = 1000) -> str:
    """The HTML of a sweep's folder. A sweep that carries no law yet says so in its place."""
    runs = {path.parent.name: path.parent for path in sorted(folder.rglob("metrics.jsonl"))}
    cells = read_runs([folder])
    try:
        law = law_part(study(cells, draws=draws))
    except ValueError as error:
        law = f"<p>No law yet: {escape(str(error))}</p>"
    rows = {name: _rows(run) for name, run in runs.items()}
    parts = {
        "Law": law,
        "Training": curves_part(rows),
        "Cells": cells_part(cells, rows),
        "Failures": failures_part(cells),
        "Held-out loss by kind": kinds_part(rows),
        "Samples by compute": samples_part(cells, runs),
    }
    library = f"<script>{get_plotlyjs()}</script>"
    body = library + "".join(f"<h2>{title}</h2>{part}" for title, part in parts.items())
    style = "body{font-family:sans-serif;max-width:1200px;margin:auto}td,th{padding:2px 12px;text-align:left}"
    head = f'<meta charset="utf-8"><title>{escape(folder.name)}</title><style>{style} img{{max-width:100%}}</style>'
    return (
        f'<!doctype html><html lang="en"><head>{head}</head><body><h1>{escape(folder.name)}</h1>{body}</body></html>\n'
    )


def _rows(run: Path) -> list[dict[str, Any]]:
    try:
        return rows_of_run(run)
    except ValueError as error:
        print(f"no curves of {run.name}: {error}", file=sys.stderr)
        return []


def law_part(found: Study) -> str:
    """Words, constants and pictures."""
    parabolas = found.parabolas if isinstance(found.parabolas, Parabolas) else None
    curves = curves_of(found.law, parabolas, found.predictions)
    figure = law_figure(found.law, curves, [cell.name for cell in found.cells])
    words = "".join(f"<p>{escape(paragraph(found.law, told))}</p>" for told in found.predictions)
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


def cells_part(cells: Sequence[Cell], rows: dict[str, list[dict[str, Any]]]) -> str:
    """What each cell is and what it cost."""
    lines = []
    for cell in sorted((cell for cell in cells if not cell.broken), key=lambda cell: cell.flops):
        seconds, before = 0.0, 0
        for row in rows.get(cell.name, ()):
            if "s_per_step" in row:
                seconds, before = seconds + row["s_per_step"] * (row["step"] - before), row["step"]
        numbers = [f"{value:.4g}" for value in (cell.parameters, cell.tokens, cell.flops, cell.loss)]
        lines.append((cell.name, *numbers, f"{seconds / 3600:.3g}" if seconds else ""))
    return _table(("cell", "N", "D", "FLOPs", "held-out loss", "hours of training"), lines)


def failures_part(cells: Sequence[Cell]) -> str:
    """Cells left out, by name."""
    broken = [(cell.name, cell.broken) for cell in cells if cell.broken]
    return _table(("cell", "why it is left out"), broken) if broken else "<p>None.</p>"


def kinds_part(rows: dict[str, list[dict[str, Any]]]) -> str:
    """The last held-out losses by noise level or bucket."""
    last: dict[str, dict[str, Any]] = {
        name: next((row for row in reversed(of_run) if "heldout/loss" in row), {}) for name, of_run in rows.items()
    }
    kinds = sorted({key for row in last.values() for key in row if key.startswith(_PER_KIND)})
    lines = [(name, *(f"{row[key]:.4g}" if key in row else "" for key in kinds)) for name, row in last.items()]
    return _table(("cell", *(key.removeprefix(_PER_KIND) for key in kinds)), lines) if kinds else "<p>None logged.</p>"


def samples_part(cells: Sequence[Cell], runs: dict[str, Path]) -> str:
    """The last sheet of each run, in order of compute: same prompts, same seeds."""
    shown = []
    for cell in sorted((cell for cell in cells if not cell.broken), key=lambda cell: cell.flops):
        sheets = sorted((runs[cell.name] / "samples").glob("*.png")) if cell.name in runs else []
        if sheets:
            data = base64.b64encode(sheets[-1].read_bytes()).decode()
            words = f"{cell.name}: {cell.flops:.3g} FLOPs, {sheets[-1].stem}"
            shown.append(f'<p>{escape(words)}</p><img alt="{escape(words)}" src="data:image/png;base64,{data}">')
    return "".join(shown) or "<p>None written.</p>"


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    def row(items: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(item)}</{tag}>" for item in items) + "</tr>"

    return f"<table>{row(head, 'th')}{''.join(row(line, 'td') for line in lines)}</table>"


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m scaling.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="of the sweep")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: report.html in the folder")
    given = parser.parse_args(arguments)
    try:
        if not given.folder.is_dir():
            raise ValueError(f"{given.folder} is no folder: give that of a sweep")
        path = given.out or given.folder / "report.html"
        path.write_text(page(given.folder), encoding="utf-8")
        print(f"{path} written")
        return 0
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; nothing was written, and the same command starts again", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
