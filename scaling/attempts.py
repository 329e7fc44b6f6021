"""Attempts at the cells of a sweep that came to no end, kept over its calls."""

import json
import re
import signal
import time
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal

from scaling.grid import PlannedCell
from scaling.outcome import Outcome
from trainer.compose import EXIT_INTERRUPTED, EXIT_USER_ERROR, TRACEBACK_VARIABLE
from trainer.signals import EXIT_STOPPED

FILE_NAME = "attempts.jsonl"
Kind = Literal["failed", "refused", "diverged", "stopped"]
"""Failed: tried again at once, `retries` times in all. Refused, by a mistake or by the machine (a full disk): tried
again by the next call. Diverged: never again with the same settings. Stopped, with all saved: goes on."""
_ASKED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_STOPPED = {EXIT_STOPPED, EXIT_INTERRUPTED, *(-number for number in _ASKED), *(128 + number for number in _ASKED)}
_REFUSAL = re.compile(rf"error: (.*?)  \[{TRACEBACK_VARIABLE}=")


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """How a run ended before its last step."""

    name: str
    settings: str
    """What the cell was started with, in short: other settings are other attempts."""
    kind: Kind
    why: str
    code: str
    """The exit code of its process, or what SLURM says of its job."""
    job: str | None = None
    time: int = 0


class Attempts:
    """All of a sweep's folder."""

    def __init__(self, folder: Path, *, retries: int) -> None:
        self._path, self._retries = folder / FILE_NAME, retries
        self._all = list(_read(self._path))

    def add(self, cell: PlannedCell, kind: Kind, *, why: str, code: str, job: str | None = None) -> None:
        """Write one down."""
        found = Attempt(
            name=cell.name, settings=_settings(cell), kind=kind, why=why, code=code, job=job, time=round(time.time())
        )
        self._all.append(found)
        with self._path.open("a", encoding="utf-8") as file:
            # The line before may be torn: a new one begins here, wherever that ended.
            file.write("\n" * (file.tell() > 0) + json.dumps(asdict(found)))

    def of(self, cell: PlannedCell) -> list[Attempt]:
        """At the cell with its present settings, oldest first."""
        settings = _settings(cell)
        return [one for one in self._all if (one.name, one.settings) == (cell.name, settings)]

    def knows(self, job: str) -> bool:
        """Whether the end of a SLURM job is among them."""
        return any(one.job == job for one in self._all)

    def gives_up(self, cell: PlannedCell) -> str:
        """Why the cell is not tried again; empty where it is."""
        found = self.of(cell)
        failed = [one for one in found if one.kind == "failed"]
        if diverged := [one for one in found if one.kind == "diverged"]:
            return f"it diverged ({diverged[-1].why}) and would do so again with the same settings"
        if len(failed) > self._retries:
            times = f"{len(failed)} time{'s' * (len(failed) > 1)}"
            return f"it failed {times}, last: {failed[-1].why}; a larger retries= tries again"
        return ""


def refusal_in(text: str) -> str:
    """The sentence with which a command of ours refused to go on, the last in what it printed; empty without."""
    return (_REFUSAL.findall(text) or [""])[-1]


def judged(found: Outcome, printed: str, *, began: float, code: int) -> tuple[Kind, str]:
    """How a run that did not come to its end ended, by its record since `began` and by what it printed, and why."""
    alert, when = found.last_alert
    refusal = refusal_in(printed)
    why = refusal or found.cell.broken
    if code in _STOPPED or (alert == "preemption" and when >= began):
        return "stopped", why
    if alert == "not finite" and when >= began:
        return "diverged", why
    if refusal or code == EXIT_USER_ERROR:
        return "refused", why
    last = next((line.strip() for line in reversed(printed.splitlines()) if line.strip()), "")
    return "failed", why if found.has_started else last or why


def _settings(cell: PlannedCell) -> str:
    return sha256("\n".join(cell.words).encode()).hexdigest()[:16]


def _read(path: Path) -> list[Attempt]:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    found = []
    for number, line in enumerate(lines, 1):
        if not line.endswith("}"):
            continue  # torn by a kill: that attempt is tried once more
        try:
            found.append(Attempt(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise ValueError(f"line {number} of {path} is no attempt at a cell ({error}): delete it") from error
    return found
