"""What a run says about itself: `metrics.jsonl` (the durable record), W&B (a mirror), the console and `log.txt`."""

import errno
import json
import logging
import math
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal

import wandb

log = logging.getLogger(__name__)
HELDOUT_NAME = "heldout.json"
"""Losses of held-out clips by source at the end of a run."""


@dataclass(frozen=True, kw_only=True)
class WandbConfig:
    """Weights & Biases: `offline` writes a local run for `wandb sync`; `disabled` writes nothing."""

    mode: Literal["online", "offline", "disabled"] = "offline"
    project: str = "tessera"
    entity: str | None = None
    group: str | None = None
    job_type: str = "train"
    tags: tuple[str, ...] = ()


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
        self._wandb: Any = None
        if speaks:
            with self.guarded(folder):
                self._open(resume_step, config_yaml)

    def _open(self, resume_step: int, config_yaml: str) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / "metrics.jsonl"
        _drop_rows_after(path, resume_step)
        (self._folder / "config.yaml").write_text(config_yaml, encoding="utf-8")
        self._file = path.open("a", encoding="utf-8")
        self._log = logging.FileHandler(self._folder / "log.txt", encoding="utf-8")
        self._log.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        logging.getLogger().addHandler(self._log)

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
        """Open the W&B run of this folder; its id is kept there, so that a resumed run is the same run."""
        if self._file is None or config.mode == "disabled":
            return
        id_file = self._folder / "wandb_id"
        try:
            if not id_file.exists():
                id_file.write_text(uuid.uuid4().hex[:12])
            self._wandb = wandb.init(
                project=config.project,
                entity=config.entity,
                group=config.group,
                job_type=config.job_type,
                tags=list(config.tags),
                name=name,
                id=id_file.read_text().strip(),
                resume="allow" if config.mode == "online" else None,
                mode=config.mode,
                dir=str(self._folder),
                config=settings,
                settings=wandb.Settings(silent=True, console="off", x_disable_machine_info=True, disable_git=True),
            )
            for axis in ("tokens", "flops"):
                self._wandb.define_metric(axis)
            self._wandb.define_metric("*", step_metric="step")
        except (wandb.errors.Error, OSError) as error:
            log.warning("W&B is off for this run (%s); metrics.jsonl has everything", error)

    def write(self, step: int, row: dict[str, Any]) -> None:
        """One row of numbers: to the file at once, to W&B when it listens."""
        if self._file is None:
            return
        clean = {key: value for key, value in row.items() if not isinstance(value, float) or math.isfinite(value)}
        with self.guarded(Path(self._file.name)):
            self._file.write(json.dumps({"step": step, "time": round(time.time(), 3), **clean}) + "\n")
            self._file.flush()
        if self._wandb is not None:
            self._wandb.log({"step": step, **clean})

    def write_heldout(self, losses: dict[str, list[float]]) -> None:
        """The last held-out loss clip by clip, for intervals paired over runs."""
        if self._file is not None:
            path = self._folder / HELDOUT_NAME
            with self.guarded(path):
                path.write_text(json.dumps(losses, indent=1), encoding="utf-8")

    def write_sheet(self, step: int, path: Path, caption: str) -> None:
        """Show a picture of samples in W&B; the file itself stays in the run folder."""
        if self._wandb is not None and path.is_file():
            self._wandb.log({"step": step, "samples": wandb.Image(str(path), caption=caption)})

    def say(self, text: str) -> None:
        if self.speaks:
            log.info(text)

    def close(self, exit_code: int = 0) -> None:
        if self._file is not None:
            with self.guarded(Path(self._file.name)):
                self._file.close()
        if self._log is not None:
            logging.getLogger().removeHandler(self._log)
            self._log.close()
        if self._wandb is not None:
            self._wandb.finish(exit_code=exit_code)


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


def _drop_rows_after(path: Path, step: int) -> None:
    """Rows past the checkpoint that a run resumes from are written again, so they go first; from 0 on, all are."""
    if not path.exists():
        return
    rows = [row for row in read_metrics(path.parent) if row["step"] <= step] if step else []
    scratch = path.with_suffix(".tmp")
    scratch.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    os.replace(scratch, path)
