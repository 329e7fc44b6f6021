"""What is wrong with a shard is the same sentence on all ranks, in every layout and on replay."""

import shutil
from math import prod
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from data.loader import Loader
from data.manifest import Manifest
from data.mixture import DataSet
from data.pack import PackPlan
from data.step import RankShare, ReadAhead
from parallel.dims import ParallelDims
from parallel.runtime import Grid
from parallel.worlds import Worlds
from tests.data.latent_set import sample, write_latents
from tests.data.tar_faults import FAULTS, Shards
from tests.fresh import in_a_fresh_interpreter
from trainer.loop import fetch

KEYS = {f"film/clip{i:04d}" for i in range(8)}
LAYOUTS = {
    "one process": {},
    "dp2": {"data": 2},
    "dp4": {"data": 4},
    "tp2": {"tensor": 2},
    "pp3": {"pipeline": 3},
    "tp2_dp2": {"tensor": 2, "data": 2},
    "pp2_dp2": {"pipeline": 2, "data": 2},
}
SPARE_THE_SIZE_TOO = {"bit of a header", "zeroed header"}
SPARE_ALL_SAMPLES = SPARE_THE_SIZE_TOO | {
    "cut in the end marker",
    "duplicate key, apart",
    "duplicate key, two shards",
    "member leading out",
    "absolute member",
}
"""Faults under which each sample's bytes are where they were. Training reads by place, so it goes on; the doctor and
`test_no_fault_of_a_shard_is_silent` tell of them."""


def told_by_an_epoch(grid, manifest, *, workers=0):
    """What ends the training of an epoch, on this rank; or the keys of all its samples."""
    plan, keys = PackPlan(DataSet.of(manifest), seed=1, tokens_per_pack=40), set()
    run = SimpleNamespace(grid=grid, metrics=SimpleNamespace(failure=None))
    share = RankShare(
        data_rank=grid.data_rank,
        data_size=grid.data_size,
        latents=grid.is_first_stage or grid.is_last_stage,
        reads=grid.is_first_of_packs,
    )
    steps, rest = divmod(plan.packs_in_epoch(), 4)
    hand_on = grid.hand_on if grid.pack_group.size() > 1 else None
    ahead = ReadAhead(workers=workers)
    with Loader(plan, packs_per_step=4, steps=steps + (rest > 0), share=share, ahead=ahead, hand_on=hand_on) as loader:
        try:
            while True:
                step = fetch(run, loader)
                assert all(torch.isfinite(one.text["short"]).all() for pack in step.packs for one in pack)
                keys |= {key for pack in step.keys for key in pack}
        except StopIteration:
            return keys
        except ValueError as error:
            return str(error)


def told_of(grid, folder, fault):
    """What one rank is told of a set that is hit after it was opened, once more, and where it is opened anew."""
    opened = Manifest.read(folder)
    dist.barrier()
    if dist.get_rank() == 0:
        first, second = sorted(folder.rglob("*.tar"))
        fault(Shards(first, second, key="film/clip0002", other="film/clip0000", main="latent.safetensors"))
    dist.barrier()
    told = [told_by_an_epoch(grid, opened), told_by_an_epoch(grid, opened)]
    try:
        told.append(told_by_an_epoch(grid, Manifest.read(folder)))
    except ValueError as error:
        told.append(str(error))
    return [each.replace(str(folder), "") if isinstance(each, str) else each for each in told]


def told_of_all(dims, folder, names):
    with Grid(ParallelDims(**dims)) as grid:
        return {name: told_of(grid, folder / name, FAULTS[name]) for name in names}


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults") / "latents"
    write_latents(folder, [sample(i, grid=(3, 4, 6)) for i in range(8)], samples_per_shard=4)
    return folder


@in_a_fresh_interpreter
def test_every_fault_is_one_sentence_on_all_ranks_in_every_layout_and_on_replay(material, tmp_path):
    said = {}
    with Worlds(4) as worlds:
        for layout, dims in LAYOUTS.items():
            for name in FAULTS:
                shutil.copytree(material, tmp_path / layout / name)
            size = prod(dims.values())
            ranks = [each.value for each in worlds.run(size, told_of_all, dims, tmp_path / layout, list(FAULTS))]
            shutil.rmtree(tmp_path / layout)
            assert all(rank == ranks[0] for rank in ranks), layout
            said[layout] = ranks[0]
    for name in FAULTS:
        while_running, replayed, reopened = said["one process"][name]
        assert while_running == replayed, name
        assert all(said[layout][name] == [while_running, replayed, reopened] for layout in LAYOUTS), name
        assert (while_running == KEYS) == (name in SPARE_ALL_SAMPLES), while_running
        assert (reopened == KEYS) == (name in SPARE_THE_SIZE_TOO), reopened
        assert while_running == KEYS or ".tar: sample film/clip" in while_running
        assert reopened == KEYS or ".tar: sample film/clip" in reopened or "though manifest.parquet says" in reopened
