"""What a terminal shows while the runs of a sweep go on: a line each; elsewhere a plain line now and then."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from scaling.outcome import Outcome
from scaling.run_cell import rows_of_run

_EVERY_S, _EVERY_LIVE_S = 10.0, 1.0


@dataclass(frozen=True, kw_only=True)
class Running:
    """A run of this sweep."""

    cell: Outcome
    """As it lay when the run began."""
    began: float
    """In seconds since 1970."""

    def columns(self, now: float) -> tuple[str, str, str, str]:
        """Name, step, loss, and time."""
        try:
            rows = rows_of_run(self.cell.folder)
        except ValueError:  # in the middle of a write; damage is told when the run has ended
            rows = []
        losses = [row["loss"] for row in rows if "loss" in row]
        step, steps, took = max((row["step"] for row in rows), default=0), self.cell.planned.steps, now - self.began
        done = step - self.cell.step
        left = f", {took * (steps - step) / done:.0f} s left" if done > 0 and step < steps else ""
        loss = f"loss {losses[-1]:.4f}" if losses else "starting"
        return self.cell.planned.name, f"step {step} of {steps}", loss, f"{took:.0f} s{left}"


class Screen:
    """Use as a context manager."""

    def __init__(self, say: Callable[[str], None], console: Console | None = None) -> None:
        """`console` in place of stderr."""
        console = console or Console(stderr=True)
        self._tell, self._said = say, 0.0
        self._live = Live(console=console, transient=True, auto_refresh=False) if console.is_terminal else None

    def __enter__(self) -> "Screen":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, text: str) -> None:
        """A line that stays, above those that change."""
        if self._live is not None and self._live.is_started:
            self._live.console.print(Text(text))
        else:
            self._tell(text)

    def show(self, head: str, runs: Sequence[Running]) -> None:
        """A line for each run under `head`, unless that was done just now."""
        now = time.time()
        if now - self._said < (_EVERY_S if self._live is None else _EVERY_LIVE_S):
            return
        self._said = now
        found = [run.columns(now) for run in runs]
        if self._live is None:
            if found:
                self._tell("; ".join([head, *(f"{name}: {', '.join(rest)}" for name, *rest in found)]))
            return
        table = Table.grid(padding=(0, 2, 0, 0))
        for number in range(4):
            table.add_column(no_wrap=True, overflow="ellipsis", ratio=1 if number == 0 else None)
        for row in found:
            table.add_row(*map(Text, row))
        self._live.update(Group(Text(head), table), refresh=True)
