"""Make clip shards of a real collection: python -m data.ingest SOURCE OUT [options].

SOURCE is a folder of videos and images, captions in KEY.txt or KEY.json beside each, or a list of them (CSV, JSONL,
Parquet). Videos are cut at their scene cuts. A run that was stopped goes on with the same command.
"""

import argparse
import dataclasses
import errno
import fcntl
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from data.clips import INDEX_NAME, write_index
from data.command import command
from data.ingest_part import RECORDS, IngestProgress, PartRecord, PoolConfig, read_record, refuse_problems, work_parts
from data.ingest_plan import IngestConfig, Plan, Problem, make_plan
from data.listing import Columns, read_listing
from data.shards import put_in_place, restore_folder, write_whole

REPORT_NAME = "report.json"
SETTINGS_NAME = "ingest.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class IngestRun:
    """One run of the command."""

    source: Path
    out: Path
    config: IngestConfig
    workers: int
    strict: bool = False
    replace: bool = False

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"--workers {self.workers} must be at least 1")

    @property
    def unfinished(self) -> Path:
        """Where the work lies until all of it is done."""
        return self.out.with_name(self.out.name + ".unfinished")


def ingest(run: IngestRun) -> dict[str, Any]:
    """Make the clip shards, or go on making them; the report. ValueError where it cannot be, or may not."""
    restore_folder(run.out)
    _check_settings(run)
    plan = make_plan(read_listing(run.source, run.config.columns), run.config)
    standing = _standing_report(run, plan)
    if standing is not None:
        print(f"{run.out} stands: {standing['clips']} clips of these files with these settings; nothing to do")
        return standing
    if run.strict:
        refuse_problems(plan.problems)
    with _alone(run):
        if not run.replace and run.out.is_dir() and any(run.out.iterdir()):
            raise ValueError(f"another ingest has written {run.out} meanwhile: run the same command again")
        records = _work(run, plan)
        report = _finish(run, plan, records)
    print("\n".join(summary_lines(report)))
    print(f"written  {run.out}, with {REPORT_NAME}")
    return report


def dry_run(run: IngestRun) -> None:
    """Say what would be done; nothing is written and no media is opened."""
    _check_settings(run)
    plan = make_plan(read_listing(run.source, run.config.columns), run.config)
    done = [part for part in plan.parts if read_record(run.unfinished, part) is not None]
    files = [file for part in plan.parts for file in part.files]
    size = sum(file.bytes or 0 for file in files)
    rows = sum(len(file.rows) for file in files)
    kinds = Counter(file.extension for file in files)
    print(f"files    {len(files)} in {rows} rows, {size / 2**20:.1f} MiB where the size is known: {_counts(kinds)}")
    print(f"parts    {len(plan.parts)}, {len(done)} of them done; {run.workers} workers")
    how = "kept whole" if run.config.whole else f"cut at scenes, {run.config.min_s:g} to {run.config.max_s:g} s"
    size_rule = f"short side at most {run.config.short_side}" if run.config.short_side else "at native size"
    print(f"clips    {how}, {size_rule}")
    for line in problem_lines(plan.problems, plan.ignored):
        print(line)
    if _standing_report(run, plan) is not None:
        print(f"{run.out} stands: nothing would be done")
    else:
        print(f"would write {run.out}; nothing was written")


def _check_settings(run: IngestRun) -> None:
    """ValueError where OUT, or an unfinished one, was made with other settings and may not be replaced."""
    if run.out.exists() and not run.out.is_dir():
        raise ValueError(f"{run.out} is a file: give a folder for the clips")
    is_ours = (run.out / SETTINGS_NAME).is_file() and (run.out / INDEX_NAME).is_file()
    if run.out.is_dir() and any(run.out.iterdir()) and not is_ours:
        raise ValueError(f"{run.out} holds something that is no ingest of clips: give another folder")
    for folder in (run.out, run.unfinished):
        differing = _differing(folder, run.config)
        if differing and not run.replace:
            raise ValueError(
                f"{folder} was made with other settings ({differing}): give those, another folder, or --replace"
            )


