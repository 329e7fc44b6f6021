"""Entries of a cache: whole or not there, checked at each use, and one for all who make the same."""

import os
import threading
import time

import pytest

from data.cache import Cache

MEMBERS = {"json": b'{"captions": {}}', "text": bytes(range(200)), "none": b""}
KEY = "ab" + 62 * "0"


def read(kept):
    with open(kept.path, "rb") as file:
        return os.pread(file.fileno(), kept.place.size, kept.place.offset)


def test_what_is_stored_is_found_where_it_says(tmp_path):
    cache = Cache(tmp_path / "cache")
    assert cache.find(KEY) is None
    stored = cache.store(KEY, MEMBERS)
    assert cache.find(KEY) == stored
    assert {name: read(kept) for name, kept in stored.items()} == MEMBERS
    assert all(kept.place.offset % 64 == 0 for kept in stored.values())
    assert [path.name for path in cache.path(KEY).parent.iterdir()] == [KEY]
    assert cache.lacks({KEY: 1, KEY[:-1] + "1": 2}) == {KEY[:-1] + "1": 2}


@pytest.mark.parametrize("at", [0, 9, 40, 200, 256, 300, 450])
def test_a_changed_byte_is_found_and_the_entry_made_again(tmp_path, caplog, at):
    cache = Cache(tmp_path)
    places = cache.store(KEY, MEMBERS)
    held = bytearray(cache.path(KEY).read_bytes())
    assert at < len(held) and places["text"].place.size == 200
    held[at] ^= 1
    cache.path(KEY).write_bytes(held)
    found = cache.find(KEY)
    if found is not None:  # a byte between the members, which nobody reads
        assert {name: read(kept) for name, kept in found.items()} == MEMBERS
        assert at == 450
        return
    assert f"{KEY} is damaged" in caplog.text
    assert not cache.path(KEY).exists()
    assert read(cache.store(KEY, MEMBERS)["text"]) == MEMBERS["text"]


@pytest.mark.parametrize("length", [0, 5, 100, 400])
def test_an_entry_that_was_cut_off_is_none(tmp_path, length):
    cache = Cache(tmp_path)
    cache.store(KEY, MEMBERS)
    os.truncate(cache.path(KEY), length)
    assert cache.find(KEY) is None


def test_an_entry_under_the_name_of_another_is_none(tmp_path):
    cache, other = Cache(tmp_path), "ab" + 62 * "1"
    cache.store(KEY, MEMBERS)
    cache.path(KEY).rename(cache.path(other))
    assert cache.find(other) is None


def test_of_those_who_make_the_same_entry_the_first_wins_for_all(tmp_path):
    cache, start, seen = Cache(tmp_path), threading.Barrier(8), []

    def make(number):
        start.wait()
        seen.append(read(cache.store(KEY, {"text": bytes([number]) * 100_000})["text"]))

    threads = [threading.Thread(target=make, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 8 and len(set(seen)) == 1
    assert [path.name for path in cache.path(KEY).parent.iterdir()] == [KEY]


def test_a_place_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(OSError, match="cache"):
        Cache(tmp_path / "cache").store(KEY, MEMBERS)


def aged(cache, key, hours):
    cache.store(key, {"latent": bytes(100_000)})
    then = time.time() - hours * 3600
    os.utime(cache.path(key), (then, then))


def test_room_is_made_of_what_was_not_used_for_long(tmp_path):
    cache = Cache(tmp_path)
    keys = [f"{number:02d}" + 62 * "0" for number in range(6)]
    for key, hours in zip(keys, (5, 40, 0, 3, 20, 2), strict=True):
        aged(cache, key, hours)
    (cache.path(keys[0]).parent / ".entry-half").write_bytes(bytes(50_000))
    os.utime(cache.path(keys[0]).parent / ".entry-half", (0, 0))
    cache.make_room({keys[4]: 101_000, "ff": 100_000}, limit=520_000)
    left = [key for key in keys if cache.path(key).exists()]
    assert left == [keys[2], keys[3], keys[4], keys[5]], "the longest unused went, but none that is needed"
    assert not (cache.path(keys[0]).parent / ".entry-half").exists()
    with pytest.raises(ValueError, match=r"cache_bytes=300000 .* is too little for these clips.* beside"):
        cache.make_room({"ff": 250_000}, limit=300_000)
    assert cache.path(keys[2]).exists(), "used in the last hour"


def test_only_what_is_of_the_cache_is_removed(tmp_path):
    """A user may name a folder that holds other things."""
    others = [tmp_path / "db/.env", tmp_path / "db/notes.txt", tmp_path / "ab/cd/file", tmp_path / f"cd/{64 * 'e'}"]
    for path in others:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(1000))
        os.utime(path, (0, 0))
    Cache(tmp_path).make_room({64 * "a": 100}, limit=200)
    assert all(path.exists() for path in others)


def test_what_neither_the_limit_nor_the_disk_has_room_for_is_refused(tmp_path):
    cache = Cache(tmp_path / "new")
    with pytest.raises(ValueError, match=r"data\.online\.cache_bytes=1000 .* raise it, or take fewer clips"):
        cache.make_room({"ff": 2000}, limit=1000)
    with pytest.raises(ValueError, match=r"data\.online\.cache=.*new: .* but the disk has .* make room"):
        cache.make_room({"ff": 1 << 60}, limit=1 << 61)
