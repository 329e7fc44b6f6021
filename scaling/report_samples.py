"""Samples of a sweep's runs side by side: along one run, and over compute, always from the same prompts and seeds."""

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from scaling.cell import Cell

Rows = list[dict[str, Any]]
MULTIPLES = (1, 4, 32)
"""Of the smallest compute."""
_NONE = (
    "<p>None written: grid.samples=2, say, and samples.prompts in the settings of the runs have a sweep write them.</p>"
)


@dataclass(frozen=True, kw_only=True)
class Column:
    """What one run wrote at one step."""

    heading: str
    folder: Path
    sheet: str
    videos: Sequence[Mapping[str, Any]]
    """Each with `path`, `prompt` and `seed`."""


def samples_part(cells: Sequence[Cell], runs: Mapping[str, Path], rows: Mapping[str, Rows]) -> str:
    """Two comparisons, each prompt's videos beside each other and the sheets of stills below."""
    shown = sorted(
        (cell for cell in cells if not cell.broken and _written(rows.get(cell.name, []))), key=lambda cell: cell.flops
    )
    if not shown:
        return _NONE
    least, longest = shown[0].flops, shown[-1]
    by_compute = [
        _column(cell, f"{cell.flops / least:.3g}x compute: {cell.name}, loss {cell.loss:.4g}", runs, rows, -1)
        for cell in nearest(shown)
    ]
    along = [
        _column(longest, f"step {row['step']}", runs, rows, place)
        for place, row in enumerate(_written(rows[longest.name]))
    ]
    return (
        f"<h3>Over compute</h3>{comparison(by_compute)}<h3>Along the run {escape(longest.name)}</h3>{comparison(along)}"
    )


def nearest(cells: Sequence[Cell]) -> list[Cell]:
    """The best cell nearest to each multiple of the least FLOPs, each once; all sound, with samples."""
    least, chosen = min(cell.flops for cell in cells), []
    for multiple in MULTIPLES:
        distance = {cell.name: abs(math.log(cell.flops / least / multiple)) for cell in cells}
        near = min(distance.values()) + math.log(1.1)
        best = min((cell for cell in cells if distance[cell.name] <= near), key=lambda cell: cell.loss)
        chosen += [best] if best not in chosen else []
    return chosen


def _written(rows: Rows) -> Rows:
    return [row for row in rows if isinstance(row.get("samples"), dict)]


def _column(cell: Cell, heading: str, runs: Mapping[str, Path], rows: Mapping[str, Rows], place: int) -> Column:
    found = _written(rows[cell.name])[place]["samples"]
    return Column(heading=heading, folder=runs[cell.name], sheet=found["sheet"], videos=found["videos"])


def comparison(columns: Sequence[Column]) -> str:
    """A table: a row for each prompt, a column for each of what is compared, and the sheets below."""
    head = "".join(f"<th>{escape(column.heading)}</th>" for column in columns)
    prompts = {video["prompt"]: video["seed"] for column in columns for video in column.videos}
    lines = [f"<tr><th></th>{head}</tr>"]
    for prompt, seed in prompts.items():
        line = "".join(f"<td>{_video_of(column, prompt)}</td>" for column in columns)
        lines.append(f"<tr><th>{escape(prompt)}<br>seed {seed}</th>{line}</tr>")
    stills = "".join(f"<td>{_still(column)}</td>" for column in columns)
    return f"<table>{''.join(lines)}<tr><th>stills</th>{stills}</tr></table>"


def _video_of(column: Column, prompt: str) -> str:
    path = next((column.folder / video["path"] for video in column.videos if video["prompt"] == prompt), None)
    if path is None or not path.is_file():
        return "not there"
    return f'<video autoplay loop muted playsinline controls width="224" src="{_embedded(path, "video/mp4")}"></video>'


def _still(column: Column) -> str:
    path = column.folder / column.sheet
    if not path.is_file():
        return "not there"
    return f'<img alt="{escape(column.heading)}" src="{_embedded(path, "image/png")}">'


def _embedded(path: Path, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
