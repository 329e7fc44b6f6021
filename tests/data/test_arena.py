"""The loader's memory: what is held stays, what is let go is used again, and little of it is enough."""

import gc
import os
import time
from pathlib import Path

import pytest
import torch

from data.arena import Arena
from data.loader import Loader
from data.mixture import DataSet
from data.pack import PackPlan
from data.step import ReadAhead
from tests.data.latent_set import sample, write_latents
from tests.data.workers import until, workers_of


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return write_latents(tmp_path_factory.mktemp("arena") / "set", [sample(i) for i in range(60)])


@pytest.fixture
def arena():
    made = Arena(1 << 16, workers=2)
    yield made
    made.close()


def plan(manifest):
    return PackPlan(DataSet.of(manifest), seed=3, tokens_per_pack=100, window=25)


def steps(loader, count):
    with loader:
        return [next(loader) for _ in range(count)]


def samples_of(steps):
    return [one for step in steps for pack in step.packs for one in pack]


def test_a_region_is_free_when_its_last_view_is_gone(arena):
    region = arena.allocate(5000)
    view = region.tensor[100:200].view(torch.float32).view(5, 5)[1:]
    del region
    assert arena.taken_bytes == 8192
    other = view.float()
    del view
    assert arena.taken_bytes == 8192
    del other
    assert arena.taken_bytes == 0


def test_regions_lie_apart_and_as_low_as_there_is_room(arena):
    regions = [arena.allocate(size) for size in (4096, 10_000, 4096)]
    for number, region in enumerate(regions):
        region.tensor.fill_(number)
    assert all(bool((region.tensor == number).all()) for number, region in enumerate(regions))
    first = regions[1].start
    regions[1] = region = None
    assert arena.allocate(8192).start == first
    assert arena.allocate(1 << 16) is None


def test_memory_is_that_of_the_descriptor_and_apart_from_what_workers_say(arena):
    region = arena.allocate(100)
    region.tensor[:3] = torch.tensor([1, 2, 3], dtype=torch.uint8)
    arena.progress[1] = 7
    assert os.pread(arena.descriptor, 3, region.start) == bytes([1, 2, 3])
    assert os.pread(arena.descriptor, 8, 8) == (7).to_bytes(8, "little")
    assert bytes(region.memory[region.start : region.start + 3]) == bytes([1, 2, 3])


def test_a_region_apart_is_memory_of_its_own(arena):
    region = arena.allocate_apart(1 << 17)
    region.tensor[5] = 9
    assert os.pread(region.own_descriptor, 1, 5) == bytes([9])
    os.close(region.own_descriptor)
    assert arena.taken_bytes == 0


def test_closing_gives_back_the_descriptors():
    gc.collect()
    files = len(os.listdir("/proc/self/fd"))
    made = Arena(1 << 16, workers=1)
    held = made.allocate(10).tensor
    made.close()
    held.fill_(3)
    del made, held
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == files


def test_a_sample_outlives_its_loader_and_all_that_is_read_after_it(manifest):
    with Loader(plan(manifest), packs_per_step=2, ahead=ReadAhead(num_bytes=1 << 16)) as loader:
        held = [next(loader) for _ in range(6)]
        for _ in range(40):
            next(loader)
    for one in (s for step in held for pack in step.packs for s in pack):
        assert torch.equal(one.latent_CTHW, sample(int(one.key[-4:])).latent_CTHW)
        assert all(torch.equal(value, sample(int(one.key[-4:])).text[kind]) for kind, value in one.text.items())


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("num_bytes", [1, 20_000, 1 << 30])
def test_little_memory_changes_nothing(manifest, workers, num_bytes):
    ahead = ReadAhead(workers=workers, num_bytes=num_bytes)
    few = steps(Loader(plan(manifest), packs_per_step=4, ahead=ahead), 15)
    many = steps(Loader(plan(manifest), packs_per_step=4, ahead=ReadAhead(workers=0)), 15)
    assert [step.keys for step in few] == [step.keys for step in many]
    for one, other in zip(samples_of(few), samples_of(many), strict=True):
        assert torch.equal(one.latent_CTHW, other.latent_CTHW)


def test_what_is_read_ahead_is_bounded_in_steps_and_bytes(manifest):
    with Loader(plan(manifest), packs_per_step=1, ahead=ReadAhead(steps=3, workers=0)) as loader:
        next(loader)
        until(lambda: loader._queue.qsize() == 3)
        time.sleep(0.1)
        assert loader._queue.qsize() == 3
    ahead = ReadAhead(steps=100, workers=0, num_bytes=1 << 16)
    with Loader(plan(manifest), packs_per_step=4, ahead=ahead) as loader:
        until(lambda: loader._unread and loader._queue.qsize())
        time.sleep(0.1)
        assert loader._arena.taken_bytes <= 1 << 16
        assert 1 <= loader._queue.qsize() < 30
        ready = loader._queue.qsize()
        before = [next(loader).keys for _ in range(ready + 3)]
    assert before == [step.keys for step in steps(Loader(plan(manifest), packs_per_step=4), ready + 3)]


def test_memory_and_open_files_are_flat_over_thousands_of_steps(tmp_path):
    manifest = write_latents(tmp_path / "set", [sample(i, grid=(1, 2, 2)) for i in range(200)], samples_per_shard=4)
    small = PackPlan(DataSet.of(manifest), seed=0, tokens_per_pack=4, window=50)
    held = []
    with Loader(small, packs_per_step=2, ahead=ReadAhead(workers=1, num_bytes=1 << 20)) as loader:
        for number in range(3000):
            next(loader)
            if number % 1000 == 999:
                pages = int(Path("/proc/self/statm").read_text().split()[1])
                held.append((pages * os.sysconf("SC_PAGE_SIZE"), len(os.listdir("/proc/self/fd"))))
        (worker,) = workers_of()
        assert len(os.listdir(f"/proc/{worker}/fd")) < 64 + 16
    assert held[-1][0] - held[0][0] < 4 << 20, held
    assert held[-1][1] <= held[0][1] + 1, held
