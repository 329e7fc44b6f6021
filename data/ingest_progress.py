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
        self._parts = {part.number: part for part in plan.parts}
        self._by_bytes = all(file.bytes is not None for part in plan.parts for file in part.files)
        self._heard: dict[int, tuple[int, int]] = {}
        """Part -> files done and clips made in it."""
        self._total = sum(self._amount(part, len(part.files)) for part in plan.parts)
        self._files_total = plan.files
        for number, record in standing.items():
            self._heard[number] = (record.files, record.clips)
        self._before = self._done()
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
        self._heard[part.number] = (files, clips)

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
        files, clips = (sum(heard[column] for heard in self._heard.values()) for column in (0, 1))
        took = max(time.monotonic() - self._started, 1e-9)
        done = self._done()
        rate = (done - self._before) / took
        left = f", {_duration((self._total - done) / rate)} left" if rate > 0 else ""
        shown = f"{rate / 2**20:.1f} MiB/s" if self._by_bytes else f"{rate:.1f} files/s"
        return f"{files} of {self._files_total} files, {clips} clips, {shown}{left}"

    def _done(self) -> float:
        return sum(self._amount(self._parts[number], files) for number, (files, _) in self._heard.items())

    def _amount(self, part: Part, files: int) -> float:
        """Bytes of the first files of a part, or their number."""
        return sum(file.bytes or 0 for file in part.files[:files]) if self._by_bytes else files


def _duration(seconds: float) -> str:
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    return f"{seconds:.0f} s" if seconds < 120 else f"{minutes} min" if seconds < 7200 else f"{hours} h"
