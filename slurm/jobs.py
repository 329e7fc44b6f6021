"""Look after submitted jobs: what they do, what they print; end them or send them back to the queue.

    python -m slurm.jobs status                  all of yours that wait or run
    python -m slurm.jobs status runs/first 1234  also jobs that have ended
    python -m slurm.jobs tail runs/first [-n 50] [-f]
    python -m slurm.jobs cancel runs/first       saves first; a chain is cancelled whole
    python -m slurm.jobs requeue 1234            saves, and starts again later, from there

A job is named by its id or by its run's folder or name.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from data.command import command
from slurm.client import ask

FILE_NAME = "jobs.jsonl"
RUNS, LOGS = Path("runs"), Path("runs/slurm")
_ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "BOOT_FAIL")
_HEADINGS = ("JOB", "STATE", "SINCE/REASON", "LIMIT", "NODES", "STARTS", "RUN", "STEP", "LOSS")
_TAIL_BYTES = 1 << 16
_FOLDERS = ("*", "sweeps/*/runs/*", "sweeps/*/bet/runs/*")
"""Where runs lie below `runs`; those that were given another `folder=` are found by that."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """What a user named."""

    jobs: tuple[str, ...]
    """Oldest first; `12_3` is a task of an array."""
    folder: Path | None


def target_of(word: str) -> Target:
    """A job id, or a run with the jobs that were submitted for it."""
    if word.replace("_", "").isdigit():
        return Target(jobs=(word,), folder=_folder_of(word))
    for folder in (Path(word), RUNS / word):
        if found := job_ids(folder):
            return Target(jobs=tuple(found), folder=folder)
    raise ValueError(f"{word} is neither the id of a job nor a run that python -m slurm.submit made (no {FILE_NAME})")


def job_ids(folder: Path) -> list[str]:
    """Jobs that were submitted for a run folder, oldest first."""
    path = folder / FILE_NAME
    if not path.is_file():
        return []
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [row["job"] if row["task"] is None else f"{row['job']}_{row['task']}" for row in rows]


def note_job(folder: Path, job: str, *, task: int | None) -> None:
    """Remember a job of a run."""
    row = {"job": job, "task": task, "time": round(time.time())}
    with (folder / FILE_NAME).open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def queued(jobs: Sequence[str]) -> list[str]:
    """Those of the jobs that wait or run."""
    if not jobs:
        return []
    listed = ask("squeue", "--me", "--noheader", "--array", "--format", "%F %i").split()
    return [job for job in jobs if job in listed]


def _folder_of(job: str) -> Path | None:
    paths = (path for pattern in _FOLDERS for path in RUNS.glob(f"{pattern}/{FILE_NAME}"))
    return next((path.parent for path in paths if job in job_ids(path.parent)), None)


def described(job: str) -> list[dict[str, str]]:
    """What SLURM knows of a job, for each task of an array: from the controller, else from its accounting."""
    try:
        lines = ask("scontrol", "--oneliner", "show", "job", job).splitlines()
        return [dict(word.split("=", 1) for word in line.split() if "=" in word) for line in lines]
    except ValueError as error:
        forgotten = str(error)
    if "Invalid job id" not in forgotten:
        raise ValueError(forgotten)
    fields = {"JobID": "JobId", "State": "JobState", "End": "EndTime", "NodeList": "NodeList"}
    try:
        text = ask("sacct", "-X", "--noheader", "--parsable2", "--format", ",".join(fields), "--jobs", job)
        if text:
            return [dict(zip(fields.values(), line.split("|"), strict=True)) for line in text.splitlines()]
        why = "not in SLURM's accounting"
    except ValueError as error:
        why = f"no accounting: {error}".replace("\n", " ")[:60]
    return [{"JobId": job, "JobState": "ENDED", "Reason": f"({why})"}]


def status(words: Sequence[str]) -> None:
    """A line for each job."""
    targets = [target_of(word) for word in words]
    if not words:
        ids = dict.fromkeys(ask("squeue", "--me", "--noheader", "--array", "--format", "%i").split())
        targets = [Target(jobs=(job,), folder=_folder_of(job)) for job in ids]
    rows = [_row(job, facts, one.folder) for one in targets for job in one.jobs for facts in described(job)]
    if not rows:
        print("no job of yours waits or runs; name a run to see how it ended")
        return
    table = [_HEADINGS, *rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _row(job: str, facts: dict[str, str], folder: Path | None) -> Sequence[str]:
    state, task = facts.get("JobState", "?"), facts.get("ArrayTaskId")
    when = {"PENDING": facts.get("Reason", ""), "RUNNING": facts.get("StartTime", "")}.get(state, facts.get("EndTime"))
    step, loss = _progress(folder) if folder else ("", "")
    return (
        job if task is None or "_" in job else f"{job}_{task}",
        state,
        when or facts.get("Reason", ""),
        facts.get("TimeLimit", ""),
        (facts.get("NodeList") or "").replace("(null)", "") or facts.get("NumNodes", ""),
        str(int(facts["Restarts"]) + 1) if "Restarts" in facts else "",
        str(folder or facts.get("JobName", "")),
        step,
        loss,
    )


def _progress(folder: Path) -> tuple[str, str]:
    """Last step of all, and its loss."""
    row = _last_row(folder / "metrics.jsonl")
    config = folder / "config.yaml"
    if row is None or not config.is_file():
        return "", ""
    steps = yaml.safe_load(config.read_text(encoding="utf-8"))["run"]["steps"]
    return f"{row['step']}/{steps}", f"{row['loss']:.4f}"


def _last_row(path: Path) -> dict[str, Any] | None:
    """The last row with a loss; only the end of the file is read."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - _TAIL_BYTES, 0))
        lines = file.read().splitlines()
    for line in reversed(lines):
        try:
            row = json.loads(line)
        except ValueError:
            continue  # torn at either end
        if "loss" in row:
            return dict(row)
    return None


