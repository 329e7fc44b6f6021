"""The runs of a sweep on this machine: what is missing is started, watched, and started again where it failed."""

import fcntl
import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.live import Live
from rich.text import Text

from parallel.launch import child_environment
from scaling.outcome import Outcome
from trainer.compose import EXIT_USER_ERROR

ATTEMPTS_NAME = "attempts.jsonl"
CONSOLE_NAME = "console.txt"
_POLL_S = 0.25
_EVERY_S = 10.0
_PATIENCE_S = 60.0

Look = Callable[[str], Outcome]
"""What lies in the folder of the cell of that name."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Inside, no other sweep works in this folder; ValueError where one does."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"another sweep is at work in {folder}: wait for it, or choose another folder=") from error
        yield


class Attempts:
    """How often each cell has failed, kept over sweeps."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / ATTEMPTS_NAME
        lines = self._path.read_text(encoding="utf-8").splitlines() if self._path.is_file() else []
        rows = [json.loads(line) for line in lines]
        self.failed = Counter(row["name"] for row in rows)
        self.hopeless = {row["name"] for row in rows if row["code"] == EXIT_USER_ERROR}
        """Those that ended by a mistake in their settings, or diverged: another attempt would end alike."""

    def add(self, name: str, code: int, why: str) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"name": name, "code": code, "why": why, "time": round(time.time())}) + "\n")
        self.failed[name] += 1
        if code == EXIT_USER_ERROR:
            self.hopeless.add(name)


@dataclass(frozen=True)
class _Running:
    name: str
    process: subprocess.Popen[bytes]
    started: float


class LocalRuns:
    """Runs cells, `jobs` at once."""

    def __init__(self, folder: Path, look: Look, *, jobs: int, retries: int, say: Callable[[str], None]) -> None:
        self.folder, self._look, self._jobs, self._retries, self._say = folder, look, jobs, retries, say
        self.attempts = Attempts(folder)
        self._running: list[_Running] = []
        self._said = 0.0

    def gives_up(self, name: str) -> bool:
        """Whether a cell that is not done is not tried again."""
        return name in self.attempts.hopeless or self.attempts.failed[name] > self._retries

    def run(self, todo: Sequence[Outcome], after_each: Callable[[], None]) -> None:
        """Start all, each when there is room; Ctrl-C and SIGTERM have them save and stop."""
        queue, total, ended = [*todo], len(todo), 0
        live = Live(console=Console(stderr=True), transient=True) if sys.stderr.isatty() else None
        before = signal.signal(signal.SIGTERM, _interrupt)
        try:
            if live is not None:
                live.start()
            while queue or self._running:
                while queue and len(self._running) < self._jobs:
                    self._running.append(self._start(queue.pop(0)))
                time.sleep(_POLL_S)
                for one in [one for one in self._running if one.process.poll() is not None]:
                    self._running.remove(one)
                    again = self._ended(one)
                    queue += [self._look(one.name)] if again else []
                    ended += not again
                    after_each()
                self._show(live, f"{ended} of {total} cells ended")
        except KeyboardInterrupt:
            self._say("stopping; what runs is asked to save, and the same command goes on from there")
            raise
        finally:
            if live is not None:
                live.stop()
            self._stop()
            signal.signal(signal.SIGTERM, before)

    def _start(self, cell: Outcome) -> _Running:
        planned = cell.planned
        launcher = ["-m", "parallel.torchrun", "--standalone", f"--nproc-per-node={planned.ranks}"]
        command = [sys.executable, *(launcher if planned.ranks > 1 else []), "-m", "trainer.train", *planned.words]
        cell.folder.mkdir(parents=True, exist_ok=True)
        with (cell.folder / CONSOLE_NAME).open("ab") as console:
            # A session of its own: Ctrl-C reaches it through us, once.
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                start_new_session=True,
                env=child_environment(),
            )
        return _Running(planned.name, process, time.monotonic())

    def _ended(self, one: _Running) -> bool:
        """Record how a run ended; whether it is to be tried again."""
        found, code = self._look(one.name), one.process.returncode
        took = f"in {time.monotonic() - one.started:.0f} s"
        if found.is_done:
            self._say(f"{one.name}: held-out loss {found.cell.loss:.4f}, {found.cell.flops:.3g} FLOPs {took}")
            return False
        if found.step == found.planned.steps and code == 0:
            self._say(f"{one.name}: left out, {found.cell.broken}")
            return False
        why = found.cell.broken or "no reason is known"
        if not found.has_started:
            why = _last_line(found.folder / CONSOLE_NAME) or why
        self.attempts.add(one.name, code, why)
        again = not self.gives_up(one.name)
        self._say(f"{one.name}: failed with exit code {code}, {why}" + ("; it is tried again" if again else ""))
        return again

    def _show(self, live: Live | None, head: str) -> None:
        now = time.monotonic()
        if now - self._said < (_EVERY_S if live is None else 1.0):
            return
        self._said = now
        lines = []
        for one in self._running:
            found = self._look(one.name)
            losses = [row["loss"] for row in found.rows if "loss" in row]
            state = f"step {found.step} of {found.planned.steps}" + (f", loss {losses[-1]:.4f}" if losses else "")
            lines.append(f"{one.name}: {state}, {now - one.started:.0f} s")
        if live is not None:
            live.update(Text("\n".join([head, *lines])))
        elif lines:
            self._say("; ".join([head, *lines]))

    def _stop(self) -> None:
        """Have what still runs save and leave; what does not is killed."""
        for one in self._running:
            one.process.send_signal(signal.SIGINT)
        end = time.monotonic() + _PATIENCE_S
        for one in self._running:
            try:
                one.process.wait(max(end - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                self._say(f"{one.name} did not stop in {_PATIENCE_S:.0f} s and was killed; its last checkpoint stands")
                one.process.kill()
                one.process.wait()
        self._running.clear()


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _last_line(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.is_file() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
