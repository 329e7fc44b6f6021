"""Worker processes: parts come back, one that dies is told from one that fails, none is left behind."""

import multiprocessing
from pathlib import Path

import pytest

import data.ingest_pool
from data.ingest_part import PartRecord
from data.ingest_plan import IngestConfig, Plan, make_plan
from data.ingest_pool import IngestProgress, PoolConfig, work_parts
from data.listing import Columns, read_listing
from tests.data.films import film, make_and_die, put

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


@pytest.fixture
def four_files(tmp_path: Path) -> Plan:
    for number in range(4):
        put(tmp_path, f"{number}.mp4", bytes(1 << 20), "x")
    return make_plan(read_listing(tmp_path, Columns()), IngestConfig(files_per_part=2))


def test_files_clips_rate_and_time_left(four_files: Plan, monkeypatch: pytest.MonkeyPatch):
    now = 100.0
    monkeypatch.setattr(data.ingest_pool.time, "monotonic", lambda: now)
    standing = {0: PartRecord(hash=four_files.parts[0].hash, files=2, files_used=2, clips=7)}
    progress = IngestProgress(four_files, standing)
    assert progress.line() == "2 of 4 files, 7 clips, 0.0 MiB/s"
    now = 110.0
    progress.hear(four_files.parts[1], 1, 3)
    assert progress.line() == "3 of 4 files, 10 clips, 0.1 MiB/s, 10 s left"


def test_a_plain_line_every_ten_seconds(
    four_files: Plan, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    now = 0.0
    monkeypatch.setattr(data.ingest_pool.time, "monotonic", lambda: now)
    with IngestProgress(four_files, {}) as progress:
        for at in (3.0, 9.0, 11.0, 15.0, 22.0):
            now = at
            progress.show()
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_a_live_line_on_a_terminal(four_files: Plan, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with IngestProgress(four_files, {}) as progress:
        progress.hear(four_files.parts[0], 1, 2)
        progress.show()
    assert "1 of 4 files, 2 clips" in capsys.readouterr().err
