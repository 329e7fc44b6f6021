import gc
import os
import threading
import time
from pathlib import Path

import fsspec
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from data.loader import Loader, RankShare
from data.manifest import Manifest
from data.mixture import DataSet
from data.pack import PackPlan, Position
from data.sample_reader import SampleReader, read_sample
from data.step import ReadAhead
from tests.data.latent_set import damaged, sample, write_latents
from tests.data.workers import workers_of


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


def test_damage_is_met_by_those_who_read_it(tmp_path):
    manifest, row, _ = damaged(tmp_path / "a", "latent")
    assert SampleReader(manifest, latents=False).read(row).key == "film/clip0007"
    manifest, row, _ = damaged(tmp_path / "b", "text")
    with pytest.raises(ValueError, match="film/clip0007: its text is damaged"):
        SampleReader(manifest, latents=False).read(row)


def test_an_error_of_the_reading_thread_reaches_the_consumer(tmp_path):
    manifest, _, path = damaged(tmp_path, "latent")
    loader = Loader(PackPlan(DataSet.of(manifest), seed=0, tokens_per_pack=100), packs_per_step=2)
    with pytest.raises(ValueError, match=f"{path}: sample film/clip0007"):
        steps(loader, 20)
    with pytest.raises(ValueError, match="film/clip0007"):
        next(loader)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("torn", [0, 1, 5, 6])
def test_steps_before_one_that_cannot_be_planned_are_handed_out(manifest, monkeypatch, torn, workers):
    real = PackPlan.step

    def step(self, position, packs):
        if position.step >= torn:
            raise ValueError("its key column does not match its hash")
        return real(self, position, packs)

    monkeypatch.setattr(PackPlan, "step", step)
    with Loader(plan(manifest), packs_per_step=2, ahead=ReadAhead(steps=4, workers=workers)) as loader:
        assert [next(loader).position_after.step for _ in range(torn)] == list(range(1, torn + 1))
        for _ in range(2):
            with pytest.raises(ValueError, match="does not match its hash"):
                next(loader)


@pytest.mark.parametrize("reads", [True, False])
@pytest.mark.parametrize("count", [1, 3, 9])
def test_no_more_is_planned_than_the_steps_that_are_wanted(manifest, monkeypatch, count, reads):
    planned, real = [], PackPlan.step

    def step(self, position, packs):
        planned.append(position.step)
        return real(self, position, packs)

    monkeypatch.setattr(PackPlan, "step", step)
    share, ahead = RankShare(reads=reads), ReadAhead(steps=4, workers=0)
    hand_on = None if reads else torch.Tensor.zero_
    with Loader(plan(manifest), packs_per_step=2, steps=count, share=share, ahead=ahead, hand_on=hand_on) as loader:
        if reads:
            assert [step.position_after.step for step in loader] == list(range(1, count + 1))
            loader.wait()  # for nothing, and not for ever
        else:
            loader.wait()
        time.sleep(0.1)
    assert planned == list(range(count if reads else min(count, 5)))


@pytest.mark.parametrize("reads", [True, False])
def test_bytes_that_wait_to_be_handed_on_are_bounded(manifest, reads):
    """By `num_bytes`, but for the step that is waited for; steps come all the same."""
    share, ahead = RankShare(reads=reads), ReadAhead(steps=9, num_bytes=1, workers=0)
    keys_of = [step.keys for step in steps(Loader(plan(manifest), packs_per_step=2), 5)]
    with Loader(plan(manifest), packs_per_step=2, share=share, ahead=ahead, hand_on=lambda memory: None) as loader:
        time.sleep(0.2)
        assert loader._queue.qsize() == 1
        if reads:
            assert [next(loader).keys for _ in range(5)] == keys_of


def test_a_shard_that_vanishes_while_training_is_named(tmp_path):
    manifest = write_latents(tmp_path / "set", [sample(0)])
    (Path(manifest.folder) / manifest.row(0)["shard"]).unlink()
    with pytest.raises(ValueError, match="000000.tar: sample film/clip0000 cannot be read .No such file"):
        read_sample(manifest, 0)


def test_closing_ends_thread_and_workers_and_closes_the_shards(manifest):
    gc.collect()
    threads, files = threading.active_count(), len(os.listdir("/proc/self/fd"))
    loader = Loader(plan(manifest), packs_per_step=1, ahead=ReadAhead(steps=1, workers=2))
    next(loader)
    assert len(workers_of()) == 2
    loader.close()
    assert threading.active_count() == threads
    assert not workers_of()
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == files


def samples_of(steps):
    return [one for step in steps for pack in step.packs for one in pack]


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
def test_ranks_one_after_another_read_the_stream_of_one(manifest, ranks):
    def read(rank, ranks):
        share = RankShare(data_rank=rank, data_size=ranks)
        return steps(Loader(plan(manifest), packs_per_step=24, share=share, ahead=ReadAhead(workers=0)), 3)

    whole, parts = read(0, 1), [read(rank, ranks) for rank in range(ranks)]
    for number, step in enumerate(whole):
        assert [pack for part in parts for pack in keys(part[number].packs)] == keys(step.packs)
        assert [visits for part in parts for visits in part[number].visits] == list(step.visits)