def _differing(folder: Path, config: IngestConfig) -> str:
    """Settings of a folder that are not `config`'s, in words; empty where all are equal."""
    path = folder / SETTINGS_NAME
    if not path.is_file():
        return ""
    try:
        before: dict[str, Any] = dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        return f"{SETTINGS_NAME} cannot be read: {error}"
    now = config.to_json()
    return ", ".join(
        f"{name}: {before.get(name)}, not {now.get(name)}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    )


def _standing_report(run: IngestRun, plan: Plan) -> dict[str, Any] | None:
    """The report of OUT if it is finished and made of the same files; ValueError where it is of others."""
    path = run.out / REPORT_NAME
    if run.replace or not path.is_file():
        return None
    try:
        report: dict[str, Any] = json.loads(path.read_text())
        inputs, _ = report["inputs"], report["clips"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}): give another folder, or --replace") from error
    if inputs != plan.inputs():
        raise ValueError(
            f"{run.out} was made when {run.source} held other files or captions: give another folder, or --replace"
        )
    return report


@contextmanager
def _alone(run: IngestRun) -> Iterator[None]:
    """Keeps a second run from the same OUT; the lock goes with the process, however it ends."""
    run.unfinished.mkdir(parents=True, exist_ok=True)
    lock = os.open(run.unfinished, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"another ingest is writing {run.out}: wait for it, or stop it") from error
        yield
    finally:
        os.close(lock)


def _work(run: IngestRun, plan: Plan) -> list[PartRecord]:
    """Records of all parts, made or found, in order."""
    folder = run.unfinished
    if _differing(folder, run.config):
        # The folder itself is what is locked. Records go first and settings last: what is left in between is refused.
        order = sorted(folder.iterdir(), key=lambda path: (path.name == SETTINGS_NAME) - (path.name == RECORDS))
        for path in order:
            _remove(path)
    (folder / RECORDS).mkdir(parents=True, exist_ok=True)
    if not (folder / SETTINGS_NAME).is_file():
        write_whole(folder / SETTINGS_NAME, _json(run.config.to_json()))
    found = {part.number: read_record(folder, part) for part in plan.parts}
    records = {number: record for number, record in found.items() if record is not None}
    if run.strict:
        refuse_problems(problem for record in records.values() for problem in record.problems)
    if records:
        print(f"going on: {len(records)} of {len(plan.parts)} parts stand")
    todo = [part for part in plan.parts if part.number not in records]
    pool = PoolConfig(ingest=run.config, folder=folder, workers=run.workers, strict=run.strict)
    with IngestProgress(plan, records) as progress, closing(work_parts(todo, pool, progress)) as working:
        for part, record in working:
            records[part.number] = record
            progress.hear(part, record.files, record.clips)
    return [records[part.number] for part in plan.parts]


def _finish(run: IngestRun, plan: Plan, records: list[PartRecord]) -> dict[str, Any]:
    """Write index and report, drop what belongs to no part, and give the folder its name."""
    folder = run.unfinished
    report = _report(run, plan, records)
    write_whole(folder / REPORT_NAME, _json(report))
    shards = [shard for record in records for shard in record.shards]
    if not shards:
        first = f"; the first: {_first(plan, records)}"
        raise ValueError(f"no clip could be made of {run.source}: {_counts(Counter(report['reasons']))}{first}")
    kept = {shard.name for shard in shards} | {REPORT_NAME, SETTINGS_NAME}
    for path in folder.iterdir():
        if path.name != RECORDS and path.name not in kept:
            _remove(path)
    write_index(folder, shards)
    put_in_place(folder, run.out)
    return report


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def _first(plan: Plan, records: list[PartRecord]) -> Problem:
    return next(iter([*plan.problems, *(problem for record in records for problem in record.problems)]))


def _report(run: IngestRun, plan: Plan, records: list[PartRecord]) -> dict[str, Any]:
    """What stands in report.json: nothing that depends on the time, the machine or the number of workers."""
    problems = [*plan.problems, *(problem for record in records for problem in record.problems)]
    return {
        "source": str(run.source),
        "inputs": plan.inputs(),
        "files": plan.files,
        "files_used": sum(record.files_used for record in records),
        "clips": sum(record.clips for record in records),
        "images": sum(record.images for record in records),
        "video_s": round(sum(record.video_s for record in records), 3),
        "bytes": sum(shard.bytes for record in records for shard in record.shards),
        "reasons": dict(Counter(problem.kind for problem in problems)),
        "ignored": dict(sorted(plan.ignored.items())),
        "problems": [dataclasses.asdict(problem) for problem in problems],
    }


