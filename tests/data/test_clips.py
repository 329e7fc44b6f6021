import gc
import hashlib
import json
import tarfile
import weakref

import pytest
import torch

import data.decode
from data.clips import (
    INDEX_NAME,
    ClipSource,
    clip_shards,
    clip_shards_identity,
    media_places,
    read_clips,
    write_clip_shards,
)
from data.lattice import ClipConfig
from data.report import ClipReport
from data.shards import ShardWriter, check_key
from tests.data.media import number_of, source, still, video

CONFIG = ClipConfig(fps=8.0, max_frames=17)


def read(folder, config=CONFIG):
    report = ClipReport()
    return {clip.key: clip for clip in read_clips(folder, config, report)}, report


@pytest.fixture
def shards(tmp_path):
    clips = [
        source("film/shot1", video(frames=48), start_s=10.0),
        source("film/shot2", video(frames=120)),
        source("tall", video(frames=24, height=112, width=64)),
        source("photo", still(height=50, width=70), "png"),
        source("jpeg", still(extension="jpg"), "jpg"),
    ]
    write_clip_shards(clips, tmp_path / "clips", clips_per_shard=2)
    return tmp_path / "clips"


def test_clips_come_back_as_windows_on_the_lattice(shards):
    clips, report = read(shards)
    assert {key: tuple(clip.frames_T3HW.shape) for key, clip in clips.items()} == {
        "film/shot1": (13, 3, 48, 64),
        "film/shot2_w00": (17, 3, 48, 64),
        "film/shot2_w01": (17, 3, 48, 64),
        "film/shot2_w02": (5, 3, 48, 64),
        "tall": (5, 3, 112, 64),
        "photo": (1, 3, 48, 64),
        "jpeg": (1, 3, 48, 64),
    }
    assert (report.source_clips, report.windows, report.images, report.skipped) == (5, 7, 2, [])
    assert report.frames == 13 + 17 + 17 + 5 + 5 + 1 + 1
    assert report.frames_cropped == 3 + 1 + 3
    assert clips["film/shot1"].start_s == 10.0 and clips["film/shot2_w01"].start_s == 17 / 8
    assert clips["film/shot2_w01"].source == "film/shot2"
    assert clips["photo"].captions == {"short": "clip photo", "descriptive": "a longer line about clip photo"}
    assert (clips["photo"].native_height, clips["photo"].native_width) == (50, 70)
    assert [clip.modality for clip in clips.values()].count("image") == 2
    # Window 1 goes on where window 0 stops: frame 17 of 8 fps is frame 51 of 24 fps, whose red wraps at 32.
    assert number_of(clips["film/shot2_w01"].frames_T3HW[0].numpy()) == 51 % 32


def test_shards_and_index_are_what_was_written(shards):
    assert [path.name for path in clip_shards(shards)] == ["clips-000000.tar", "clips-000001.tar", "clips-000002.tar"]
    assert [s["count"] for s in json.loads((shards / INDEX_NAME).read_text())["shards"]] == [2, 2, 1]


def test_a_corrupt_clip_among_good_ones_is_skipped_and_reported(tmp_path):
    broken = video()[:1500]
    clips = [source("good1", video()), source("broken", broken), source("good2", video())]
    write_clip_shards(clips, tmp_path / "clips")
    clips, report = read(tmp_path / "clips")
    assert list(clips) == ["good1", "good2"]
    [skipped] = report.skipped
    assert (skipped.shard, skipped.key) == ("clips-000000.tar", "broken")
    assert skipped.reason.startswith("cannot be decoded: damaged")
    assert report.to_json()["reasons"] == {"cannot be decoded": 1}
    assert any("clips-000000.tar: broken: cannot be decoded" in line for line in report.lines())


