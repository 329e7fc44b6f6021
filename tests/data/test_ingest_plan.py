"""Keys, parts and what is known before any file is opened."""

import os
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from data.ingest_plan import IngestConfig, Plan, key_of, make_plan
from data.listing import Listing, Row
from data.shards import check_key


def row(number: int, path: str, **facts: object) -> Row:
    return replace(Row(number=number, path=path, captions={"short": f"c{number}"}, source=path), **facts)


def plan(folder: Path, rows: list[Row], **settings: object) -> Plan:
    return make_plan(Listing(folder=folder, rows=rows, ignored=Counter()), IngestConfig(**settings))


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("a.mp4", "a"),
        ("sub/dir/a_b-c.png", "sub/dir/a_b-c"),
        ("/data/x/a.mp4", "data/x/a"),
        ("s3://bucket/x/a.mp4", "bucket/x/a"),
    ],
)
def test_plain_paths_are_their_own_keys(path: str, key: str):
    assert key_of(path) == key


@pytest.mark.parametrize(
    "path",
    [
        "a b.mp4",
        "犬.mp4",
        "a.b.mp4",
        "../x.mp4",
        "a--0001.mp4",
        f"{'x' * 70}.mp4",
        f"{'d/' * 40}x.mp4",
        "https://h/a.mp4?t=1",
    ],
)
def test_other_paths_get_a_safe_key_with_a_hash(path: str):
    key = key_of(path)
    check_key(f"{key}--0001--0001_w00")
    assert re.search(r"-[0-9a-f]{10}$", key)
    assert "--" not in key


def test_names_in_other_letters_do_not_collide():
    assert len({key_of(path) for path in ("犬.mp4", "猫.mp4", "a b.mp4", "a_b.mp4", "a.b.mp4")}) == 5


def test_rows_of_one_file_come_together_and_duplicates_are_told(tmp_path: Path):
    rows = [
        row(1, "a.mp4", end_s=2.0),
        row(2, "b.mp4"),
        row(3, "./a.mp4", start_s=2.0),
        row(4, "a.mp4", end_s=2.0),
        row(5, "b.webm"),
        row(6, "c.mp4", captions={}, problem="empty caption: nothing"),
    ]
    made = plan(tmp_path, rows)
    assert [(file.key, [r.number for r in file.rows]) for part in made.parts for file in part.files] == [
        ("a", [1, 3]),
        ("b", [2]),
    ]
    assert {(problem.row, problem.kind) for problem in made.problems} == {
        (4, "duplicate row"),
        (5, "duplicate key"),
        (6, "empty caption"),
    }


def test_paths_are_found_from_the_list_and_keyed_from_it(tmp_path: Path):
    inside = tmp_path / "sub" / "a.mp4"
    inside.parent.mkdir()
    inside.write_bytes(b"12345")
    made = plan(tmp_path, [row(1, str(inside)), row(2, "s3://b/k.mp4"), row(3, "gone.mp4")])
    files = made.parts[0].files
    assert [(file.key, file.location, file.bytes) for file in files] == [
        ("sub/a", str(inside), 5),
        ("b/k", "s3://b/k.mp4", None),
        ("gone", str(tmp_path / "gone.mp4"), None),
    ]


def test_parts_are_so_many_files_or_less_if_they_are_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for number in range(6):
        (tmp_path / f"{number}.mp4").write_bytes(bytes(100 if number == 3 else 10))
    rows = [row(number + 1, f"{number}.mp4") for number in range(6)]
    assert [len(part.files) for part in plan(tmp_path, rows, files_per_part=4).parts] == [4, 2]
    monkeypatch.setattr("data.ingest_plan._PART_BYTES", 50)
    assert [len(part.files) for part in plan(tmp_path, rows, files_per_part=4).parts] == [3, 1, 2]


def test_a_part_is_named_by_its_files_captions_and_state(tmp_path: Path):
    for name in "abc":
        (tmp_path / f"{name}.mp4").write_bytes(b"x")
    rows = [row(number, f"{name}.mp4") for number, name in enumerate("abc", start=1)]
    before = plan(tmp_path, rows, files_per_part=1)
    assert plan(tmp_path, rows, files_per_part=1).inputs() == before.inputs()
    os.utime(tmp_path / "b.mp4", ns=(1, 1))
    changed = plan(tmp_path, [*rows[:2], replace(rows[2], captions={"short": "new"})], files_per_part=1)
    same = [a.hash == b.hash for a, b in zip(before.parts, changed.parts)]
    assert same == [True, False, False]
    assert changed.inputs() != before.inputs()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_s": 0.5}, "--max-s 0.5 must be"),
        ({"min_s": -1}, "--min-s -1 must be"),
        ({"short_side": 4}, "--short-side 4 must be"),
        ({"clips_per_shard": 0}, "--clips-per-shard 0 must be"),
        ({"min_s": float("nan")}, "--min-s nan must be"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict, message: str):
    with pytest.raises(ValueError, match=message):
        IngestConfig(**settings)
