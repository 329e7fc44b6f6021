"""Asking a run to stop: Ctrl-C, SIGTERM and SLURM's SIGUSR1 all mean «save at the step boundary, then leave»."""

import os
import signal
import sys
import time
from types import FrameType, TracebackType

EXIT_STOPPED = 75
"""EX_TEMPFAIL: stopped early with everything saved; the same command goes on."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_GRACE_S = 3.0


class StopRequest:
    """Inside, remembers that a stop was asked for; asking again after three seconds leaves at once.

    A terminal's Ctrl-C may reach a rank twice (from the terminal and from the launcher), hence the grace. SIGUSR1 only
    announces the time limit: the SIGTERM at the limit itself is the first that asks, and a save goes on.
    """

    def __init__(self, *, speaks: bool = True) -> None:
        self.signal_name: str | None = None
        self._speaks = speaks
        self._asked_at: float | None = None

    def __enter__(self) -> "StopRequest":
        self._before = {number: signal.signal(number, self._remember) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.signal_name is None:
            self.signal_name = signal.Signals(number).name
            if self._speaks:
                # Not through `logging`: this may interrupt a line that is being written.
                words = f"{self.signal_name}: saving after this step; asked again, leaving without\n"
                os.write(sys.stderr.fileno(), words.encode())
        if number == signal.SIGUSR1:
            return
        if self._asked_at is None:
            self._asked_at = now
        elif now - self._asked_at > _GRACE_S:
            os._exit(128 + number)
