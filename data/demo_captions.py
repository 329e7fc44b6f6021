"""The demo's hand-written captions: which stretch of which shot becomes a clip, and what is to be seen there."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from data.demo_sources import Footage
from data.recode import Shot

CAPTIONS = Path(__file__).with_suffix(".csv")
SHORTEST_S = 1.0
"""Shots and parts below this length make no clip."""
_TIMES_AGREE_S = 0.2


@dataclass(frozen=True, kw_only=True)
class CaptionRow:
    """One line: a clip to be made. Several lines of one source are parts of its shot. Stills have no times."""

    source: str
    start_s: float
    end_s: float
    short: str
    descriptive: str

    @property
    def footage(self) -> str:
        """Name of the footage that the row cuts from."""
        return self.source.split("/shot-")[0]

    @property
    def shot(self) -> int:
        return int(self.source.split("/shot-")[1])


def read_captions(path: Path = CAPTIONS) -> list[CaptionRow]:
    with open(path, newline="", encoding="utf-8") as file:
        return [
            CaptionRow(
                source=row["source"],
                start_s=float(row["start_s"] or 0),
                end_s=float(row["end_s"] or 0),
                short=row["short"],
                descriptive=row["descriptive"],
            )
            for row in csv.DictReader(file)
        ]


def clip_keys(rows: Sequence[CaptionRow]) -> list[str]:
    """One key a row: its source, and a letter where a shot has several parts."""
    keys = []
    for source, parts in groupby(rows, key=lambda row: row.source):
        count = len(list(parts))
        letters = [f"-{chr(ord('a') + part)}" for part in range(count)] if count > 1 else [""]
        keys += [source.replace("/", "-") + letter for letter in letters]
    return keys


def check_shots(rows: Sequence[CaptionRow], shots: Sequence[Shot]) -> None:
    """ValueError where a captioned part does not lie in the shot of its number."""
    for row in rows:
        found = shots[row.shot] if row.shot < len(shots) else None
        if not found or row.start_s < found.start_s - _TIMES_AGREE_S or row.end_s > found.end_s + _TIMES_AGREE_S:
            where = f"{found.start_s:.3f}-{found.end_s:.3f} s" if found else "not found"
            raise ValueError(
                f"{row.source} is captioned at {row.start_s}-{row.end_s} s but the shot is {where}: "
                f"the captions belong to other cuts, so use the pinned version of av, or correct {CAPTIONS.name}"
            )


def uncaptioned(footage: Footage, rows: Sequence[CaptionRow], shots: Sequence[Shot]) -> list[tuple[int, float, float]]:
    """(number, start, end) of the shots that are long enough for a clip, not left out on purpose, and in no row."""
    captioned = {row.shot for row in rows}
    return [
        (number, shot.start_s, shot.end_s)
        for number, shot in enumerate(shots)
        if number not in captioned and shot.end_s - shot.start_s >= SHORTEST_S and not _is_left_out(footage, shot)
    ]


def _is_left_out(footage: Footage, shot: Shot) -> bool:
    margin = _TIMES_AGREE_S
    return any(shot.start_s >= out.start_s - margin and shot.end_s <= out.end_s + margin for out in footage.left_out)
