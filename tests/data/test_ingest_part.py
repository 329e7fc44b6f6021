"""One part: its shards and record stand together or not at all."""

import json
import multiprocessing
from pathlib import Path

import pytest

import data.ingest_part
from data.ingest_part import IngestProgress, PartRecord, PoolConfig, make_part, read_record, work_parts
from data.ingest_plan import IngestConfig, Part, Plan, make_plan
from data.listing import Columns, read_listing
from tests.data.films import die, film, make_and_die, put

CONFIG = IngestConfig(clips_per_shard=2)


def part_of(folder: Path) -> Part:
    put(folder, "a.mp4", film((30, 30, 30)), "a film")
    put(folder, "b.mp4", b"nothing", "broken")
    put(folder, "c.mp4", film((30,), first=3), "another")
    return make_plan(read_listing(folder, Columns()), CONFIG).parts[0]


def make(part: Part, out: Path, crashed: dict[int, str] | None = None, *, strict: bool = False) -> PartRecord:
    (out / "parts").mkdir(parents=True, exist_ok=True)
    *heard, record = make_part(part, CONFIG, out, crashed=crashed or {}, strict=strict)
    assert sorted({index for index, _ in heard}) == list(range(record.files))
    assert len(heard) == record.files + record.clips
    assert [clips for _, clips in heard] == sorted(clips for _, clips in heard)
    return record


def test_a_part_is_shards_and_a_record(tmp_path: Path):
    part, out = part_of(tmp_path / "in"), tmp_path / "out"
    record = make(part, out)
    assert (record.files, record.files_used, record.clips, record.images, record.video_s) == (3, 2, 4, 0, 5.0)
    assert [(shard.name, shard.count) for shard in record.shards] == [
        ("clips-000000-000000.tar", 2),
        ("clips-000000-000001.tar", 2),
    ]
    assert [problem.kind for problem in record.problems] == ["cannot be decoded"]
    assert read_record(out, part) == record
    assert sorted(path.name for path in out.iterdir()) == [*(shard.name for shard in record.shards), "parts"]


def test_a_record_of_other_files_or_lost_shards_does_not_stand(tmp_path: Path):
    part, out = part_of(tmp_path / "in"), tmp_path / "out"
    assert read_record(out, part) is None
    record = make(part, out)
    put(tmp_path / "in", "c.mp4", film((31,)), "another")
    changed = make_plan(read_listing(tmp_path / "in", Columns()), CONFIG).parts[0]
    assert read_record(out, changed) is None
    with open(out / record.shards[1].name, "ab") as file:
        file.write(b"x")
    assert read_record(out, part) is None


def test_what_an_interrupted_run_left_is_replaced(tmp_path: Path):
    part, out = part_of(tmp_path / "in"), tmp_path / "out"
    first = make(part, out)
    (out / "parts" / "000000.partial").write_text("half a rec")
    (out / "clips-000000-000007.tar").write_bytes(b"half a shard")
    assert make(part, out) == first
    assert not (out / "clips-000000-000007.tar").exists()
    assert json.loads((out / "parts" / "000000.json").read_text())["clips"] == 4


def test_crashed_files_are_left_out_with_their_reason(tmp_path: Path):
    record = make(part_of(tmp_path / "in"), tmp_path / "out", {0: "crashed: it died"})
    assert str(record.problems[0]) == "a.mp4: crashed: it died"
    assert record.clips == 1


def test_strict_stops_at_the_first_problem(tmp_path: Path):
    with pytest.raises(ValueError, match=r"--strict: b\.mp4: cannot be decoded"):
        make(part_of(tmp_path / "in"), tmp_path / "out", strict=True)
    assert not list((tmp_path / "out" / "parts").iterdir())


PAIRS = IngestConfig(files_per_part=2)


def plan_of(folder: Path, names: list[str], media: bytes = b"x") -> Plan:
    for name in names:
        put(folder, name, media, "a caption")
    return make_plan(read_listing(folder, Columns()), PAIRS)


def work(plan: Plan, folder: Path, **facts: object) -> dict:
    (folder / "parts").mkdir(parents=True, exist_ok=True)
    pool = PoolConfig(ingest=PAIRS, folder=folder, workers=2, **facts)
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
    monkeypatch.setattr(data.ingest_part, "make_part", make_and_die)
    plan = plan_of(tmp_path / "in", ["a.mp4", "b_deadly.mp4", "c_deadly.mp4", "d_deadly.mp4", "e.mp4"])
    records = work(plan, tmp_path / "out")
    assert {number: record.files_used for number, record in records.items()} == {0: 1, 1: 2, 2: 0}


def test_processes_that_die_whatever_they_are_given_stop_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(data.ingest_part, "make_part", die)
    with pytest.raises(ChildProcessError, match="a process ended with exit code -9 at its work: give it more memory"):
        work(plan_of(tmp_path / "in", ["a.mp4"]), tmp_path / "out")
    assert not multiprocessing.active_children()


def test_the_first_failure_stops_all(tmp_path: Path):
    plan = plan_of(tmp_path / "in", ["a.mp4", "b.mp4", "c.mp4"])
    with pytest.raises(ValueError, match="--strict: "):
        work(plan, tmp_path / "out", strict=True)
    assert not multiprocessing.active_children()


def test_a_worker_that_cannot_write_says_so(tmp_path: Path):
    plan = plan_of(tmp_path / "in", ["a.mp4"], film((30,)))
    (tmp_path / "out").mkdir()
    pool = PoolConfig(ingest=PAIRS, folder=tmp_path / "gone", workers=1)
    with IngestProgress(plan, {}) as progress, pytest.raises(OSError, match="gone"):
        list(work_parts(plan.parts, pool, progress))


@pytest.fixture
def four_files(tmp_path: Path) -> Plan:
    for number in range(4):
        put(tmp_path, f"{number}.mp4", bytes(1 << 20), "x")
    return make_plan(read_listing(tmp_path, Columns()), IngestConfig(files_per_part=2))


def test_files_clips_rate_and_time_left(four_files: Plan, monkeypatch: pytest.MonkeyPatch):
    now = 100.0
    monkeypatch.setattr(data.ingest_part.time, "monotonic", lambda: now)
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
    monkeypatch.setattr(data.ingest_part.time, "monotonic", lambda: now)
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
