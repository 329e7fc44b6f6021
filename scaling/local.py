"""The runs of a sweep on this machine: what is missing is started, watched, and started again where it failed."""

import ctypes
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO

from parallel.launch import child_environment
from scaling.attempts import Attempts, judged
from scaling.live import Running, Screen
from scaling.outcome import Outcome

CONSOLE_NAME = "console.txt"
"""What a run prints. Its processes hold a lock on it, the last of them gives it back: two runs never share a folder."""
_POLL_S = 0.25
_PATIENCE_S = 60.0
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)

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


def claim(folder: Path) -> IO[bytes] | None:
    """The console of a run folder, locked as long as a process has it open; None where one of a run does."""
    folder.mkdir(parents=True, exist_ok=True)
    console = (folder / CONSOLE_NAME).open("ab")
    try:
        fcntl.flock(console, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        console.close()
        return None
    return console


def runs_here(folder: Path) -> bool:
    """Whether a process of this machine works in a run folder."""
    if not (folder / CONSOLE_NAME).is_file():
        return False
    console = claim(folder)
    if console is not None:
        console.close()
    return console is None


@dataclass(frozen=True, kw_only=True)
class _Running:
    cell: Outcome
    """As it lay when this began."""
    process: subprocess.Popen[bytes]
    began: float
    """In seconds since 1970."""
    printed: int
    """Bytes of the console before."""

    @property
    def name(self) -> str:
        return self.cell.planned.name


class LocalRuns:
    """Runs cells, `jobs` at once."""

    def __init__(self, look: Look, attempts: Attempts, *, jobs: int, say: Callable[[str], None]) -> None:
        self._look, self._attempts, self._jobs, self._screen = look, attempts, jobs, Screen(say)
        self._running: list[_Running] = []
        self._waited_for: set[str] = set()

    def run(self, todo: Sequence[Outcome], after_each: Callable[[], object]) -> None:
        """Start all, each when there is room. Ctrl-C, SIGTERM and SIGHUP have them save and stop: KeyboardInterrupt."""
        queue, total, ended = [*todo], len(todo), 0
        with _asked_to_end(), self._stopping(), self._screen:
            while queue or self._running:
                ended += self._start_some(queue)
                time.sleep(_POLL_S)
                for one in [one for one in self._running if one.process.poll() is not None]:
                    self._running.remove(one)
                    again = self._ended(one)
                    queue += [self._look(one.name)] if again else []
                    ended += not again
                    after_each()
                lines = [Running(cell=one.cell, began=one.began) for one in self._running]
                self._screen.show(f"{ended} of {total} cells ended", lines)

    def _start_some(self, queue: list[Outcome]) -> int:
        """Start what there is room for; how many need no start any more."""
        needless = 0
        for cell in [*queue]:
            name = cell.planned.name
            if len(self._running) >= self._jobs:
                break
            console = claim(cell.folder)
            if console is None:
                if name not in self._waited_for:
                    self._screen.say(
                        f"{name}: processes of an earlier start still run it; waiting for them to save and end"
                    )
                self._waited_for.add(name)
                continue
            with console:
                queue.remove(cell)
                found = self._look(name) if name in self._waited_for else cell
                if found.is_done or found.is_left_out:
                    needless += 1
                else:
                    self._running.append(_start(found, console))
        return needless

    def _ended(self, one: _Running) -> bool:
        """Record how a run ended; whether it is to be tried again."""
        found, code = self._look(one.name), one.process.returncode
        took = f"in {time.time() - one.began:.0f} s"
        if found.is_done:
            self._screen.say(f"{one.name}: held-out loss {found.cell.loss:.4f}, {found.cell.flops:.3g} FLOPs {took}")
            return False
        if found.is_left_out and code == 0:
            self._screen.say(f"{one.name}: left out, {found.cell.broken}")
            return False
        with (found.folder / CONSOLE_NAME).open("rb") as console:
            console.seek(one.printed)
            printed = console.read().decode(errors="replace")
        kind, why = judged(found, printed, began=one.began, code=code)
        self._attempts.add(found.planned, kind, why=why, code=str(code))
        if kind == "stopped":
            self._screen.say(f"{one.name}: stopped at step {found.step}; the next call goes on from there")
            return False
        again = kind == "failed" and not self._attempts.gives_up(found.planned)
        self._screen.say(f"{one.name}: {kind} with exit code {code}, {why}" + ("; it is tried again" if again else ""))
        return again

    @contextmanager
    def _stopping(self) -> Iterator[None]:
        """In the end, have what still runs save and leave; what does not is killed."""
        try:
            yield
        finally:
            if self._running:
                self._screen.say(f"stopping: {len(self._running)} runs are asked to save, within {_PATIENCE_S:.0f} s")
            for one in self._running:
                one.process.send_signal(signal.SIGINT)
            end = time.monotonic() + _PATIENCE_S
            for one in self._running:
                try:
                    one.process.wait(max(end - time.monotonic(), 0.1))
                except subprocess.TimeoutExpired:
                    self._screen.say(f"{one.name} did not stop and was killed; its last checkpoint stands")
                    _kill(one.process)
            self._running.clear()


def _start(cell: Outcome, console: IO[bytes]) -> _Running:
    planned = cell.planned
    launcher = ["-m", "parallel.torchrun", "--standalone", f"--nproc-per-node={planned.ranks}"]
    command = [sys.executable, *(launcher if planned.ranks > 1 else []), "-m", "trainer.train", *planned.words]
    began, printed = time.time(), console.seek(0, os.SEEK_END)
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=console,
        stderr=console,
        start_new_session=True,  # Ctrl-C reaches it through us, once
        preexec_fn=_saves_when_we_die,
        env={"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": f"{_PATIENCE_S:.0f}"} | child_environment(),
    )
    return _Running(cell=cell, process=process, began=began, printed=printed)


def _saves_when_we_die() -> None:
    """In a run, before it is one: it gets SIGTERM when the sweep ends, be it by SIGKILL."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


@contextmanager
def _asked_to_end() -> Iterator[None]:
    """Inside, SIGTERM and SIGHUP are as Ctrl-C; where they were ignored, as under nohup, they still are."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        for number in before:  # a terminal that closes sends several
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """With all that descends from it: torchrun gives each rank a session of its own, which no group reaches."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    found = [process.pid]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    for pid in found:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
