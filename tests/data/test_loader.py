import os
import threading
from pathlib import Path

import pytest
import torch

from data.loader import Loader, RankShare, SampleReader, read_sample
from data.manifest import Manifest
from data.mixture import DataSet
from data.pack import PackPlan, Position
from tests.data.latent_set import sample, write_latents


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return write_latents(tmp_path_factory.mktemp("loader") / "set", [sample(i) for i in range(60)])


def plan(manifest):
    return PackPlan(DataSet.of(manifest), seed=3, tokens_per_pack=100, window=25)


def steps(loader, count):
    with loader:
        return [next(loader) for _ in range(count)]


def keys(packs):
    return [tuple(one.key for one in pack) for pack in packs]


def test_a_step_holds_the_planned_packs(manifest):
    data_plan, position = plan(manifest), Position()
    for step in steps(Loader(plan(manifest), packs_per_step=4), 12):
        planned, position = data_plan.step(position, 4)
        assert [tuple(s.index for s in pack) for pack in step.packs] == [pack.rows for pack in planned]
        assert step.position_after == position
        assert step.visits == tuple(pack.visits for pack in planned)
        assert step.keys == tuple(keys(step.packs))
        assert step.video_tokens == sum(s.video_tokens for pack in step.packs for s in pack)
        assert step.token_budget == 400
        assert all(
            s.video_tokens == s.latent_CTHW[0].numel() // 4
            and s.latent_shape == s.latent_CTHW.shape
            and torch.equal(s.latent_CTHW, sample(int(s.key[-4:])).latent_CTHW)
            for pack in step.packs
            for s in pack
        )


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_the_global_stream_does_not_depend_on_the_ranks(manifest, ranks):
    whole = [keys(step.packs) for step in steps(Loader(plan(manifest), packs_per_step=4), 10)]
    shares = [RankShare(data_rank=r, data_size=ranks) for r in range(ranks)]
    parts = [steps(Loader(plan(manifest), packs_per_step=4, share=share), 10) for share in shares]
    for number, packs in enumerate(whole):
        assert [key for part in parts for key in keys(part[number].packs)] == packs
        assert all(list(part[number].keys) == packs for part in parts)


def test_a_loader_goes_on_from_any_position_with_other_ranks(manifest):
    whole = steps(Loader(plan(manifest), packs_per_step=6), 12)
    third = RankShare(data_size=3)
    middle = steps(Loader(plan(manifest), packs_per_step=6, start=whole[4].position_after, share=third), 7)
    assert [step.keys for step in middle] == [step.keys for step in whole[5:]]


def test_an_epoch_over_all_ranks_holds_each_sample_once(manifest):
    data_plan = plan(manifest)
    packs = data_plan.packs_in_epoch(0)
    seen = [key for step in steps(Loader(data_plan, packs_per_step=1), packs) for pack in step.keys for key in pack]
    assert sorted(seen) == sorted(manifest.keys())


def test_ranks_must_divide_the_packs_of_a_step(manifest):
    with pytest.raises(
        ValueError, match="data.packs_per_step=4 must be a multiple of the 3 data-parallel ranks: take 3"
    ):
        Loader(plan(manifest), packs_per_step=4, share=RankShare(data_size=3))


@pytest.fixture
def bytes_read(monkeypatch):
    """(offset, size) of every read of a shard."""
    reads, pread = [], os.pread

    def recorded(descriptor, size, offset):
        data = pread(descriptor, size, offset)
        reads.append((offset, len(data)))
        return data

    monkeypatch.setattr("data.loader.os.pread", recorded)
    return reads


def test_without_latents_only_text_and_captions_are_read(manifest, bytes_read):
    whole, bare = SampleReader(manifest), SampleReader(manifest, latents=False)
    for row in range(len(manifest)):
        expected, place = whole.read(row), manifest.row(row)
        bytes_read.clear()
        one = bare.read(row)
        wanted = [(place[f"{member}_offset"], place[f"{member}_size"]) for member in ("json", "text")]
        assert sorted(bytes_read) == sorted(wanted), "no byte of the latent, and every other one once"
        assert one.latent_CTHW is None
        assert one.latent_shape == expected.latent_shape == sample(int(one.key[-4:])).latent_CTHW.shape
        assert all(torch.equal(one.text[kind], value) for kind, value in expected.text.items())
        same = ("key", "index", "captions", "source", "video_tokens", "bucket")
        assert [getattr(one, name) for name in same] == [getattr(expected, name) for name in same]
        assert one.num_bytes == sum(text.nbytes for text in one.text.values())
    whole.close()
    bare.close()


def test_a_sample_with_its_latent_is_one_read(manifest, bytes_read):
    read_sample(manifest, 3)
    place = manifest.row(3)
    ends = [place[f"{member}_offset"] + place[f"{member}_size"] for member in ("json", "latent", "text")]
    assert bytes_read == [(place["json_offset"], max(ends) - place["json_offset"])]


