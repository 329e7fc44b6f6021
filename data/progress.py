"""How far long work is: a bar on a terminal, else a plain line every few seconds."""

import sys
import time
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

_EVERY_S = 10.0


class Progress:
    """Use as a context manager; goes to the error output, so that a result can be piped."""

    columns: tuple[str | ProgressColumn, ...] = (
        "{task.description}",
        BarColumn(),
        MofNCompleteColumn(),
        "{task.fields[note]}",
        TimeRemainingColumn(),
    )
    """Of the bar, whose description is `what`."""

    def __init__(self, what: str, total: int | None, unit: str) -> None:
        """`what` is being done to `total` things, each a `unit`."""
        self.what, self.total, self.unit, self.done, self.note = what, total, unit, 0, ""
        self._started = self._said = time.monotonic()
        self._bar: Bar | None = None
        if sys.stderr.isatty():
            self._bar = Bar(*self.columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task(what, total=total, note="", line="")

    def advance(self, note: str = "", by: int = 1) -> None:
        """One more is done, or `by` more; `note` says what came of it so far."""
        self.done, self.note = self.done + by, note
        self.show()

    def show(self) -> None:
        """Say how far it is, if it was not said just now."""
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, note=self.note, line=self.line())
            return
        now = time.monotonic()
        if now - self._said >= _EVERY_S:
            self._said = now
            print(self.line(), file=sys.stderr, flush=True)

    def line(self) -> str:
        rate = self.done / max(self._said - self._started, 1e-9)
        left = f", {(self.total - self.done) / rate:.0f} s left" if self.total else ""
        total = f" of {self.total}" if self.total else ""
        line = f"{self.what}: {self.done}{total} {self.unit}s, {rate:.1f} {self.unit}s/s{left}"
        return f"{line}{', ' if self.note else ''}{self.note}"

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()
