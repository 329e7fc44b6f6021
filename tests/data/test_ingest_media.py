"""One file to clips: cut, copied, scaled, and every way in which it can be no good."""

from io import BytesIO
from pathlib import Path

import av
import fsspec
import numpy as np
import pytest
from PIL import Image

from data.clips import ClipSource
from data.ingest_media import clips_of
from data.ingest_plan import IngestConfig, MediaFile, Problem, key_of
from data.listing import Row, extension_of
from tests.data.films import FPS, film
from tests.data.media import still, video


def clips(
    location: Path | str, rows: list[dict] | None = None, tmp: Path | None = None, **settings: object
) -> tuple[list[ClipSource], list[Problem]]:
    path = Path(location).name
    made = tuple(
        Row(number=number, path=path, captions={"short": "x"}, source=path, **row)
        for number, row in enumerate(rows or [{}], start=1)
    )
    file = MediaFile(
        key=key_of(path), path=path, location=str(location), extension=extension_of(str(location)), rows=made
    )
    problems: list[Problem] = []
    scratch = tmp or Path(location).parent
    return list(clips_of(file, IngestConfig(**settings), problems=problems, scratch=scratch)), problems


def put_file(folder: Path, name: str, media: bytes) -> Path:
    (folder / name).write_bytes(media)
    return folder / name


def frames_of(clip: ClipSource) -> list[av.VideoFrame]:
    with av.open(BytesIO(clip.media)) as container:
        return list(container.decode(video=0))


def test_a_video_is_cut_at_its_shots(tmp_path: Path):
    found, problems = clips(put_file(tmp_path, "a.mp4", film((36, 30, 12))), short_side=32)
    assert [(clip.key, clip.extension, len(frames_of(clip))) for clip in found] == [
        ("a--0000", "mp4", 36),
        ("a--0001", "mp4", 30),
    ]
    assert found[1].meta == {
        "captions": {"short": "x"}, "source": "a.mp4", "fps": 24.0, "frames": 30, "height": 32, "width": 48,
        "source_height": 64, "source_width": 96, "start_s": 1.5, "end_s": 2.75,
    }  # fmt: skip
    assert [str(problem) for problem in problems] == [
        "a.mp4: short pieces: 1 of 3 pieces, 0.50 s in all, below --min-s 1"
    ]


def test_time_ranges_have_their_own_keys(tmp_path: Path):
    rows = [{"end_s": 1.5}, {"start_s": 1.0, "end_s": 2.5}, {"start_s": 99.0}]
    found, problems = clips(put_file(tmp_path, "a.mp4", film((60,))), rows)
    assert {clip.key: (clip.meta["start_s"], clip.meta["end_s"]) for clip in found} == {
        "a--0000--0000": (0.0, 1.5),
        "a--0001--0000": (1.0, 2.5),
    }
    assert [(problem.row, problem.reason) for problem in problems] == [
        (3, "empty time range: no picture from 99 to inf s")
    ]


def test_whole_files_are_copied_to_the_byte(tmp_path: Path):
    media = film((30, 30), container="matroska")
    (clip,), problems = clips(put_file(tmp_path, "a.mkv", media), whole=True)
    assert (clip.key, clip.extension, clip.media) == ("a", "mkv", media)
    assert (clip.meta["frames"], clip.meta["fps"], clip.meta["end_s"]) == (
        60,
        pytest.approx(24, abs=0.05),  # its container rounds times to milliseconds
        pytest.approx(2.5, abs=0.01),
    )
    assert not problems


def test_whole_files_are_recoded_only_where_a_range_or_a_size_asks_for_it(tmp_path: Path):
    path = put_file(tmp_path, "a.mp4", film((30, 30)))
    (clip,), _ = clips(path, whole=True, short_side=32)
    assert (clip.key, clip.meta["height"], len(frames_of(clip))) == ("a", 32, 60)
    (clip,), _ = clips(path, whole=True, short_side=64)
    assert clip.media == path.read_bytes()
    found, _ = clips(path, [{}, {"start_s": 0.5, "end_s": 2.0}], whole=True)
    assert {clip.key: len(frames_of(clip)) for clip in found} == {"a--0000": 60, "a--0001": 36}


def test_counts_and_rates_come_from_decoding(tmp_path: Path):
    """The headers say 24 frames a second; the frames' times say otherwise."""
    media = video(frames=30, fps=24, times_ms=[100 * n for n in range(30)], container="matroska")
    path = put_file(tmp_path, "a.mkv", media)
    for whole in (False, True):
        (clip,), _ = clips(path, whole=whole)
        assert (clip.meta["frames"], clip.meta["fps"]) == (30, 10.0)
        assert clip.meta["end_s"] == pytest.approx(3.0, abs=0.07)


