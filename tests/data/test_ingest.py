"""The command from end to end: what it writes, and that nothing depends on how often it was stopped or by how many."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data import ingest
from data.clips import clip_shards_identity, count_clips, read_clips
from data.ingest import main
from data.lattice import ClipConfig
from data.report import ClipReport
from tests.data.films import all_bytes, film, put
from tests.data.media import still

ROOT = Path(__file__).parents[2]
LONG_S = 60.0


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five films, an image, and one of each kind of trouble."""
    folder = tmp_path_factory.mktemp("collection") / "in"
    for number in range(5):
        put(folder, f"film {number}.mp4", film((30 + number, 40, 12), first=number), f"film {number}")
    put(folder, "stills/a.png", still(), {"captions": {"short": "a", "long": "an image"}, "source": "A"})
    put(folder, "b-broken.mp4", film()[:900], "broken")
    put(folder, "b-empty.mp4", film(), "  ")
    put(folder, "b-none.mp4", film())
    put(folder, "b-short.mp4", film((8,)), "short")
    put(folder, "b-zero.mp4", b"", "zero bytes")
    put(folder, "b-twice.mp4", film((30,)), "twice")
    put(folder, "b-twice.mkv", film((30,), container="matroska"), "twice")
    (folder / "notes.pdf").write_text("no media")
    return folder


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def tars(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in all_bytes(folder).items() if name.endswith(".tar")}