def tail(word: str, *, lines: int, follow: bool) -> None:
    """The end of the log of the newest job that has one; following ends with the job."""
    one = target_of(word)
    log = next((path for job in reversed(one.jobs) if (path := LOGS / f"{job}.log").exists()), None)
    if log is None:
        facts = described(one.jobs[-1])[0]
        raise ValueError(
            f"there is no {LOGS / one.jobs[-1]}.log: the job is {facts['JobState']} ({facts.get('Reason', '')})"
        )
    print(f"== {log}")
    with log.open(encoding="utf-8", errors="replace") as file:
        print("".join(file.readlines()[-lines:] if lines else []), end="", flush=True)
        while follow:
            print(text := file.read(), end="", flush=True)
            if not text and log.stem not in queued([log.stem]):
                return
            time.sleep(2.0)


def cancel(words: Sequence[str]) -> None:
    """End jobs; the last of a chain first, for none to follow."""
    for one in map(target_of, words):
        there = [job for job in reversed(one.jobs) if job in queued(one.jobs)]
        if there:
            ask("scancel", *there)
        print(f"cancelled: {', '.join(there)}" if there else f"{', '.join(one.jobs)}: not in the queue any more")


def requeue(words: Sequence[str]) -> None:
    """Send jobs back to the queue; SLURM asks them to save first."""
    for one in map(target_of, words):
        job = (queued(one.jobs) or one.jobs)[0]
        ask("scontrol", "requeue", job)
        print(
            f"job {job} goes back to the queue; sooner than in two minutes: scontrol update jobid={job} StartTime=now"
        )


@command("stopped looking; the job goes on")
def main(words: Sequence[str] | None = None) -> int:
    """Parse arguments and do it."""
    assert __doc__ is not None
    shape = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m slurm.jobs", description=__doc__, formatter_class=shape)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("status", help="what jobs do").add_argument("jobs", nargs="*")
    watch = commands.add_parser("tail", help="what a job prints")
    watch.add_argument("job")
    watch.add_argument("-n", "--lines", type=int, default=20)
    watch.add_argument("-f", "--follow", action="store_true")
    commands.add_parser("cancel", help="save and end").add_argument("jobs", nargs="+")
    commands.add_parser("requeue", help="save and start again later").add_argument("jobs", nargs="+")
    given = parser.parse_args(words)
    if given.command == "tail":
        tail(given.job, lines=given.lines, follow=given.follow)
    else:
        {"status": status, "cancel": cancel, "requeue": requeue}[given.command](given.jobs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