@pytest.mark.parametrize("fps", [8.0, None])
def test_a_long_video_is_never_in_memory_as_a_whole(tmp_path, monkeypatch, fps):
    """60 windows, of which this reader holds one: pictures and windows alive at any time are those of three."""
    alive, most = 0, 0
    take = data.decode.DecodedClip.__next__

    def count(tensor, frames):
        def died():
            nonlocal alive
            alive -= frames

        nonlocal alive, most
        alive += frames
        most = max(most, alive)
        weakref.finalize(tensor, died)
        return tensor

    monkeypatch.setattr(data.decode.DecodedClip, "__next__", lambda clip: count(take(clip), 1))
    stack = torch.stack
    monkeypatch.setattr(torch, "stack", lambda frames: count(stack(frames), len(frames)))
    write_clip_shards([source("long", video(frames=60 * 17, fps=8, height=16, width=16))], tmp_path / "clips")
    settings = ClipConfig(fps=fps, max_frames=17)
    lengths = [len(clip.frames_T3HW) for clip in read_clips(tmp_path / "clips", settings)]
    assert lengths == [17] * 60
    assert settings.max_frames <= most <= 3 * settings.max_frames + settings.min_frames
    gc.collect()
    assert alive == 0


def test_windows_before_damage_are_kept_and_the_rest_is_reported(tmp_path, monkeypatch):
    write_clip_shards([source("long", video(frames=60, fps=8)), source("good", video())], tmp_path / "clips")
    checked = data.decode.checked

    def damaged(frames):
        for number, frame in enumerate(checked(frames)):
            if number == 45:
                raise data.decode.DecodeError("damaged frame: number 45 at 5.625 s")
            yield frame

    monkeypatch.setattr(data.decode, "checked", damaged)
    clips, report = read(tmp_path / "clips")
    assert list(clips) == ["long_w00", "long_w01", "good"]
    assert [str(item) for item in report.skipped] == [
        "clips-000000.tar: long: damaged frame: number 45 at 5.625 s; the 2 windows before it are kept"
    ]
    assert (report.source_clips, report.windows, report.frames) == (2, 3, 39)


@pytest.mark.parametrize("fps", [8.0, None])
def test_time_stamps_that_lie_break_no_limit(tmp_path, monkeypatch, fps):
    """A clip foretold as shorter than it is comes smaller, and is not dropped."""
    write_clip_shards([source("clip", video(frames=40, fps=8))], tmp_path / "clips")
    config = ClipConfig(fps=fps, max_frames=17, max_tokens=48)
    honest, _ = read(tmp_path / "clips", config)
    monkeypatch.setattr(data.decode._Times, "count", lambda times, fps: 5)
    clips, report = read(tmp_path / "clips", config)
    assert report.skipped == [] and report.source_clips == 1
    assert clips.keys() == honest.keys()
    for key, clip in clips.items():
        assert torch.equal(clip.frames_T3HW, honest[key].frames_T3HW)
        assert config.tokens(len(clip.frames_T3HW), *clip.frames_T3HW.shape[2:]) <= 48


def test_clips_keep_their_own_rates(tmp_path):
    clips = [
        source("film", video(frames=30, fps=24)),
        source("tv", video(frames=30, fps=30)),
        source("p", still(), "png"),
    ]
    write_clip_shards(clips, tmp_path / "clips")
    clips, report = read(tmp_path / "clips", ClipConfig(fps=None, max_frames=17))
    assert {key: (len(clip.frames_T3HW), clip.fps, clip.start_s) for key, clip in clips.items()} == {
        "film_w00": (17, 24.0, 0.0),
        "film_w01": (13, 24.0, 17 / 24),
        "tv_w00": (17, 30.0, 0.0),
        "tv_w01": (13, 30.0, 17 / 30),
        "p": (1, 1.0, 0.0),
    }
    # Numbers of pictures: no frame is lost or shown twice.
    assert [number_of(f.numpy()) for f in clips["film_w01"].frames_T3HW] == list(range(17, 30))
    assert report.skipped == []