def test_a_folder_becomes_clips_that_encode_reads(collection: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    out = tmp_path / "out"
    assert run(collection, out, "--short-side", 48, "--files-per-part", 3, "--workers", 2) == 0
    said = capsys.readouterr().out
    assert "clips    11 of video" in said
    assert "and 1 images" in said
    report = json.loads((out / "report.json").read_text())
    assert report["reasons"] == {
        "cannot be decoded": 1, "empty caption": 1, "no caption": 1, "too short": 1, "empty file": 1,
        "duplicate key": 1, "short pieces": 5,
    }  # fmt: skip
    assert report["ignored"] == {".pdf": 1}
    assert (report["files"], report["files_used"], report["clips"]) == (10, 7, 12)
    for kind in report["reasons"]:
        assert kind in said
    read = ClipReport()
    clips = list(read_clips(out, ClipConfig(fps=12, max_frames=17), read))
    assert not read.skipped
    assert (read.source_clips, count_clips(out)) == (12, 12)
    image = next(clip for clip in clips if clip.key == "stills/a")
    assert (image.source, image.captions["long"]) == ("A", "an image")
    assert {clip.source for clip in clips} >= {f"film {number}.mp4" for number in range(5)}
    starts = sorted(clip.start_s for clip in clips if clip.source == "film 0.mp4")
    assert starts == pytest.approx([0.0, 1.25])
    assert not out.with_name("out.unfinished").exists()


def test_the_bytes_do_not_depend_on_the_workers(collection: Path, tmp_path: Path):
    options = ["--files-per-part", 2]
    for workers in (1, 3):
        assert run(collection, tmp_path / f"by{workers}", *options, "--workers", workers) == 0
    assert all_bytes(tmp_path / "by1") == all_bytes(tmp_path / "by3")


def test_a_second_run_has_nothing_to_do(collection: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    out = tmp_path / "out"
    assert run(collection, out) == 0
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert run(collection, out) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_other_settings_and_other_files_are_refused_unless_replaced(tmp_path: Path, capsys: pytest.CaptureFixture):
    folder, out = tmp_path / "in", tmp_path / "out"
    put(folder, "a.mp4", film((30,)), "one")
    assert run(folder, out) == 0
    identity = clip_shards_identity(out)
    assert run(folder, out, "--crf", 30) == 2
    assert "other settings (crf: 16, not 30)" in capsys.readouterr().err
    put(folder, "b.mp4", film((30,)), "two")
    assert run(folder, out) == 2
    assert "held other files or captions" in capsys.readouterr().err
    assert clip_shards_identity(out) == identity
    assert run(folder, out, "--crf", 30, "--replace") == 0
    assert count_clips(out) == 2
    (out / "report.json").write_text('{"inputs": ')
    assert run(folder, out, "--crf", 30) == 2
    assert f"{out}/report.json is damaged" in capsys.readouterr().err
    (out / "report.json").write_text("{}")
    assert run(folder, out, "--crf", 30) == 2
    assert f"{out}/report.json is damaged (KeyError('inputs')): give another folder" in capsys.readouterr().err
    assert run(folder, out, "--crf", 30, "--replace") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_an_unfinished_run_with_other_settings_is_refused_too(tmp_path: Path, capsys: pytest.CaptureFixture):
    put(tmp_path / "in", "a.mp4", film((30,)), "one")
    put(tmp_path / "in", "b.mp4", b"broken", "two")
    options = ["--files-per-part", 1, "--workers", 1]
    assert run(tmp_path / "in", tmp_path / "out", *options, "--strict") == 2
    assert "error: --strict: b.mp4: cannot be decoded" in capsys.readouterr().err
    assert run(tmp_path / "in", tmp_path / "out", *options, "--crf", 30) == 2
    assert "out.unfinished was made with other settings" in capsys.readouterr().err
    locked = (tmp_path / "out.unfinished").stat().st_ino
    assert run(tmp_path / "in", tmp_path / "out", *options, "--crf", 30, "--replace", "--strict") == 2
    assert (tmp_path / "out.unfinished").stat().st_ino == locked, "the folder that is locked stays"
    assert "--strict: b.mp4" in capsys.readouterr().err
    assert run(tmp_path / "in", tmp_path / "out", *options, "--strict", "--replace") == 2
    put(tmp_path / "in", "b.mp4", film((30,)), "two")
    assert run(tmp_path / "in", tmp_path / "out", *options, "--strict") == 0
    assert "going on: 1 of 2 parts stand" in capsys.readouterr().out
    assert count_clips(tmp_path / "out") == 2


def test_an_interrupted_replace_leaves_nothing_that_could_be_taken_for_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    put(tmp_path / "in", "a.mp4", film((30,)), "one")
    put(tmp_path / "in", "b.mp4", b"broken", "two")
    options = ["--files-per-part", 1, "--workers", 1, "--strict"]
    assert run(tmp_path / "in", tmp_path / "out", *options) == 2
    unfinished, removed = tmp_path / "out.unfinished", []
    held = {path.name for path in unfinished.iterdir()}

    def killed(path: Path) -> None:
        removed.append(path.name)
        if len(removed) == 2:
            raise KeyboardInterrupt
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    with monkeypatch.context() as patched:
        patched.setattr(ingest, "_remove", killed)
        assert run(tmp_path / "in", tmp_path / "out", *options, "--crf", 30, "--replace") == 130
    assert removed[0] == "parts" and "ingest.json" not in removed[: len(held) - 1]
    capsys.readouterr()
    assert run(tmp_path / "in", tmp_path / "out", *options, "--crf", 30) == 2
    assert "out.unfinished was made with other settings" in capsys.readouterr().err
    put(tmp_path / "in", "b.mp4", film((30,)), "two")
    assert run(tmp_path / "in", tmp_path / "out", *options) == 0
    assert "going on" not in capsys.readouterr().out


def test_what_is_no_ingest_is_never_replaced(tmp_path: Path, capsys: pytest.CaptureFixture):
    put(tmp_path / "in", "a.mp4", film((30,)), "one")
    put(tmp_path / "out", "thesis.txt", b"years of work")
    assert run(tmp_path / "in", tmp_path / "out", "--replace") == 2
    assert "no ingest of clips" in capsys.readouterr().err
    assert (tmp_path / "out" / "thesis.txt").read_bytes() == b"years of work"


def test_a_list_with_times_and_named_columns(tmp_path: Path):
    put(tmp_path / "media", "a.mp4", film((40, 50)))
    lines = ["file,from,to,alt,long,id", "media/a.mp4,0,1.6,A,the first,x", "media/a.mp4,00:01.7,,B,the second,y"]
    (tmp_path / "list.csv").write_text("\n".join(lines))
    names = ["--path-column", "file", "--start-column", "from", "--end-column", "to", "--source-column", "id"]
    captions = ["--caption", "short=alt", "--caption", "long"]
    assert run(tmp_path / "list.csv", tmp_path / "out", *names, *captions, "--workers", 1) == 0
    clips = list(read_clips(tmp_path / "out", ClipConfig(fps=24, max_frames=201)))
    assert {clip.key: (clip.source, clip.captions["short"], clip.captions["long"]) for clip in clips} == {
        "media/a--0000--0000": ("x", "A", "the first"),
        "media/a--0001--0000": ("y", "B", "the second"),
    }


def test_whole_files_keep_their_bytes(tmp_path: Path):
    media = film((20, 20, 20))
    put(tmp_path / "in", "a.mp4", media, "one")
    assert run(tmp_path / "in", tmp_path / "out", "--whole", "--workers", 1) == 0
    (shard,) = tars(tmp_path / "out").values()
    assert media in shard


def test_a_dry_run_says_what_it_would_do_and_writes_nothing(
    collection: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    assert run(collection, tmp_path / "out", "--dry-run", "--files-per-part", 4) == 0
    said = capsys.readouterr().out
    assert "files    10 in 10 rows" in said
    assert "parts    3, 0 of them done" in said
    assert "1  duplicate key, such as b-twice.mp4" in said
    assert not list(tmp_path.iterdir())


def test_a_collection_without_a_good_file_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture):
    put(tmp_path / "in", "a.mp4", b"nothing", "one")
    assert run(tmp_path / "in", tmp_path / "out", "--workers", 1) == 2
    said = capsys.readouterr().err
    assert "no clip could be made" in said
    assert "a.mp4: cannot be decoded" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gone"], "neither a folder nor a file"),
        (["in", "--workers", 0], "--workers 0 must be"),
        (["in", "--max-s", 0.5], "--max-s 0.5 must be"),
    ],
)
def test_mistakes_get_one_sentence(
    arguments: list[object], message: str, tmp_path: Path, capsys: pytest.CaptureFixture
):
    put(tmp_path / "in", "a.mp4", b"x", "one")
    source, *rest = arguments
    assert run(tmp_path / str(source), tmp_path / "out", *rest) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert message in said
    assert len(said.splitlines()) == 1