def test_a_loader_without_latents_gives_the_same_steps(manifest):
    whole = steps(Loader(plan(manifest), packs_per_step=4), 8)
    share = RankShare(latents=False)
    for step, expected in zip(steps(Loader(plan(manifest), packs_per_step=4, share=share), 8), whole, strict=True):
        assert keys(step.packs) == keys(expected.packs)
        assert (step.position_after, step.visits, step.video_tokens) == (
            expected.position_after,
            expected.visits,
            expected.video_tokens,
        )
        assert all(one.latent_CTHW is None for pack in step.packs for one in pack)


def damaged(tmp_path, member, *, key="film/clip0007"):
    """A set with one byte of one member of one sample changed."""
    manifest = write_latents(tmp_path / "set", [sample(i) for i in range(20)])
    row = manifest.keys().index(key)
    place = manifest.row(row)
    path = Path(manifest.folder) / place["shard"]
    data = bytearray(path.read_bytes())
    data[place[f"{member}_offset"] + place[f"{member}_size"] - 2] ^= 1
    path.write_bytes(data)
    return Manifest.read(manifest.folder), row, path


@pytest.mark.parametrize("member", ["json", "latent", "text"])
def test_a_flipped_bit_is_an_error_with_shard_and_key(tmp_path, member):
    manifest, row, path = damaged(tmp_path, member)
    with pytest.raises(ValueError, match=f"{path}: sample film/clip0007: its {member} is damaged"):
        read_sample(manifest, row)


def test_damage_is_met_by_those_who_read_it(tmp_path):
    manifest, row, _ = damaged(tmp_path / "a", "latent")
    assert SampleReader(manifest, latents=False).read(row).key == "film/clip0007"
    manifest, row, _ = damaged(tmp_path / "b", "text")
    with pytest.raises(ValueError, match="film/clip0007: its text is damaged"):
        SampleReader(manifest, latents=False).read(row)


@pytest.mark.parametrize("meta", [b"{}", b"[1]", b"}"])
def test_metadata_without_captions_is_an_error_with_shard_and_key(tmp_path, monkeypatch, meta):
    manifest = write_latents(tmp_path / "set", [sample(0)])
    members = SampleReader._members

    def with_meta(reader, *where):
        return members(reader, *where) | {"json": meta}

    monkeypatch.setattr(SampleReader, "_members", with_meta)
    with pytest.raises(ValueError, match="000000.tar: sample film/clip0000 cannot be read .*: encode the clips again"):
        read_sample(manifest, 0)


def test_an_error_of_the_reading_thread_reaches_the_consumer(tmp_path):
    manifest, _, path = damaged(tmp_path, "latent")
    loader = Loader(PackPlan(DataSet.of(manifest), seed=0, tokens_per_pack=100), packs_per_step=2)
    with pytest.raises(ValueError, match=f"{path}: sample film/clip0007"):
        steps(loader, 20)
    with pytest.raises(ValueError, match="film/clip0007"):
        next(loader)


def test_a_shard_that_vanishes_while_training_is_named(tmp_path):
    manifest = write_latents(tmp_path / "set", [sample(0)])
    (Path(manifest.folder) / manifest.row(0)["shard"]).unlink()
    with pytest.raises(ValueError, match="000000.tar: sample film/clip0000 cannot be read .No such file"):
        read_sample(manifest, 0)


def test_only_one_caption_when_asked(manifest):
    assert list(read_sample(manifest, 0, "short").text) == ["short"]
    with pytest.raises(ValueError, match="has no caption 'long', but descriptive, short"):
        read_sample(manifest, 0, "long")


def test_the_cache_is_bounded_and_changes_nothing(manifest):
    def first(cache_bytes):
        return [step.keys for step in steps(Loader(plan(manifest), packs_per_step=3, cache_bytes=cache_bytes), 15)]

    assert first(0) == first(10_000) == first(1 << 30)
    loader = Loader(plan(manifest), packs_per_step=3, cache_bytes=10_000)
    steps(loader, 30)
    assert 0 < loader._cache.bytes <= 10_000
    assert loader._cache.bytes == sum(s.num_bytes for s in loader._cache._samples.values())


def test_closing_stops_the_thread_and_closes_the_shards(manifest):
    before = threading.active_count()
    loader = Loader(plan(manifest), packs_per_step=1, prefetch_steps=1)
    next(loader)
    loader.close()
    assert threading.active_count() == before
    assert not loader._reader._files


def test_reading_ahead_is_bounded(manifest):
    loader = Loader(plan(manifest), packs_per_step=1, prefetch_steps=2)
    with loader:
        next(loader)
        assert loader._queue.maxsize == 2


def test_open_shards_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("data.loader._OPEN_FILES", 3)
    manifest = write_latents(tmp_path / "set", [sample(i, grid=(1, 2, 2)) for i in range(12)], samples_per_shard=1)
    reader = SampleReader(manifest)
    for row in range(12):
        reader.read(row)
        assert len(reader._files) <= 3
    reader.close()
