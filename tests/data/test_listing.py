"""Lists of media: every kind of list gives the same rows, and what is wrong with a row is said."""

import csv
import json
import math
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from data.listing import Columns, Row, extension_of, read_listing

RECORDS = [
    {"path": "a.mp4", "caption": " a dog ", "short": "dog", "source": "film", "start_s": 1.5, "end_s": 4.0},
    {"path": "b/c.png", "caption": "a cat", "short": "", "source": "", "start_s": None, "end_s": None},
]
ROWS = [
    Row(
        number=1,
        path="a.mp4",
        captions={"descriptive": "a dog", "short": "dog"},
        source="film",
        start_s=1.5,
        end_s=4.0,
    ),
    Row(number=2, path="b/c.png", captions={"descriptive": "a cat"}, source="b/c.png"),
]


def write(path: Path, records: list[dict]) -> Path:
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path)
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(record) for record in records))
    else:
        with open(path, "w", newline="", encoding="utf-8-sig") as file:
            table = csv.DictWriter(file, records[0].keys(), delimiter="\t" if path.suffix == ".tsv" else ",")
            table.writeheader()
            table.writerows(records)
    return path


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_every_kind_of_list_gives_the_same_rows(kind: str, tmp_path: Path):
    listing = read_listing(write(tmp_path / f"list.{kind}", RECORDS), Columns())
    assert listing.rows == ROWS
    assert listing.folder == tmp_path


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_columns_may_have_other_names(kind: str, tmp_path: Path):
    record = {"video": "a.mp4", "text": "a dog", "id": 7, "from": "0:01:02.5", "to": "1:00:00"}
    columns = Columns(path="video", captions=(("long", "text"),), source="id", start_s="from", end_s="to")
    (row,) = read_listing(write(tmp_path / f"list.{kind}", [record]), columns).rows
    assert (row.captions, row.source, row.start_s, row.end_s) == ({"long": "a dog"}, "7", 62.5, 3600.0)


def test_captions_may_be_an_object(tmp_path: Path):
    record = {"path": "a.mp4", "captions": {"short": "dog", "long": "a big dog", "odd": 3, "empty": " "}}
    (row,) = read_listing(write(tmp_path / "list.jsonl", [record]), Columns()).rows
    assert row.captions == {"short": "dog", "long": "a big dog"}


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"path": "a.mp4", "caption": "  "}, "empty caption"),
        ({"path": "a.mp4"}, "empty caption"),
        ({"path": "", "caption": "x"}, "no path"),
        ({"path": "pipe:rm -rf", "caption": "x"}, "refused path"),
        ({"path": " PIPE:cat a.mp4", "caption": "x"}, "refused path"),
        ({"path": "a.heic", "caption": "x"}, "unknown kind: .heic"),
        ({"path": "a.mp4", "caption": "x", "start_s": 5, "end_s": 5}, "bad time range: 5 to 5"),
        ({"path": "a.mp4", "caption": "x", "start_s": -1}, "bad time range"),
        ({"path": "a.mp4", "caption": "x", "start_s": "soon"}, "bad time range: 'soon'"),
        ({"path": "a.mp4", "caption": "x", "end_s": "nan"}, "bad time range"),
        ([1, 2], "bad row: not a JSON object"),
        ({"path": "a\0.mp4", "caption": "x"}, "bad name"),
        ({"path": "a\udc80.mp4", "caption": "x"}, "bad name"),
    ],
)
def test_a_row_that_cannot_be_used_says_why(record: object, reason: str, tmp_path: Path):
    (tmp_path / "list.jsonl").write_text(json.dumps(record) + "\n\n")
    (row,) = read_listing(tmp_path / "list.jsonl", Columns()).rows
    assert row.problem is not None
    assert row.problem.startswith(reason)