def test_a_flipped_bit_in_a_video_is_found_by_its_checksum(shards):
    path = shards / "clips-000000.tar"
    data = bytearray(path.read_bytes())
    data[data.index(b"mdat") + 700] ^= 4
    path.write_bytes(data)
    clips, report = read(shards)
    assert "film/shot1" not in clips and len(clips) == 6
    assert [str(item) for item in report.skipped] == [
        "clips-000000.tar: film/shot1: wrong checksum: the bytes are not those that were written"
    ]


@pytest.mark.parametrize("where", ["between samples", "inside a sample", "inside a header", "inside a payload"])
def test_a_cut_shard_gives_what_is_whole_and_is_reported(tmp_path, where):
    write_clip_shards([source(f"c{i}", video(frames=24)) for i in range(4)], tmp_path / "clips")
    path = tmp_path / "clips" / "clips-000000.tar"
    with tarfile.open(path) as tar:
        third = {member.name: member for member in tar if member.name.startswith("c2")}
    length = {
        "between samples": third["c2.json"].offset,
        "inside a sample": third["c2.mp4"].offset,
        "inside a header": third["c2.json"].offset + 100,
        "inside a payload": third["c2.mp4"].offset_data + 900,
    }[where]
    path.write_bytes(path.read_bytes()[:length])
    clips, report = read(tmp_path / "clips")
    assert list(clips) == ["c0", "c1"]
    assert [item for item in report.skipped if item.key == "" and item.reason.startswith("broken tar")]
    assert {item.key for item in report.skipped} <= {"", "c2"}


def test_foreign_shards_need_no_index_and_bad_samples_are_named(tmp_path):
    good = json.dumps({"captions": {"short": "a"}, "source": "s"}).encode()
    writer = ShardWriter(tmp_path, "x.tar")
    writer.write("ok", {"mp4": video(), "json": good})
    writer.write("nojson", {"mp4": video()})
    writer.write("nomedia", {"json": good, "txt": b"hi"})
    writer.write("badjson", {"mp4": video(), "json": b"{"})
    writer.write("nocaption", {"mp4": video(), "json": b'{"source": "s"}'})
    writer.write("emptycaption", {"mp4": video(), "json": b'{"source": "s", "captions": {"short": " "}}'})
    writer.write("nosource", {"mp4": video(), "json": b'{"captions": {"short": "a"}}'})
    writer.write("short", {"mp4": video(frames=6), "json": good})
    writer.write("tiny", {"png": still(height=10, width=20), "json": good})
    writer.write("ok", {"mp4": video(), "json": good})
    writer.close()
    clips, report = read(tmp_path)
    assert list(clips) == ["ok"]
    assert {(item.key, item.reason.split(":")[0]) for item in report.skipped} == {
        ("nojson", "no json"),
        ("nomedia", "no video or image"),
        ("badjson", "bad json"),
        ("nocaption", "no captions"),
        ("emptycaption", "empty caption"),
        ("nosource", "no source"),
        ("short", "too short"),
        ("tiny", "too small"),
        ("ok", "duplicate key"),
    }


def test_a_member_written_twice_in_a_row_is_reported(tmp_path):
    writer = ShardWriter(tmp_path, "x.tar")
    good = json.dumps({"captions": {"short": "a"}, "source": "s"}).encode()
    for _ in range(2):
        writer.write("a", {"mp4": video(), "json": good})
    writer.write("b", {"mp4": video(), "json": good})
    writer.close()
    clips, report = read(tmp_path)
    assert list(clips) == ["a", "b"]
    assert report.skipped and all("duplicate file name" in item.reason for item in report.skipped)


