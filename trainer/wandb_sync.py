"""Show a run in W&B from its record, `metrics.jsonl`: afterwards, or while it grows.

    python -m trainer.wandb_sync runs/demo-dit                   # what W&B does not have yet, or a whole offline run
    python -m trainer.wandb_sync runs/demo-dit --mode online --fresh

The only file that imports wandb. A run starts it as a process of its own (`trainer/mirror.py`), so that no server, and
nothing that wandb does, can hold up training.
"""

import argparse
import fcntl
import json
import os
import select
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import IO, Any, Literal

import wandb

from trainer.goodput import process_age_s
from trainer.mirror import ID_FILE, NEWEST_FILE, RUN_FILE, URL_FILE, WandbConfig
from trainer.signals import EXIT_STOPPED

_POLL_S = 0.5
_RETRY_S = 30.0
_GONE = -1
_SLACK_S = 1.0
"""Of the times of processes, which the system counts in ticks; a start of a run takes far longer."""
_TAKEN_OVER = {"by_tokens": "tokens", "by_flops": "flops"}
"""Losses are logged again under these prefixes, drawn against that number and not against the step."""
_LOSSES = ("loss", "heldout/loss")
_EVENTS = ("samples", "checkpoint")


class Page:
    """The W&B run of a run folder."""

    def __init__(self, folder: Path, mode: Literal["online", "offline"], *, parent: int | None) -> None:
        """`parent` is the process whose record is followed and whose use of the machine is shown."""
        self.folder, self._parent = folder, parent
        self.id = (folder / ID_FILE).read_text(encoding="utf-8").strip()
        config, self.name, self._settings = described(folder)
        self.config: WandbConfig = replace(config, mode=mode)
        # What the run wrote while this was being imported is news too.
        self._opened = time.time() - (0.0 if parent is None else process_age_s() + _SLACK_S)
        self._step, self._entry = -1, dict[str, Any]()

    def open(self) -> None:
        """Open the run, or go on with it. An offline run is written anew: it has no way to go on."""
        if self.config.mode == "offline":
            for old in (self.folder / "wandb").glob(f"offline-run-*-{self.id}"):
                shutil.rmtree(old)
        self.run = wandb.init(
            project=self.config.project,
            entity=self.config.entity,
            group=self.config.group,
            job_type=self.config.job_type,
            tags=list(self.config.tags),
            notes=self.config.notes,
            name=self.name,
            id=self.id,
            resume="allow" if self.config.mode == "online" else None,
            mode=self.config.mode,
            dir=str(self.folder),
            config=self._settings,
            settings=self._wandb_settings(),
        )
        for axis in ("step", *_TAKEN_OVER.values()):
            self.run.define_metric(axis)
        self.run.define_metric("*", step_metric="step")
        self.run.define_metric("heldout/loss", step_metric="step", summary="min,last")
        for prefix, axis in _TAKEN_OVER.items():
            self.run.define_metric(f"{prefix}/*", step_metric=axis)
        self._log_files("run", ["config.yaml", "data_plan.json", "metrics.jsonl", "log.txt"], self._settings)

    def _wandb_settings(self) -> wandb.Settings:
        watched: dict[str, Any] = {"x_disable_stats": True} if self._parent is None else {"x_stats_pid": self._parent}
        return wandb.Settings(
            silent=True,
            console="off",
            disable_git=True,
            save_code=False,
            x_save_requirements=False,
            x_stats_track_process_tree=True,
            finish_timeout=self.config.finish_s,
            **watched,
        )

    @property
    def starts_at(self) -> int:
        """The first step that W&B does not have."""
        return int(self.run.starting_step) if self.run.resumed else 0

    def show(self, row: dict[str, Any]) -> None:
        """One row of the record. What happened before this was opened alarms nobody.

        A step is sent when the next one begins, whole: what W&B has of a step it takes no second time.
        """
        step, is_new, is_news = row["step"], row["step"] >= self.starts_at, row["time"] >= self._opened
        if step != self._step:
            self.send()
            self._step = step
        if "alert" in row:
            kind, text = row["alert"]["kind"], row["alert"]["text"]
            if is_news:
                self.run.alert(f"{self.name}: {kind}", text, level="INFO" if kind == "preemption" else "ERROR")
        elif is_new:
            self._entry |= self._drawn(row)
        if "checkpoint" in row and (is_new or is_news) and (self.folder / row["checkpoint"]["path"]).is_dir():
            self._log_files("checkpoint", [row["checkpoint"]["path"]], row["checkpoint"])

    def send(self) -> None:
        """Send the step that was shown last."""
        if self._entry:
            self.run.log(self._entry, step=self._step, commit=True)
        self._entry = {}

    def _drawn(self, row: dict[str, Any]) -> dict[str, Any]:
        """What is drawn of a row, losses against every axis."""
        numbers = {key: value for key, value in row.items() if key not in _EVENTS}
        axes = [prefix for prefix, axis in _TAKEN_OVER.items() if axis in row]
        copies = {f"{prefix}/{key}": row[key] for key in _LOSSES if key in row for prefix in axes}
        media = self._samples(row["step"], row["samples"]) if "samples" in row else {}
        return {**numbers, **copies, **media, "_timestamp": row["time"]}

    def _samples(self, step: int, samples: dict[str, Any]) -> dict[str, Any]:
        """Sheet, videos and a table of them; pictures that are no longer there are left out."""
        shown: dict[str, Any] = {}
        if (sheet := self.folder / samples["sheet"]).is_file():
            shown["samples/sheet"] = wandb.Image(str(sheet), caption=f"step {step}")
        table = wandb.Table(columns=["step", "prompt", "seed", "video"])
        for number, one in enumerate(samples["videos"]):
            if (path := self.folder / one["path"]).is_file():
                shown[f"samples/video_{number}"] = wandb.Video(str(path), caption=one["prompt"], format="mp4")
                table.add_data(step, one["prompt"], one["seed"], wandb.Video(str(path), format="mp4"))
        return shown | ({"samples/table": table} if table.data else {})

    def _log_files(self, kind: str, names: Sequence[str], facts: dict[str, Any]) -> None:
        """An artifact of references: the files stay where they are."""
        artifact = wandb.Artifact(f"{kind}-{self.id}", type=kind, metadata=facts)
        for path in (self.folder / name for name in names):
            if path.exists():
                artifact.add_reference(path.absolute().as_uri(), name=path.name, checksum=False)
        self.run.log_artifact(artifact)

    def close(self, exit_code: int) -> None:
        """End the W&B run.

        Of a run that did not end by itself the last step may be half of what it will be when it is done again: online,
        where nothing can be added to it, that step is left to whoever goes on.
        """
        if exit_code in (0, EXIT_STOPPED) or self.config.mode == "offline":
            self.send()
        if exit_code == EXIT_STOPPED and self.config.mode == "online":
            self.run.mark_preempting()
        self.run.finish(exit_code=exit_code)


