"""Asking a run to stop: Ctrl-C, SIGTERM and SLURM's SIGUSR1 all mean «save at the step boundary, then leave»."""

import logging
import os
import signal
import time
from types import FrameType

EXIT_STOPPED = 75
"""EX_TEMPFAIL: stopped early with everything saved; the same command goes on."""
_GRACE_S = 3.0
log = logging.getLogger(__name__)


class StopRequest:
    """Remembers that a stop was asked for; asking again after three seconds leaves at once.

    A terminal's Ctrl-C reaches a rank twice under torchrun (from the terminal and from the agent), hence the grace.
    """

    def __init__(self) -> None:
        self.signal_name: str | None = None
        self._asked_at = 0.0
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._remember)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.signal_name is None:
            self.signal_name, self._asked_at = signal.Signals(number).name, now
        elif now - self._asked_at > _GRACE_S:
            os._exit(128 + number)