def summary_lines(report: dict[str, Any]) -> list[str]:
    videos = report["clips"] - report["images"]
    made = f"{videos} of video ({report['video_s']:.1f} s) and {report['images']} images"
    size = f"{report['bytes'] / 2**20:.1f} MiB"
    problems = [Problem(**problem) for problem in report["problems"]]
    line = f"clips    {made}, {size}, from {report['files_used']} of {report['files']} files"
    return [line] + problem_lines(problems, Counter(report["ignored"]))


def problem_lines(problems: Sequence[Problem], ignored: Counter[str]) -> list[str]:
    """Problems by kind, each with an example."""
    examples: dict[str, Problem] = {}
    for problem in problems:
        examples.setdefault(problem.kind, problem)
    lines = [f"problems {len(problems)}"] if problems else []
    for kind, count in Counter(problem.kind for problem in problems).most_common():
        lines.append(f"  {count:>7}  {kind}, such as {examples[kind]}")
    return lines + ([f"ignored  {_counts(ignored)}"] if ignored else [])


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counter.most_common()) or "none"


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, indent=1).encode()


@command("interrupted; finished parts are kept, and the same command goes on")
def main(arguments: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    run = _run_of(given)
    try:
        if given.dry_run:
            dry_run(run)
        else:
            ingest(run)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        full = f"the disk ran full while writing {given.out}: make room and run the same command again, which goes on"
        raise OSError(full) from error
    return 0


def _run_of(given: argparse.Namespace) -> IngestRun:
    pairs = [kind_column.partition("=") for kind_column in given.caption]
    columns = Columns(
        path=given.path_column,
        captions=tuple((kind, column or kind) for kind, _, column in pairs),
        source=given.source_column,
        start_s=given.start_column,
        end_s=given.end_column,
    )
    names = [field.name for field in dataclasses.fields(IngestConfig) if field.name != "columns"]
    return IngestRun(
        source=given.source,
        out=given.out if given.out.name else given.out.resolve(),
        config=IngestConfig(columns=columns, **{name: getattr(given, name) for name in names}),
        workers=given.workers,
        strict=given.strict,
        replace=given.replace,
    )


def _parser() -> argparse.ArgumentParser:
    plain, columns = IngestConfig(), Columns()
    parser = argparse.ArgumentParser(
        prog="python -m data.ingest", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("source", type=Path, metavar="SOURCE", help="folder of media, or a list: .csv, .tsv, .jsonl, .parquet")
    add("out", type=Path, metavar="OUT", help="folder for the clip shards")
    add("--whole", action="store_true", help="no cuts: copy each file, recode only time ranges and too large ones")
    add(
        "--min-s",
        type=float,
        default=plain.min_s,
        metavar="S",
        help="shorter videos and pieces are left out (%(default)g)",
    )
    add("--max-s", type=float, default=plain.max_s, metavar="S", help="longer shots are cut into pieces (%(default)g)")
    add("--short-side", type=int, metavar="PIXELS", help="scale down to this shorter side (default: keep the size)")
    add("--crf", type=int, default=plain.crf, help="quality of recoded video, lower is better (%(default)s)")
    add("--path-column", default=columns.path, metavar="NAME", help="column of the media's path (%(default)s)")
    what = "column of captions and their kind, may be repeated (descriptive=descriptive or =caption, short=short)"
    add("--caption", action="append", default=[], metavar="KIND=COLUMN", help=what)
    add("--source-column", default=columns.source, metavar="NAME", help="what held-out splits go by (%(default)s)")
    add("--start-column", default=columns.start_s, metavar="NAME", help="start in seconds (%(default)s)")
    add("--end-column", default=columns.end_s, metavar="NAME", help="end in seconds (%(default)s)")
    add("--clips-per-shard", type=int, default=plain.clips_per_shard, metavar="N", help="at most (%(default)s)")
    add(
        "--files-per-part",
        type=int,
        default=plain.files_per_part,
        metavar="N",
        help="files done together (%(default)s)",
    )
    add("--workers", type=int, default=len(os.sched_getaffinity(0)), metavar="N", help="processes (default: the cores)")
    add("--strict", action="store_true", help="stop at the first file or row that cannot be used")
    add("--replace", action="store_true", help="make OUT anew, whatever it was made of")
    add("--dry-run", action="store_true", help="say what would be done")
    return parser


if __name__ == "__main__":
    sys.exit(main())
