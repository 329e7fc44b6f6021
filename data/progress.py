"""How far long work is: a bar on a terminal, else a plain line every few seconds."""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

_EVERY_S = 10.0


class Progress:
    """Use as a context manager; goes to the error output, so that a result can be piped."""

    def __init__(self, what: str, total: int | None, unit: str) -> None:
        """`what` is being done to `total` things, each a `unit`."""
        self.what, self.total, self.unit, self.done = what, total, unit, 0
        self._started = self._said = time.monotonic()
        self._bar: Bar | None = None
        if sys.stderr.isatty():
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
            )
            self._bar = Bar(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task(what, total=total, note="")

    def advance(self, note: str = "", by: int = 1) -> None:
        """One more is done, or `by` more; `note` says what came of it so far."""
        self.done += by
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, note=note)
            return
        now = time.monotonic()
        if now - self._said < _EVERY_S:
            return
        self._said = now
        rate = self.done / (now - self._started)
        left = f", {(self.total - self.done) / rate:.0f} s left" if self.total else ""
        total = f" of {self.total}" if self.total else ""
        line = f"{self.what}: {self.done}{total} {self.unit}s, {rate:.1f} {self.unit}s/s{left}"
        print(f"{line}{', ' if note else ''}{note}", file=sys.stderr, flush=True)

    def __enter__(self) -> "Progress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
