"""One finished run as a scaling law sees it, and lists of them: JSONL, CSV.

A cell that is broken (diverged, killed, half written, a number that is none) keeps its name and gets a reason.
It is shown, and never fitted.
"""

import csv
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

_TEXTS = ("name", "broken", "variant")
_NUMBERS = ("parameters", "tokens", "flops", "loss", "standard_error")
_SAME = 1.03
"""Seeds of one cell draw other packs: so far apart may their FLOPs be."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A run that finished its own schedule, or the reason why it is none.

    `curve` holds further points (tokens, FLOPs, loss) of the run that finished a schedule of their own, as cooldown
    branches do; points from the middle of a schedule do not belong here.
    """

    name: str
    parameters: float = math.nan
    """N: those of the blocks."""
    tokens: float = math.nan
    """D: video tokens processed."""
    flops: float = math.nan
    """C: of training, exact."""
    loss: float = math.nan
    """Held-out."""
    standard_error: float | None = None
    seed: int | None = None
    """Runs that differ in nothing else are replicates; None where that is not known."""
    variant: str = ""
    """What else tells it apart from other runs of its size and budget: a rate, an axis of the grid."""
    curve: tuple[tuple[float, float, float], ...] = ()
    broken: str = ""
    """Why the cell is left out; empty where it is sound."""


def checked(cell: Cell) -> Cell:
    """The cell, marked broken where one of its numbers cannot be fitted."""
    if cell.broken:
        return cell
    for name in ("parameters", "tokens", "flops", "loss"):
        value = getattr(cell, name)
        if not (math.isfinite(value) and value > 0):
            return replace(cell, broken=f"{name} is {value:g}, not a positive number")
    if wrong := [value for point in cell.curve for value in point if not (math.isfinite(value) and value > 0)]:
        return replace(cell, broken=f"its curve holds {wrong[0]:g}, not a positive number")
    return cell


def sound_and_broken(cells: Iterable[Cell]) -> tuple[list[Cell], list[Cell]]:
    """Cells to fit, and cells to report; a name given twice is a mistake of the user's (ValueError).

    Seeds of one variant are all kept, each once. Of variants of one size and budget, or runs that do not say what tells
    them apart, those with the least mean loss are.
    """
    seen: set[str] = set()
    sound: list[Cell] = []
    broken: list[Cell] = []
    for cell in map(checked, cells):
        if cell.name in seen:
            raise ValueError(f"cell {cell.name} is given twice: name each run once")
        seen.add(cell.name)
        (broken if cell.broken else sound).append(cell)
    worse: dict[str, str] = {}
    for place in places(sound):
        variants, again = _variants(place)
        worse |= again
        best = min(variants, key=mean_loss)
        whose = f"{best[0].name} is of the same size and FLOPs and has the lower " + (
            f"loss ({best[0].loss:.4g})"
            if len(best) == 1
            else f"mean loss of {len(best)} seeds ({mean_loss(best):.4g})"
        )
        worse |= {cell.name: whose for variant in variants if variant is not best for cell in variant}
    broken += [replace(cell, broken=worse[cell.name]) for cell in sound if cell.name in worse]
    return [cell for cell in sound if cell.name not in worse], broken


def _variants(place: Sequence[Cell]) -> tuple[list[list[Cell]], dict[str, str]]:
    """Runs of one size and budget by what tells them apart, a seed in each once; and runs given again, with why.

    A seed that comes twice with another loss is of a run that differs in something, whatever that was.
    """
    variants: dict[tuple[str, str, int], list[Cell]] = {}
    again: dict[str, str] = {}
    for cell in place:
        alike = [other for of_one in variants.values() for other in of_one if other.variant == cell.variant]
        before = [other for other in alike if other.seed is not None and other.seed == cell.seed]
        same = next((other for other in before if (other.flops, other.loss) == (cell.flops, cell.loss)), None)
        if same is not None:
            again[cell.name] = f"{same.name} is that run: it has the same size, FLOPs, seed ({cell.seed}) and loss"
            continue
        name = cell.name if cell.seed is None else ""
        variants.setdefault((cell.variant, name, len(before)), []).append(cell)
    return list(variants.values()), again


