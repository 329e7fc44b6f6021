"""The process that shows a run's record in W&B while it grows; training never waits for it."""

import json
import logging
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

log = logging.getLogger(__name__)
ID_FILE, RUN_FILE = "wandb_id", "run.json"
URL_FILE = "wandb/url"
"""Where the W&B page is, as soon as the process knows."""
_NICE = 10
NEWEST_FILE = "wandb/newest"
"""Names the newest mirror of a run: one that was left over from an earlier start shows nothing any more."""


@dataclass(frozen=True, kw_only=True)
class WandbConfig:
    """Weights & Biases: `offline` writes a local run for `wandb sync`; `disabled` writes nothing."""

    mode: Literal["online", "offline", "disabled"] = "offline"
    project: str = "tessera"
    entity: str | None = None
    group: str | None = None
    job_type: str = "train"
    tags: tuple[str, ...] = ()
    notes: str | None = None
    finish_s: float = 30.0
    """A run that ends waits for W&B no longer than this."""

    def __post_init__(self) -> None:
        if self.finish_s < 0:
            raise ValueError(f"wandb.finish_s={self.finish_s} must be a number of seconds, or 0 not to wait")


def describe_run(folder: Path, config: WandbConfig, *, name: str, settings: dict[str, Any]) -> str:
    """Write what W&B is told of a run as a whole, `run.json`; returns the id that all its starts share."""
    id_file = folder / ID_FILE
    if not (id_file.exists() and id_file.read_text(encoding="utf-8").strip()):  # a full disk leaves an empty file
        id_file.write_text(uuid.uuid4().hex[:12], encoding="utf-8")
    described = {"name": name, "wandb": asdict(config), "settings": settings}
    (folder / RUN_FILE).write_text(json.dumps(described, indent=1), encoding="utf-8")
    return id_file.read_text(encoding="utf-8").strip()


class Mirror:
    """A `python -m trainer.wandb_sync` beside a run, which reads the record as it grows.

    It learns through its input that the run has ended: of a run that was killed too, and then it sends what is left.
    """

    def __init__(self, folder: Path, *arguments: str, finish_s: float) -> None:
        self._folder, self._finish_s, self._is_told, self._page_is_told = folder, finish_s, False, False
        self._words = folder / "wandb" / "mirror.log"
        self._words.parent.mkdir(exist_ok=True)
        (folder / URL_FILE).unlink(missing_ok=True)
        name = uuid.uuid4().hex
        (folder / NEWEST_FILE).write_text(name, encoding="utf-8")
        command = [sys.executable, "-m", "trainer.wandb_sync", str(folder.absolute()), "--follow", name, *arguments]
        with self._words.open("w", encoding="utf-8") as words, _unheard():
            self._process = subprocess.Popen(
                command,
                cwd=Path(__file__).parents[1],
                stdin=subprocess.PIPE,
                stdout=words,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the run, which then says how it ended
            )
        # Where all cores are busy, training goes first; wandb's own process inherits it.
        os.setpriority(os.PRIO_PROCESS, self._process.pid, _NICE)

    def look(self) -> None:
        """Say, once each, where the page is, and that the mirror has ended before the run."""
        if not self._page_is_told and (page := self._folder / URL_FILE).is_file():
            self._page_is_told = True
            log.info("W&B: %s", page.read_text(encoding="utf-8"))
        if not self._is_told and self._process.poll() is not None:
            self._lost(f"stopped ({self._last_words()})")

    def close(self, exit_code: int) -> None:
        """Tell it how the run ended and wait, for at most `finish_s`."""
        self.look()
        if self._process.poll() is None:
            assert self._process.stdin is not None
            try:
                self._process.stdin.write(f"{exit_code}\n".encode())
                self._process.stdin.close()
                self._process.wait(timeout=self._finish_s)
            except BrokenPipeError:
                self._process.wait()
            except subprocess.TimeoutExpired:
                self._end()
                self._lost(f"did not take everything within wandb.finish_s={self._finish_s:g}")
        if self._process.returncode:
            self.look()

    def _end(self) -> None:
        """Kill it and wandb's own process, which is in its session."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _last_words(self) -> str:
        try:
            lines = self._words.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        except OSError:
            lines = []
        return lines[-1].strip() if lines else f"exit code {self._process.returncode}"

    def _lost(self, what: str) -> None:
        self._is_told = True
        log.warning(
            "W&B %s; metrics.jsonl has everything, and python -m trainer.wandb_sync %s shows it", what, self._folder
        )


@contextmanager
def _unheard() -> Iterator[None]:
    """A process that is started inside does not hear the signals that SLURM sends to all; this one does afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