def described(folder: Path) -> tuple[WandbConfig, str, dict[str, Any]]:
    """Of a run folder what W&B is told of the run as a whole, its name and its settings."""
    path = folder / RUN_FILE
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        known = {field.name: told["wandb"][field.name] for field in fields(WandbConfig) if field.name in told["wandb"]}
        return WandbConfig(**{**known, "tags": tuple(known["tags"])}), told["name"], told["settings"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} does not describe a run ({type(error).__name__}: {error}): it is torn or of another version, and "
            "the run writes it anew when it is started once more"
        ) from error


def rows_of(file: IO[str], torn: list[str]) -> Iterator[dict[str, Any]]:
    """Rows that are whole by now; the beginning of one that is not waits in `torn`."""
    while line := file.readline():
        if not line.endswith("\n"):
            torn.append(line)
            continue
        text = "".join([*torn, line])
        try:
            row = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{file.name} has a line that is no row ({text[:40]!r}): take it out") from error
        yield row
        torn.clear()


def follow(page: Page) -> None:
    """Show rows as they are written until the run says how it ended, or is gone: killed, or aborted by NCCL."""
    exit_code = None
    while True:
        try:
            page.open()
            break
        except wandb.errors.CommError as error:
            print(f"no answer from W&B, tried again every {_RETRY_S:g} s: {error}", flush=True)
            if (exit_code := _told(_RETRY_S)) is not None:
                raise
    if url := page.run.url:
        scratch = page.folder / f"{URL_FILE}.tmp"
        scratch.write_text(url, encoding="utf-8")
        scratch.rename(page.folder / URL_FILE)
    torn: list[str] = []
    with (page.folder / "metrics.jsonl").open(encoding="utf-8") as file:
        while exit_code is None:
            exit_code = _told(_POLL_S)
            for row in rows_of(file, torn):
                page.show(row)
    if exit_code == _GONE:
        page.run.alert(f"{page.name}: gone", "the run ended without a word: see the log of its job", level="ERROR")
    page.close(abs(exit_code))