def places(cells: Iterable[Cell]) -> list[list[Cell]]:
    """Sound cells by size and budget. FLOPs of runs whose seed is not known must be equal to share one."""
    found: list[list[Cell]] = []
    for cell in sorted(cells, key=lambda cell: (cell.parameters, cell.flops)):
        last = found[-1][-1] if found else None
        if last is not None and last.parameters == cell.parameters:
            room = 1.0 if last.seed is None or cell.seed is None else _SAME
            if cell.flops <= last.flops * room:
                found[-1].append(cell)
                continue
        found.append([cell])
    return found


def left_out_lines(broken: Iterable[Cell]) -> list[str]:
    """What is printed of them."""
    return [f"left out: {cell.name}: {cell.broken}" for cell in broken]


def mean_loss(replicates: Sequence[Cell]) -> float:
    """Of the logs of loss, which is what laws are fitted to."""
    return math.exp(sum(math.log(cell.loss) for cell in replicates) / len(replicates))


def write_cells(path: Path, cells: Iterable[Cell]) -> None:
    """One JSON object a line; what is not a number is null."""
    lines = []
    for cell in cells:
        row = {key: _json_value(value) for key, value in asdict(cell).items() if value not in (None, "", ())}
        lines.append(json.dumps(row) + "\n")
    path.write_text("".join(lines), encoding="utf-8")


def _json_value(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_cells(path: Path) -> list[Cell]:
    """What `write_cells` wrote; a torn or foreign line becomes a broken cell named by its line."""
    known = {field.name for field in fields(Cell)}
    cells = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        name = f"{path.name} line {number}"
        try:
            row = {key: value for key, value in json.loads(line).items() if value is not None}
            if unknown := sorted(set(row) - known):
                raise ValueError(f"unknown keys {unknown}")
            name = row["name"] if isinstance(row.get("name"), str) else name
            if wrong := [key for key, value in row.items() if not _is_of_kind(key, value)]:
                kind = {"seed": "whole number"}.get(wrong[0], "text" if wrong[0] in _TEXTS else "number")
                raise ValueError(f"{wrong[0]} is {row[wrong[0]]!r}, not a {kind}")
            curve = tuple((float(d), float(c), float(loss)) for d, c, loss in row.pop("curve", ()))
            row = {key: float(value) if key in _NUMBERS else value for key, value in row.items()}
            cells.append(Cell(**row, curve=curve))
        except (ValueError, TypeError, AttributeError, OverflowError) as error:
            cells.append(Cell(name=name, broken=f"cannot be read ({error})"))
    return cells


def _is_of_kind(key: str, value: Any) -> bool:
    if key in _TEXTS:
        return isinstance(value, str)
    if key == "seed":
        return isinstance(value, int) and not isinstance(value, bool)
    return key == "curve" or (isinstance(value, int | float) and not isinstance(value, bool))


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Names of a CSV's columns; of FLOPs and tokens one may be missing, and follows from C = 6 N D."""

    parameters: str
    loss: str
    flops: str | None = None
    tokens: str | None = None


def read_csv(path: Path, columns: Columns) -> list[Cell]:
    """A cell per row, named by its line; a number that is none breaks its cell. ValueError for unknown columns."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        there = reader.fieldnames or []
        wanted = [columns.parameters, columns.loss, columns.flops, columns.tokens]
        if missing := [name for name in wanted if name is not None and name not in there]:
            raise ValueError(
                f"{path} has no column {missing[0]!r}: it has {', '.join(map(repr, there)) or 'no header'}"
            )
        return [_cell_of_row(f"row {number}", row, columns) for number, row in enumerate(reader, 1)]


def _cell_of_row(name: str, row: dict[str, str], columns: Columns) -> Cell:
    values: dict[str, Any] = {}
    for field, column in asdict(columns).items():
        if column is None:
            continue
        try:
            values[field] = float(row[column])
        except (TypeError, ValueError):
            return Cell(name=name, broken=f"{column} is {row[column]!r}, not a number")
    if "tokens" not in values:
        values["tokens"] = values["flops"] / (6 * values["parameters"]) if values["parameters"] else math.nan
    if "flops" not in values:
        values["flops"] = 6 * values["parameters"] * values["tokens"]
    return Cell(name=name, **values)
