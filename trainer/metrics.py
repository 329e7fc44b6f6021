"""What a run says about itself: `metrics.jsonl` (the durable record), W&B (a mirror) and the console."""

import json
import logging
import math
import os
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import wandb

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class WandbConfig:
    """Weights & Biases: `offline` writes a local run for `wandb sync`; `disabled` writes nothing."""

    mode: Literal["online", "offline", "disabled"] = "offline"
    project: str = "tessera"
    entity: str | None = None
    group: str | None = None
    job_type: str = "train"
    tags: tuple[str, ...] = ()


@dataclass
class Throughput:
    """Tokens and seconds since the last report."""

    tokens: int = 0
    since: float = field(default_factory=time.perf_counter)

    def take(self) -> float:
        """Tokens per second since the last call."""
        now = time.perf_counter()
        rate = self.tokens / max(now - self.since, 1e-9)
        self.tokens, self.since = 0, now
        return rate


class Metrics:
    """The one place that knows which rank speaks: on any other rank every method does nothing."""

    def __init__(self, folder: Path, *, speaks: bool, resume_step: int) -> None:
        self._file: Any = None
        self._wandb: Any = None
        self._folder = folder
        self.speaks = speaks
        if speaks:
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / "metrics.jsonl"
            _drop_rows_after(path, resume_step)
            self._file = path.open("a", encoding="utf-8")

    def start_wandb(self, config: WandbConfig, *, name: str, settings: dict[str, Any]) -> None:
        """Open the W&B run of this folder; its id is kept there, so that a resumed run is the same run."""
        if not self.speaks or config.mode == "disabled":
            return
        id_file = self._folder / "wandb_id"
        if not id_file.exists():
            id_file.write_text(uuid.uuid4().hex[:12])
        try:
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
        if not self.speaks:
            return
        clean = {key: value for key, value in row.items() if not (isinstance(value, float) and math.isnan(value))}
        self._file.write(json.dumps({"step": step, "time": round(time.time(), 3), **clean}) + "\n")
        self._file.flush()
        if self._wandb is not None:
            self._wandb.log({"step": step, **clean})

    def write_sheet(self, step: int, path: Path, caption: str) -> None:
        """Show a picture of samples in W&B; the file itself stays in the run folder."""
        if self._wandb is not None:
            self._wandb.log({"step": step, "samples": wandb.Image(str(path), caption=caption)})

    def say(self, text: str) -> None:
        if self.speaks:
            log.info(text)

    def close(self, exit_code: int = 0) -> None:
        if self._file is not None:
            self._file.close()
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
    """Rows past the checkpoint that a run resumes from are written again, so they go first."""
    if not path.exists():
        return
    rows = [row for row in read_metrics(path.parent) if row["step"] <= step]
    scratch = path.with_suffix(".tmp")
    scratch.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    os.replace(scratch, path)
