import pytest

from data.clip_outlook import ClipFolder, bucket_sizes
from data.clips import read_clips, write_clip_shards
from data.ingest import IngestRun, ingest
from data.ingest_plan import IngestConfig, key_of
from data.lattice import ClipConfig
from data.report import ClipReport
from tests.data.media import source, still, video

CONFIG = ClipConfig(fps=8.0, max_frames=17)


@pytest.fixture(scope="module")
def clips():
    return [
        source("film/long", video(frames=120)),
        source("film/short", video(frames=6)),
        source("tall", video(height=112, width=64)),
        source("photo", still(), "png"),
        source("broken", b"no video"),
    ]


def fates(path):
    report = ClipReport()
    return {fate.key: fate for fate in ClipFolder.of(path).fates(CONFIG, report)}, report


def test_clips_become_what_they_will_be_encoded_as(clips, tmp_path):
    write_clip_shards(clips, tmp_path / "clips", clips_per_shard=2)
    foretold, report = fates(tmp_path / "clips")
    read = {clip.key: clip for clip in read_clips(tmp_path / "clips", CONFIG)}
    assert {key: (fate.frames, fate.height, fate.width) for key, fate in foretold.items()} == {
        key: (clip.frames_T3HW.shape[0], *clip.frames_T3HW.shape[2:]) for key, clip in read.items()
    }
    assert (foretold["tall"].tokens, foretold["tall"].bucket) == (2 * 7 * 4, "video-000046-000063")
    assert foretold["photo"].bucket == "image-000012-000015"
    assert {item.key: item.reason.split(":")[0] for item in report.skipped} == {
        "film/short": "too short",
        "broken": "cannot be decoded",
    }


def test_media_have_the_keys_that_ingest_gives_them(tmp_path):
    """Long names of files are no reason to leave them out."""
    (tmp_path / f"{'n' * 90}.mp4").write_bytes(video(frames=120))
    (tmp_path / f"{'n' * 90}.txt").write_text("a caption")
    foretold, report = fates(tmp_path)
    assert not report.skipped
    assert list(foretold) == [f"{key_of('n' * 90 + '.mp4')}_w{number:02d}" for number in range(len(foretold))]
    assert len(foretold) > 1


def test_media_become_the_same_as_in_shards(clips, tmp_path):
    write_clip_shards(clips, tmp_path / "clips")
    for clip in clips:
        path = tmp_path / "raw" / f"{clip.key}.{clip.extension}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(clip.media)
        path.with_suffix(".txt").write_text("a caption")
    (tmp_path / "raw" / "notes.txt").write_text("x")
    stored, stored_report = fates(tmp_path / "clips")
    raw, raw_report = fates(tmp_path / "raw")
    assert {key: str(fate).split(": ", 1)[1] for key, fate in raw.items()} == {
        key: str(fate).split(": ", 1)[1] for key, fate in stored.items()
    }
    assert {(item.key, item.reason) for item in raw_report.skipped} == {
        (item.key, item.reason) for item in stored_report.skipped
    }
    folder = ClipFolder.of(tmp_path / "raw")
    assert (len(folder), folder.others) == (5, {".txt": 1})
    assert set(fates(tmp_path / "raw" / "tall.mp4")[0]) == {"tall"}


def test_media_are_dropped_as_by_ingest(tmp_path):
    raw = tmp_path / "raw"
    (raw / "sub").mkdir(parents=True)
    names = ("good", "bare", "empty", "broken", "listed", "sub/good", ".hidden")
    for name in names:
        (raw / f"{name}.mp4").write_bytes(video(frames=48))
    for name in ("good", "listed", "sub/good", ".hidden", "gone", "nothing", "same"):
        (raw / f"{name}.txt").write_text("a caption")
    (raw / "empty.txt").write_text("  ")
    (raw / "broken.json").write_text("{")
    (raw / "listed.json").write_text("[1]")
    (raw / "gone.mp4").symlink_to(tmp_path / "nowhere.mp4")
    (raw / "folder").symlink_to(raw / "sub")
    (raw / "nothing.png").write_bytes(b"")
    (raw / "same.png").write_bytes(still())
    (raw / "same.jpg").write_bytes(still(extension="jpg"))
    foretold, report = fates(raw)
    run = IngestRun(source=raw, out=tmp_path / "out", config=IngestConfig(whole=True), workers=1)
    dropped = {(problem["path"], problem["reason"]) for problem in ingest(run)["problems"]}
    assert {(item.shard, item.reason) for item in report.skipped} == dropped
    assert {path: reason.split(":")[0] for path, reason in dropped} == {
        "bare.mp4": "no caption",
        "empty.mp4": "empty caption",
        "broken.mp4": "bad side-car",
        "listed.mp4": "bad side-car",
        "gone.mp4": "missing file",
        "folder": "link to a folder",
        "nothing.png": "empty file",
        "same.png": "duplicate key",
    }
    assert {clip.clip_key for clip in read_clips(tmp_path / "out", CONFIG)} == {"good", "sub/good", "same"}
    assert {fate.shard for fate in foretold.values()} == {"good.mp4", "sub/good.mp4", "same.jpg"}
    assert len(ClipFolder.of(raw)) == len(report.skipped) + 3


def test_buckets_add_up(clips, tmp_path):
    write_clip_shards(clips, tmp_path / "clips")
    foretold, _ = fates(tmp_path / "clips")
    sizes = bucket_sizes(list(foretold.values()))
    assert sum(size.samples for size in sizes.values()) == len(foretold)
    assert sum(size.tokens for size in sizes.values()) == sum(fate.tokens for fate in foretold.values())
    assert list(sizes) == sorted(sizes)


def test_paths_with_nothing_to_look_at_are_one_sentence(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    for path, message in ((tmp_path, "no videos or images"), (tmp_path / "notes.txt", "is no video or image")):
        with pytest.raises(ValueError, match=message):
            ClipFolder.of(path)
    with pytest.raises(ValueError, match="is not there"):
        ClipFolder.of(tmp_path / "nowhere")
