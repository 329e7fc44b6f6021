"""One part: its shards and record stand together or not at all."""

import json
from pathlib import Path

import pytest

from data.ingest_part import PartRecord, make_part, read_record
from data.ingest_plan import IngestConfig, Part, make_plan
from data.listing import Columns, read_listing
from tests.data.films import film, put

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