def _told(seconds: float) -> int | None:
    """How the run ended: its exit code, `_GONE` where it went without a word, None where it goes on."""
    if not select.select([sys.stdin.fileno()], [], [], seconds)[0]:
        return None
    words = os.read(sys.stdin.fileno(), 100).decode().strip()
    return int(words) if words else _GONE


def rebuild(page: Page) -> tuple[int, str]:
    """Show the whole record; returns how many rows and where they are to be seen."""
    page.open()
    rows, torn = 0, list[str]()
    with (page.folder / "metrics.jsonl").open(encoding="utf-8") as file:
        for row in rows_of(file, torn):
            page.show(row)
            rows += row["step"] >= page.starts_at
    where = page.run.url if page.config.mode == "online" else None
    page.close(0)
    return rows, where or str(Path(page.run.dir).parent)


def locked(folder: Path, *, waits: bool) -> IO[str]:
    """A lock on a run's mirror, held while the file is open; ValueError where another process has it."""
    (folder / "wandb").mkdir(exist_ok=True)
    file = (folder / "wandb" / "lock").open("w", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
    except BlockingIOError as error:
        raise ValueError(f"{folder} is being shown in W&B by its run: wait until that has ended") from error
    except OSError as error:  # a disk without locks: two that write one run are then only unlikely
        print(f"{folder} cannot be locked ({error.strerror})", file=sys.stderr)
    return file


def require_record(folder: Path, *, has_id: bool) -> None:
    """ValueError where a folder is not that of a run, or of one without an id that should have one."""
    for name in (RUN_FILE, ID_FILE, "metrics.jsonl"):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} has no {name}: name the folder of a run, such as runs/demo-dit")
    if has_id and not (folder / ID_FILE).read_text(encoding="utf-8").strip():
        raise ValueError(f"{folder / ID_FILE} is empty, as a full disk leaves it: --fresh gives the run an id")


def work(options: argparse.Namespace) -> int:
    """Do what was asked for; the exit code."""
    folder: Path = options.run
    require_record(folder, has_id=not options.fresh)
    given = described(folder)[0].mode
    mode: Literal["online", "offline"] = options.mode or ("offline" if given == "disabled" else given)
    with locked(folder, waits=options.follow is not None):
        if options.follow is not None:
            if (folder / NEWEST_FILE).read_text(encoding="utf-8") == options.follow:
                follow(Page(folder, mode, parent=os.getppid()))
            return 0
        if options.fresh:
            (folder / ID_FILE).write_text(os.urandom(6).hex(), encoding="utf-8")
        rows, where = rebuild(Page(folder, mode, parent=None))
    print(f"{rows} rows in {where}" + (f"; to upload them: wandb sync {where}" if mode == "offline" else ""))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m trainer.wandb_sync", description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--mode", choices=("online", "offline"), help="else that of the run")
    parser.add_argument("--fresh", action="store_true", help="as a new W&B run, beside what there is")
    parser.add_argument("--follow", metavar="NAME", help=argparse.SUPPRESS)  # as a run starts it, see trainer/mirror.py
    options = parser.parse_args(arguments)
    if options.follow is not None:  # it ends after the run, whatever signals both get
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)
    try:
        return work(options)
    except KeyboardInterrupt:
        print("stopped; the same command does it again", file=sys.stderr)
        return 130
    except (ValueError, OSError, wandb.errors.Error) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