@pytest.mark.parametrize("extension", ["png", "jpg"])
def test_images_are_copied_or_scaled_down(extension: str, tmp_path: Path):
    media = still(height=50, width=70, extension=extension)
    path = put_file(tmp_path, f"a.{extension}", media)
    (clip,), _ = clips(path)
    assert (clip.key, clip.extension, clip.media) == ("a", extension, media)
    assert (clip.meta["height"], clip.meta["width"], clip.meta["frames"]) == (50, 70, 1)
    (clip,), _ = clips(path, short_side=25)
    smaller = Image.open(BytesIO(clip.media))
    assert (smaller.size, smaller.format) == ((35, 25), {"png": "PNG", "jpg": "JPEG"}[extension])
    assert (clip.meta["width"], clip.meta["source_width"]) == (35, 70)


def test_a_url_is_fetched_and_let_go(tmp_path: Path):
    memory = fsspec.filesystem("memory")
    memory.pipe("/films/a.mp4", film((30,)))
    (clip,), problems = clips("memory://films/a.mp4", tmp=tmp_path)
    assert len(frames_of(clip)) == 30
    assert not problems
    assert not list(tmp_path.iterdir())
    for url, reason in (
        ("memory://films/gone.mp4", "missing file"),
        ("nowhere://x/a.mp4", "unreadable file: cannot be"),
    ):
        found, (problem,) = clips(url, tmp=tmp_path)
        assert not found
        assert problem.reason.startswith(reason)


def cut_off(media: bytes) -> bytes:
    return media[: len(media) * 3 // 5]


def only_sound() -> bytes:
    target = BytesIO()
    with av.open(target, "w", format="mp4") as output:
        stream = output.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return target.getvalue()


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(
    ("name", "media", "reason"),
    [
        ("a.mp4", b"", "empty file"),
        ("a.mp4", b"no video at all" * 99, "cannot be decoded"),
        ("a.mp4", cut_off(film()), "cannot be decoded"),
        ("a.png", cut_off(still()), "cannot be decoded"),
        ("a.jpg", b"\xff\xd8\xff", "cannot be decoded"),
        ("a.mp4", only_sound(), "no video stream"),
        ("a.mp4", film((12,)), "too short"),
        ("a.mkv", film((30,)), "cannot be decoded"),
        ("a.mp4", b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n/etc/passwd\n", "cannot be decoded"),
    ],
)
def test_what_is_no_good_says_why(name: str, media: bytes, reason: str, whole: bool, tmp_path: Path):
    found, problems = clips(put_file(tmp_path, name, media), whole=whole)
    assert not found
    assert [problem.kind for problem in problems] == [reason]
    assert str(tmp_path) not in problems[0].reason


def test_missing_files_and_folders_say_so(tmp_path: Path):
    (tmp_path / "folder.mp4").mkdir()
    assert clips(tmp_path / "gone.mp4")[1][0].reason == "missing file"
    assert clips(tmp_path / "folder.mp4")[1][0].reason == "unreadable file: it is no plain file"


def test_clips_before_the_damage_are_kept(tmp_path: Path):
    """A transport stream has no index at its end, so it plays up to where it is cut off."""
    media = bytearray(film((36, 36, 36), container="mpegts"))
    media[len(media) * 5 // 6 :] = bytes(len(media) - len(media) * 5 // 6)
    found, problems = clips(put_file(tmp_path, "a.ts", bytes(media)))
    assert [(clip.key, len(frames_of(clip))) for clip in found] == [("a--0000", 36), ("a--0001", 36)]
    assert [problem.kind for problem in problems] == ["damaged frame"]
    assert problems[0].reason.endswith("clips before it that are kept: 2")
    assert not clips(put_file(tmp_path, "a.ts", bytes(media)), whole=True)[0]


def test_a_black_video_says_so(tmp_path: Path):
    target = BytesIO()
    with av.open(target, "w", format="mp4") as output:
        stream = output.add_stream("libx264", rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(30):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8))))
        output.mux(stream.encode(None))
    found, problems = clips(put_file(tmp_path, "a.mp4", target.getvalue()))
    assert (found, problems[0].kind) == ([], "blank video")


def test_a_full_disk_is_no_problem_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    fsspec.filesystem("memory").pipe("/films/b.mp4", b"x")
    monkeypatch.setattr("data.ingest_media.shutil.copyfileobj", full)
    with pytest.raises(OSError, match="No space left"):
        clips("memory://films/b.mp4", tmp=tmp_path)


def test_clips_are_as_long_as_their_frames_say(tmp_path: Path):
    (clip,), _ = clips(put_file(tmp_path, "a.mp4", film((48,))))
    assert clip.meta["end_s"] - clip.meta["start_s"] == pytest.approx(len(frames_of(clip)) / FPS)