def test_half_characters_are_replaced(tmp_path: Path):
    (tmp_path / "list.jsonl").write_text('{"path": "a.mp4", "caption": "dog \\ud83d", "source": "\\ud83d"}')
    (row,) = read_listing(tmp_path / "list.jsonl", Columns()).rows
    assert (row.captions, row.source) == ({"descriptive": "dog ?"}, "?")


def test_a_broken_line_costs_one_row(tmp_path: Path):
    (tmp_path / "list.jsonl").write_text(
        '{"path": "a.mp4", "caption": "x"}\n{"path": \n{"path": "b.mp4", "caption": "y"}'
    )
    problems = [row.problem for row in read_listing(tmp_path / "list.jsonl", Columns()).rows]
    assert [problem is None for problem in problems] == [True, False, True]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("list.csv", "video,caption\na.mp4,x\n", "no column 'path' but video, caption: name it with --path-column"),
        ("list.csv", "path,words\na.mp4,x\n", "no column 'caption' but path, words"),
        ("list.csv", "path,caption\n", "has no rows"),
        ("list.xls", "", "is no list that can be read"),
        ("list.parquet", "no parquet", "cannot be read as Parquet"),
    ],
)
def test_a_list_that_cannot_be_one_is_refused(name: str, text: str, message: str, tmp_path: Path):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_listing(tmp_path / name, Columns())


def test_a_list_that_is_not_text_or_not_there_is_refused(tmp_path: Path):
    (tmp_path / "list.csv").write_bytes(b"path,caption\n\xff\xfe,x\n")
    with pytest.raises(ValueError, match=r"list\.csv cannot be read as UTF-8"):
        read_listing(tmp_path / "list.csv", Columns())
    with pytest.raises(ValueError, match="neither a folder nor a file"):
        read_listing(tmp_path / "nothing", Columns())


def test_a_named_caption_column_must_be_there(tmp_path: Path):
    path = write(tmp_path / "list.csv", RECORDS)
    with pytest.raises(ValueError, match="no column 'alt'"):
        read_listing(path, Columns(captions=(("long", "caption"), ("short", "alt"))))


def test_a_folder_is_read_with_its_side_cars(tmp_path: Path):
    for name in (
        "b.mp4",
        "a.mp4",
        "sub/c.PNG",
        "none.webm",
        "bad.mkv",
        ".hidden.mp4",
        ".git/x.mp4",
        "notes.txt",
        "z.heic",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "a.txt").write_text("a dog\n")
    (tmp_path / "b.json").write_text(json.dumps([{"caption": "one", "end_s": 2}, {"caption": "two", "start_s": 2}]))
    (tmp_path / "sub/c.json").write_text(json.dumps({"captions": {"short": "c"}, "source": "C", "path": "/etc/x"}))
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "link").symlink_to(tmp_path / "sub")
    listing = read_listing(tmp_path, Columns())
    good = [(row.path, row.captions, row.source, row.start_s, row.end_s) for row in listing.rows if not row.problem]
    assert good == [
        ("a.mp4", {"descriptive": "a dog"}, "a.mp4", 0.0, math.inf),
        ("b.mp4", {"descriptive": "one"}, "b.mp4", 0.0, 2.0),
        ("b.mp4", {"descriptive": "two"}, "b.mp4", 2.0, math.inf),
        ("sub/c.PNG", {"short": "c"}, "C", 0.0, math.inf),
    ]
    bad = {row.path: str(row.problem).split(":")[0] for row in listing.rows if row.problem}
    assert bad == {"bad.mkv": "bad side-car", "link": "link to a folder", "none.webm": "no caption"}
    assert listing.ignored == {".txt": 1, ".heic": 1}


def test_a_folder_without_media_is_refused(tmp_path: Path):
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ValueError, match="no videos or images"):
        read_listing(tmp_path, Columns())


def test_extensions_are_those_of_paths():
    assert extension_of("a/b.c.MP4") == "mp4"
    assert extension_of("https://x.org/a.webm?size=big.png") == "webm"
    assert extension_of("a") == ""
