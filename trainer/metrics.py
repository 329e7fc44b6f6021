"""What a run says about itself: `metrics.jsonl` (the durable record, mirrored in W&B), the console and `log.txt`."""

import errno
import json
import logging
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal

from trainer.console import Console
from trainer.goodput import Goodput, is_counted
from trainer.mirror import Mirror, WandbConfig, describe_run

log = logging.getLogger(__name__)
AlertKind = Literal["not finite", "spike", "preemption", "hang", "error"]
HELDOUT_NAME = "heldout.json"
"""Losses of held-out clips by source at the end of a run."""


class NotFinite(ValueError):
    """A step's loss or gradient is no number."""


class Metrics:
    """The one place that knows which rank speaks: on any other rank every method does nothing.

    What is logged from here on also goes to `log.txt`, with the time. A file that cannot be written does not raise,
    since the other ranks would be left waiting: `failure` says so, for all ranks to refuse together.
    """

    def __init__(self, folder: Path, *, speaks: bool, resume_step: int, config_yaml: str) -> None:
        self.failure: str | None = None
        self.exit_code = 0
        self.speaks = speaks
        self._folder = folder
        self._file: IO[str] | None = None
        self._log: logging.Handler | None = None
        self._mirror: Mirror | None = None
        self._step = resume_step
        self._console: Console | None = None
        self.goodput = Goodput()
        if speaks:
            with self.guarded(folder):
                self._open(resume_step, config_yaml)

    def _open(self, resume_step: int, config_yaml: str) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / "metrics.jsonl"
        self.goodput.carry(*_drop_rows_after(path, resume_step))
        (self._folder / "config.yaml").write_text(config_yaml, encoding="utf-8")
        self._file = path.open("a", encoding="utf-8")
        self._log = logging.FileHandler(self._folder / "log.txt", encoding="utf-8")
        self._log.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        logging.getLogger().addHandler(self._log)
        self._console = Console.install()

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and self._log is not None:
            # The console hears of it from whoever ends the process; a mistake of the user's needs no traceback.
            told = None if isinstance(error, ValueError) else (kind, error, trace)
            record = {"msg": f"error: {error}", "levelno": logging.ERROR, "exc_info": told}
            self._log.handle(logging.makeLogRecord(record))
        if isinstance(error, Exception):
            self.alert(self._step, _kind_of(error), str(error))
        self.close(self.exit_code if error is None else 1)

    @contextmanager
    def guarded(self, path: Path) -> Iterator[None]:
        """Inside, an operating-system error while writing `path` becomes `failure`."""
        try:
            yield
        except OSError as error:
            why = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or str(error)
            self.failure = self.failure or (
                f"{path} could not be written ({why}); the last checkpoint stands, so free space or repair the disk "
                "and start the same command again"
            )

    def start_wandb(self, config: WandbConfig, *, name: str, settings: dict[str, Any]) -> None:
        """Describe the run, and show its record in W&B from a process beside it; `settings` must hold no secret."""
        if self._file is None:
            return
        with self.guarded(self._folder):
            run_id = describe_run(self._folder, config, name=name, settings=settings)
            if config.mode == "disabled":
                return
            try:
                self._mirror = Mirror(self._folder, finish_s=config.finish_s)
            except OSError as error:
                self.warn(f"W&B is off ({error}); metrics.jsonl has everything")
            else:
                self.say(f"W&B: {config.mode}, run {run_id} of {config.project}, from {self._folder}/metrics.jsonl")

    def write(self, step: int, row: dict[str, Any]) -> None:
        """One row: to the file at once, from where W&B gets it when it listens."""
        if self._file is None:
            return
        self._step = step
        clean = {key: value for key, value in row.items() if not isinstance(value, float) or math.isfinite(value)}
        with self.guarded(Path(self._file.name)):
            self._file.write(json.dumps({"step": step, "time": round(time.time(), 3), **clean}) + "\n")
            self._file.flush()
        if self._mirror is not None:
            self._mirror.look()

    def alert(self, step: int, kind: AlertKind, text: str) -> None:
        """What somebody may want to be woken for; W&B sends it to whoever asked for alerts."""
        self.write(step, {"alert": {"kind": kind, "text": text}})

    def write_heldout(self, losses: dict[str, list[float]]) -> None:
        """The last held-out loss clip by clip, for intervals paired over runs."""
        if self._file is not None:
            path = self._folder / HELDOUT_NAME
            with self.guarded(path):
                path.write_text(json.dumps(losses, indent=1), encoding="utf-8")

    def say(self, text: str) -> None:
        if self.speaks:
            log.info(text)

    def note(self, text: str) -> None:
        """For `log.txt` alone."""
        if self._log is not None:
            self._log.handle(logging.makeLogRecord({"msg": text, "levelno": logging.INFO}))

    def warn(self, text: str) -> None:
        if self.speaks:
            log.warning(text)

    def passing(self, text: str) -> None:
        """What a terminal shows until the next line."""
        if self._console is not None:
            self._console.passing(text)

    def close(self, exit_code: int = 0) -> None:
        if self._file is not None:
            with self.guarded(Path(self._file.name)):
                self._file.close()
        if self._log is not None:
            logging.getLogger().removeHandler(self._log)
            self._log.close()
        if self._mirror is not None:
            self._mirror.close(exit_code)
        if self._console is not None:
            self._console.remove()
            self._console = None


def _kind_of(error: Exception) -> AlertKind:
    if isinstance(error, NotFinite):
        return "not finite"
    return "hang" if isinstance(error, TimeoutError | ConnectionError) else "error"


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's `metrics.jsonl`; a torn last line (a killed process) is left out."""
    path = folder / "metrics.jsonl"
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def _drop_rows_after(path: Path, step: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Rows past the checkpoint that a run resumes from are written again, so they go first; from 0 on, all are.

    An alert among them happened all the same: it stays, at the step the run goes on from, with its time and words.
    Returns the last row that says where time went of those that stay, and of those that go; {} where there is none.
    """
    if not path.exists():
        return {}, {}
    rows = read_metrics(path.parent)
    kept = [row for row in rows if row["step"] <= step] if step else []
    undone = rows[len(kept) :]
    alerts = [{**row, "step": step} for row in undone if "alert" in row]
    scratch = path.with_suffix(".tmp")
    scratch.write_text("".join(json.dumps(row) + "\n" for row in [*kept, *alerts]), encoding="utf-8")
    os.replace(scratch, path)
    return _last_numbers(kept), _last_numbers(undone)


def _last_numbers(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return next((row for row in reversed(rows) if is_counted(row)), {})
