"""What a terminal shows while the runs of a sweep go on: a line each; elsewhere a plain line now and then."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console
from rich.live import Live
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
        left = f", {in_words(took * (steps - step) / done)} left" if done > 0 and step < steps else ""
        loss = f"loss {losses[-1]:.4f}" if losses else "starting"
        return self.cell.planned.name, f"step {step} of {steps}", loss, in_words(took) + left


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
        numbers = [max(map(len, column)) for column in zip(*(row[1:] for row in found), strict=True)]
        room = self._live.console.width - sum(numbers) - 2 * len(numbers)
        longest = min(max((len(row[0]) for row in found), default=0), room)
        lines = []
        for name, *rest in found:
            shown = name if len(name) <= longest else name[: longest - 1] + "\u2026"
            lines.append("  ".join(part.ljust(width) for part, width in zip((shown, *rest), (longest, *numbers))))
        self._live.update(Text("\n".join([head, *lines]), no_wrap=True, overflow="ellipsis"), refresh=True)


def in_words(seconds: float | None) -> str:
    """Of a duration."""
    if seconds is None:
        return "?"
    for unit, name in ((3600, "h"), (60, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.0f} s"