def test_a_full_disk_gets_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("data.ingest.work_parts", full)
    put(tmp_path / "in", "a.mp4", film((30,)), "one")
    assert run(tmp_path / "in", tmp_path / "out") == 2
    assert "error: the disk ran full while writing" in capsys.readouterr().err


def start(source: Path, out: Path, *options: object) -> subprocess.Popen:
    """In a session of its own, so that an interrupt can reach all of its processes, as one of a terminal does."""
    command = [sys.executable, "-m", "data.ingest", str(source), str(out), *map(str, options)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def wait_for_server(parent: int) -> None:
    """Until the process is importing that starts the workers."""
    ends = time.monotonic() + LONG_S
    children = Path(f"/proc/{parent}/task/{parent}/children")
    while not any(is_importing_server(Path(f"/proc/{child}")) for child in children.read_text().split()):
        assert time.monotonic() < ends, f"no server in {LONG_S} s"
        time.sleep(0.005)


def is_importing_server(process: Path) -> bool:
    return b"forkserver" in (process / "cmdline").read_bytes() and "torch" in (process / "maps").read_text()


def test_ctrl_c_while_the_process_server_imports_ends_in_one_line(tmp_path: Path):
    put(tmp_path / "in", "a.mp4", b"x", "one")
    process = start(tmp_path / "in", tmp_path / "out", "--workers", 1)
    wait_for_server(process.pid)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=LONG_S)
    assert (process.returncode, said) == (130, "interrupted; finished parts are kept, and the same command goes on\n")


def wait_for_parts(unfinished: Path, count: int) -> None:
    ends = time.monotonic() + LONG_S
    while len(list((unfinished / "parts").glob("*.json"))) < count:
        assert time.monotonic() < ends, f"no {count} parts in {LONG_S} s"
        time.sleep(0.02)


def wait_for_quiet(unfinished: Path) -> None:
    """Until no process of a killed run writes any more: its lock is free and no file changes."""
    before: dict[str, bytes] = {}
    ends = time.monotonic() + LONG_S
    while before != (now := all_bytes(unfinished)) or not now:
        assert time.monotonic() < ends
        before = now
        time.sleep(0.5)


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight films that take a moment each."""
    folder = tmp_path_factory.mktemp("films") / "in"
    for number in range(8):
        put(folder, f"{number:02d}.mp4", film((60, 60, 60), first=number, height=240, width=320), f"film {number}")
    return folder


@pytest.mark.slow
def test_a_killed_run_goes_on_and_gives_the_same_bytes(films: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    options = ["--files-per-part", 1, "--workers", 2]
    process = start(films, tmp_path / "out", *options)
    wait_for_parts(tmp_path / "out.unfinished", 2)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    wait_for_quiet(tmp_path / "out.unfinished")
    assert not (tmp_path / "out").exists()
    assert run(films, tmp_path / "out", *options) == 0
    assert "going on: " in capsys.readouterr().out
    assert run(films, tmp_path / "straight", *options) == 0
    assert all_bytes(tmp_path / "out") == all_bytes(tmp_path / "straight")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "straight"]


@pytest.mark.slow
def test_ctrl_c_ends_in_one_line_and_two_runs_do_not_meet(films: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    options = ["--files-per-part", 1, "--workers", 1]
    process = start(films, tmp_path / "out", *options)
    wait_for_parts(tmp_path / "out.unfinished", 1)
    assert run(films, tmp_path / "out", *options) == 2
    assert "another ingest is writing" in capsys.readouterr().err
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=LONG_S)
    assert process.returncode == 130
    assert said.splitlines()[-1].startswith("interrupted; finished parts are kept")
    assert "Traceback" not in said