def test_a_hostile_name_is_reported_and_not_used(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in ("../../evil.json", "../../evil.png"):
            tar.addfile(tarfile.TarInfo(name))
    clips, report = read(tmp_path)
    assert not clips
    assert [item.reason.split(":")[0] for item in report.skipped] == ["bad key"]


def test_media_lie_where_they_are_said_to(shards, tmp_path):
    paths = clip_shards(shards)
    places = {key: (path, place) for path in paths for key, place in media_places(path).items()}
    clips = list(read_clips(shards, CONFIG))
    assert places.keys() == {clip.clip_key for clip in clips}
    for path, place in places.values():
        held = path.read_bytes()[place.offset : place.offset + place.size]
        assert hashlib.sha256(held).hexdigest() == place.sha256
    cut = tmp_path / "cut.tar"
    cut.write_bytes(paths[0].read_bytes()[:-2000])
    assert media_places(cut).keys() <= places.keys()


def test_missing_clips_are_one_sentence(tmp_path, shards):
    with pytest.raises(ValueError, match=r"clips=.*nowhere is not a folder: give the folder of clip shards"):
        read(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"holds no clip shards \(\*.tar\)"):
        read(tmp_path / "empty")
    (shards / "clips-000001.tar").unlink()
    with pytest.raises(ValueError, match=r"lacks clips-000001.tar \(1 of 3 shards"):
        read(shards)


def test_a_shard_that_the_index_does_not_name_is_refused(shards):
    (shards / "more.tar").write_bytes((shards / "clips-000000.tar").read_bytes())
    with pytest.raises(ValueError, match=r"more\.tar \(1 shards\) is not in clips\.json and would never be read"):
        clip_shards(shards)


def test_a_shard_shorter_than_its_index_is_reported(shards):
    writer = ShardWriter(shards, "new.tar")
    clip = source("film/shot1", video())
    writer.write(clip.key, {"mp4": clip.media, "json": json.dumps(clip.meta).encode()})
    writer.close()
    (shards / "new.tar").replace(shards / "clips-000000.tar")
    _, report = read(shards)
    assert [item.reason for item in report.skipped] == ["wrong count: 1 clips, but 2 in clips.json"]


def test_the_identity_names_the_bytes(tmp_path):
    for name, frames in (("a", 24), ("b", 24), ("c", 25)):
        write_clip_shards([source("k", video(frames=frames))], tmp_path / name)
    a, b, c = (clip_shards_identity(tmp_path / name) for name in "abc")
    assert a == b != c
    (tmp_path / "a" / INDEX_NAME).unlink()
    assert clip_shards_identity(tmp_path / "a") == b


@pytest.mark.parametrize(
    ("clip", "message"),
    [
        (ClipSource(key="a.b", media=b"", extension="mp4", meta={}), "sample key 'a.b'"),
        (ClipSource(key="a", media=b"", extension="exe", meta={}), "clip a: .exe is none of"),
        (ClipSource(key="a", media=b"", extension="mp4", meta={"source": "s"}), "clip a: no captions"),
        (ClipSource(key="a", media=b"", extension="mp4", meta={"captions": {"short": "x"}}), "clip a: no source"),
    ],
)
def test_the_writer_refuses_what_a_reader_would(tmp_path, clip, message):
    with pytest.raises(ValueError, match=message):
        write_clip_shards([clip], tmp_path / "clips")
    assert not list(tmp_path.iterdir())


def test_keys_used_twice_and_empty_lists_are_refused(tmp_path):
    with pytest.raises(ValueError, match="'a' is used twice"):
        write_clip_shards([source("a", b"x"), source("a", b"y")], tmp_path / "clips")
    with pytest.raises(ValueError, match="no clips to write"):
        write_clip_shards([], tmp_path / "clips")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("letters", "kept"), [(76, ["_w00", "_w01"]), (77, [])])
def test_a_key_that_is_too_long_for_the_number_of_a_window_is_told(tmp_path, letters, kept):
    """Where the clip is read, not when its latents are to be stored; a clip of one window has no number."""
    long, only = "k" * letters, "o" * 80
    clips = [source(long, video(frames=34, fps=8)), source(only, video(frames=17, fps=8))]
    write_clip_shards(clips, tmp_path / "clips")
    clips, report = read(tmp_path / "clips")
    assert list(clips) == [*(long + number for number in kept), only]
    for key in clips:
        check_key(key)
    reason = (
        f"long key: its window '{long}_w00' would have 81 letters, more than the 80 that a shard holds: shorten the "
        "clip's key by 1"
    )
    assert [item.reason for item in report.skipped] == ([] if kept else [reason])