def test_an_epoch_over_changing_ranks_repeats_and_skips_nothing(tmp_path):
    """4 ranks, then 2, then 3, each going on where the others stopped."""
    manifest = write_latents(tmp_path / "set", [sample(i) for i in range(240)])
    seen, position = [], Position()
    for ranks, count in ((4, 2), (2, 1), (3, 100)):
        for _ in range(count):
            parts = []
            for rank in range(ranks):
                share = RankShare(data_rank=rank, data_size=ranks)
                ahead = ReadAhead(workers=0, steps=1)
                parts += steps(Loader(plan(manifest), start=position, packs_per_step=12, share=share, ahead=ahead), 1)
            assert len({part.position_after for part in parts}) == 1
            position = parts[0].position_after
            visits = [visit for part in parts for pack in part.visits for visit in pack]
            seen += [one.key for one, visit in zip(samples_of(parts), visits, strict=True) if visit == 0]
            if position.epoch:
                break
    assert position.step > 4
    assert sorted(seen) == sorted(manifest.keys())


@pytest.mark.parametrize("latents", [True, False])
def test_samples_that_are_handed_on_are_those_that_were_read(manifest, latents):
    box = []
    alone = Loader(plan(manifest), packs_per_step=4, share=RankShare(latents=latents))
    reader = Loader(
        plan(manifest), packs_per_step=4, share=RankShare(latents=latents), hand_on=lambda m: box.append(m.clone())
    )
    receiver = Loader(
        plan(manifest),
        packs_per_step=4,
        share=RankShare(latents=latents, reads=False),
        hand_on=lambda memory: memory.copy_(box.pop()),
    )
    with alone, reader, receiver:
        for _ in range(12):
            one, two, three = next(alone), next(reader), next(receiver)
            assert one.keys == two.keys == three.keys
            for a, b, c in zip(*(samples_of([step]) for step in (one, two, three)), strict=True):
                assert a.key == b.key == c.key
                assert (a.captions, a.fps, a.source, a.bucket) == (c.captions, c.fps, c.source, c.bucket)
                assert all(torch.equal(a.text[kind], other.text[kind]) for kind in a.text for other in (b, c))
                for other in (b, c):
                    assert torch.equal(a.latent_CTHW, other.latent_CTHW) if latents else other.latent_CTHW is None


def test_a_failure_is_told_before_anything_is_handed_on(tmp_path):
    manifest, _, path = damaged(tmp_path, "text")
    handed, taken = [], []
    with Loader(plan(manifest), packs_per_step=1, hand_on=handed.append) as loader:
        with pytest.raises(ValueError, match=f"{path}: sample film/clip0007"):
            taken.extend(loader)
        handed.clear()
        with pytest.raises(ValueError, match=f"{path}: sample film/clip0007"):
            loader.wait()
    assert not handed


def remote_copy(manifest, name):
    files = fsspec.filesystem("memory")
    for path in Path(manifest.folder).rglob("*"):
        if path.is_file():
            files.pipe_file(f"/{name}/{path.relative_to(manifest.folder)}", path.read_bytes())
    return Manifest.read(f"memory://{name}")


@pytest.fixture
def requests(monkeypatch):
    found, cat_file = [], MemoryFileSystem.cat_file

    def counted(self, path, start=None, end=None, **options):
        found.append((path, start, end))
        return cat_file(self, path, start=start, end=end, **options)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", counted)
    return found


def test_an_object_store_gets_one_request_for_most_of_a_shard(tmp_path, requests):
    local = write_latents(tmp_path / "set", [sample(i, grid=(2, 4, 4)) for i in range(40)], samples_per_shard=20)
    far, ahead = remote_copy(local, "most"), ReadAhead(workers=0, steps=1)
    requests.clear()
    with Loader(plan(far), packs_per_step=12, ahead=ahead) as loader:
        near = steps(Loader(plan(local), packs_per_step=12, ahead=ahead), 1)[0]
        step = next(loader)
        shards = {local.row(s.index)["shard"] for pack in step.packs for s in pack}
        assert len(requests) <= 2 * len(shards)
        assert len(samples_of([step])) > 4 * len(requests)
    assert step.keys == near.keys
    for one, other in zip(samples_of([step]), samples_of([near]), strict=True):
        assert torch.equal(one.latent_CTHW, other.latent_CTHW)


def test_a_late_position_begins_as_soon_as_the_first(manifest, bytes_read):
    late = steps(Loader(plan(manifest), packs_per_step=2, ahead=ReadAhead(workers=0)), 30)[-1].position_after
    counts = []
    for start in (Position(), late):
        bytes_read.clear()
        with Loader(plan(manifest), start=start, packs_per_step=2, ahead=ReadAhead(workers=0, steps=1)) as loader:
            next(loader)
            counts.append(sum(size for _, size in bytes_read))
    assert counts[1] < 3 * counts[0]


def test_open_shards_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("data.worker._OPEN_FILES", 3)
    manifest = write_latents(tmp_path / "set", [sample(i, grid=(1, 2, 2)) for i in range(12)], samples_per_shard=1)
    reader, before = SampleReader(manifest), len(os.listdir("/proc/self/fd"))
    for row in range(12):
        reader.read(row)
        assert len(os.listdir("/proc/self/fd")) <= before + 3
    reader.close()
    assert len(os.listdir("/proc/self/fd")) == before
