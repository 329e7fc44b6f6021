"""How far an ingest is: a live line on a terminal, else a plain one every ten seconds."""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.text import Text

from data.ingest_part import PartRecord
from data.ingest_plan import Part, Plan

_PLAIN_EVERY_S = 10.0


class IngestProgress:
    """Counts files and clips; time left goes by bytes where the sizes of all files are known, else by files."""

    def __init__(self, plan: Plan, standing: dict[int, PartRecord]) -> None:
        self._by_bytes = all(file.bytes is not None for part in plan.parts for file in part.files)
        self._files_total = plan.files
        self._total = sum(self._amount(part, len(part.files)) for part in plan.parts)
        self._heard: dict[int, tuple[float, int, int]] = {}
        """Part -> amount done, files done and clips made in it."""
        self._done, self._files, self._clips = 0.0, 0, 0
        for part in plan.parts:
            if part.number in standing:
                self.hear(part, standing[part.number].files, standing[part.number].clips)
        self._before = self._done
        self._started = self._said = time.monotonic()
        self._live = Live(Text(""), console=Console(stderr=True), transient=True) if sys.stderr.isatty() else None

    def __enter__(self) -> "IngestProgress":
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def hear(self, part: Part, files: int, clips: int) -> None:
        """So many files of a part are done, with so many clips."""
        before = self._heard.get(part.number, (0.0, 0, 0))
        self._heard[part.number] = now = (self._amount(part, files), files, clips)
        self._done += now[0] - before[0]
        self._files += now[1] - before[1]
        self._clips += now[2] - before[2]

    def show(self) -> None:
        """Say how far it is, if it was not said just now."""
        if self._live:
            self._live.update(Text(self.line()))
            return
        now = time.monotonic()
        if now - self._said >= _PLAIN_EVERY_S:
            self._said = now
            print(self.line(), file=sys.stderr, flush=True)

    def line(self) -> str:
        """Files done of all, clips, rate, time left."""
        took = max(time.monotonic() - self._started, 1e-9)
        rate = (self._done - self._before) / took
        left = f", {_duration((self._total - self._done) / rate)} left" if rate > 0 else ""
        shown = f"{rate / 2**20:.1f} MiB/s" if self._by_bytes else f"{rate:.1f} files/s"
        return f"{self._files} of {self._files_total} files, {self._clips} clips, {shown}{left}"

    def _amount(self, part: Part, files: int) -> float:
        """Bytes of the first files of a part, or their number."""
        return sum(file.bytes or 0 for file in part.files[:files]) if self._by_bytes else files


def _duration(seconds: float) -> str:
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    return f"{seconds:.0f} s" if seconds < 120 else f"{minutes} min" if seconds < 7200 else f"{hours} h"
