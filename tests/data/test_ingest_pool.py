"""Worker processes: parts come back, one that dies is told from one that fails, none is left behind."""

import multiprocessing
from pathlib import Path

import pytest

import data.ingest_pool
from data.ingest_plan import IngestConfig, Plan, make_plan
from data.ingest_pool import PoolConfig, work_parts
from data.ingest_progress import IngestProgress
from data.listing import Columns, read_listing
from tests.data.films import film, put, make_and_die

CONFIG = IngestConfig(files_per_part=2)


def plan_of(folder: Path, names: list[str], media: bytes = b"x") -> Plan:
    for name in names:
        put(folder, name, media, "a caption")
    return make_plan(read_listing(folder, Columns()), CONFIG)


def work(plan: Plan, folder: Path, **facts: object) -> dict:
    (folder / "parts").mkdir(parents=True, exist_ok=True)
    pool = PoolConfig(ingest=CONFIG, folder=folder, workers=2, **facts)
    with IngestProgress(plan, {}) as progress:
        records = {part.number: record for part, record in work_parts(plan.parts, pool, progress)}
    assert progress.line().startswith(f"{plan.files - len(plan.parts)} of {plan.files} files")
    assert not multiprocessing.active_children()
    return records


def test_all_parts_come_back(tmp_path: Path):
    plan = plan_of(tmp_path / "in", ["a.mp4", "b.mp4", "c.mp4"], film((30,)))
    records = work(plan, tmp_path / "out")
    assert {number: record.clips for number, record in records.items()} == {0: 2, 1: 1}


def test_a_file_that_kills_its_worker_twice_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(data.ingest_pool, "make_part", make_and_die)
    plan = plan_of(tmp_path / "in", ["a.mp4", "b_deadly.mp4", "c_deadly.mp4", "d_deadly.mp4", "e.mp4"])
    records = work(plan, tmp_path / "out")
    assert {number: record.files_used for number, record in records.items()} == {0: 1, 1: 2, 2: 0}


def test_the_first_failure_stops_all(tmp_path: Path):
    plan = plan_of(tmp_path / "in", ["a.mp4", "b.mp4", "c.mp4"])
    with pytest.raises(ValueError, match="--strict: "):
        work(plan, tmp_path / "out", strict=True)
    assert not multiprocessing.active_children()


def test_a_worker_that_cannot_write_says_so(tmp_path: Path):
    plan = plan_of(tmp_path / "in", ["a.mp4"], film((30,)))
    (tmp_path / "out").mkdir()
    pool = PoolConfig(ingest=CONFIG, folder=tmp_path / "gone", workers=1)
    with IngestProgress(plan, {}) as progress, pytest.raises(OSError, match="gone"):
        list(work_parts(plan.parts, pool, progress))
