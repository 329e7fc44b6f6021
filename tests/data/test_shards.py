import errno
import gc
import io
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
import webdataset
import xxhash

from data import shards
from data.shards import PlannedShard, ShardWriter, check_key, file_sha256, new_folder, restore_folder

SAMPLES = {f"clip{i}": {"json": b"{}" * (i + 1), "mp4": bytes([i]) * (700 * i)} for i in range(4)}


def write(folder, name="a.tar"):
    writer = ShardWriter(folder, name)
    places = {key: writer.write(key, members) for key, members in SAMPLES.items()}
    return writer.close(), places


def test_members_lie_where_the_writer_says(tmp_path):
    info, places = write(tmp_path)
    data = (tmp_path / "a.tar").read_bytes()
    for key, members in SAMPLES.items():
        for extension, content in members.items():
            place = places[key][extension]
            assert data[place.offset : place.offset + place.size] == content
            assert place.xxh3 == xxhash.xxh3_64_intdigest(content)
    assert (info.bytes, info.count, info.sha256) == (len(data), 4, file_sha256(tmp_path / "a.tar"))


def test_other_readers_read_the_shard(tmp_path):
    write(tmp_path)
    read = {s["__key__"]: s for s in webdataset.WebDataset([str(tmp_path / "a.tar")], shardshuffle=False)}
    assert {k: (s["json"], s["mp4"]) for k, s in read.items()} == {k: (m["json"], m["mp4"]) for k, m in SAMPLES.items()}
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert len(tar.getnames()) == 8


def test_a_planned_shard_says_where_members_would_lie(tmp_path):
    real, planned = ShardWriter(tmp_path, "shard.tar"), PlannedShard("shard.tar")
    for number in range(3):
        members = {"json": bytes(number), "latent.safetensors": bytes(511 + number)}
        places = real.write(f"key{number}", members)
        assert planned.write(f"key{number}", members) == {
            name: replace(place, xxh3=0) for name, place in places.items()
        }
    written, said = real.close(), planned.close()
    assert (said.name, said.count, said.is_planned) == (written.name, written.count, True)
    assert not written.is_planned


def test_the_same_samples_give_the_same_bytes(tmp_path):
    assert write(tmp_path, "a.tar")[0].sha256 == write(tmp_path, "b.tar")[0].sha256


@pytest.mark.parametrize("key", ["", "a.b", "../a", "/a", "a b", "x" * 81, "é"])
def test_bad_keys_are_refused(key):
    with pytest.raises(ValueError, match="sample key"):
        check_key(key)


def test_a_new_folder_appears_whole_or_not_at_all(tmp_path):
    with new_folder(tmp_path / "out") as scratch:
        (scratch / "x").write_text("1")
        assert not (tmp_path / "out").exists()
    assert (tmp_path / "out" / "x").read_text() == "1"
    with pytest.raises(FileNotFoundError), new_folder(tmp_path / "other") as scratch:
        (scratch / "no folder" / "x").write_text("1")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_what_a_killed_process_left_is_cleared(tmp_path):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "stale").write_text("1")
    with new_folder(tmp_path / "out") as scratch:
        (scratch / "x").write_text("1")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["x"]


def test_an_existing_folder_is_replaced_only_when_asked(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("1")
    with pytest.raises(ValueError, match="out exists"), new_folder(tmp_path / "out"):
        pass
    with pytest.raises(KeyError), new_folder(tmp_path / "out", replace=True):
        raise KeyError
    assert (tmp_path / "out" / "old").exists()
    with new_folder(tmp_path / "out", replace=True):
        pass
    assert not list((tmp_path / "out").iterdir())


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("allowed", [0, 1, 2])
def test_an_interrupted_replacement_loses_neither_old_nor_new(tmp_path, monkeypatch, allowed):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "x").write_text("old")
    calls = iter(range(9))

    def killed_after(action):
        def wrapped(*args, **kwargs):
            if next(calls) >= allowed:
                raise Killed
            return action(*args, **kwargs)

        return wrapped

    def replace_it():
        with monkeypatch.context() as patched, new_folder(folder, replace=True) as scratch:
            (scratch / "x").write_text("new")
            patched.setattr(Path, "rename", killed_after(Path.rename))
            patched.setattr(shards.shutil, "rmtree", killed_after(shards.shutil.rmtree))

    with pytest.raises(Killed):
        replace_it()
    held = {path.parent.name: path.read_text() for path in tmp_path.glob("*/x")}
    assert "new" in held.values()
    assert allowed == 2 or "old" in held.values()
    restore_folder(folder)
    assert (folder / "x").read_text() == ("new" if allowed == 2 else "old")
    assert not (tmp_path / ".out.replaced").exists()
    with new_folder(folder, replace=True) as scratch:
        (scratch / "x").write_text("newer")
    assert {path.parent.name: path.read_text() for path in tmp_path.glob("*/x")} == {"out": "newer"}


def test_a_stale_old_folder_does_not_stand_in_the_way(tmp_path):
    for name in ("out", ".out.replaced"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text(name)
    with new_folder(tmp_path / "out", replace=True) as scratch:
        (scratch / "x").write_text("new")
    assert {path.parent.name: path.read_text() for path in tmp_path.glob("*/x")} == {"out": "new"}


def test_an_old_folder_left_alone_comes_back_before_anything_else(tmp_path):
    (tmp_path / ".out.replaced").mkdir()
    (tmp_path / ".out.replaced" / "x").write_text("old")
    with pytest.raises(ValueError, match="out exists"), new_folder(tmp_path / "out"):
        pass
    assert (tmp_path / "out" / "x").read_text() == "old"


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path, monkeypatch):
    full_after(monkeypatch, writes=3)
    with pytest.raises(OSError, match="the disk ran full while writing .*out: nothing half-written"):
        fill(tmp_path / "out")
    gc.collect()
    assert not list(tmp_path.iterdir())


def fill(folder):
    with new_folder(folder) as scratch:
        writer = ShardWriter(scratch, "a.tar")
        for number in range(100):
            writer.write(f"clip{number}", {"mp4": bytes(20_000)})


def full_after(monkeypatch, *, writes):
    """Every file that is opened refuses its `writes`-th write as a full disk does."""
    left = [writes]

    class FullDisk(io.FileIO):
        def write(self, data):
            left[0] -= 1
            if left[0] < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data)

    monkeypatch.setattr(shards, "open", FullDisk, raising=False)
