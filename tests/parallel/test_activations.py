"""What packs in flight hold: counted on the meta device as it is on a real one, and along Megatron's schedules."""

from dataclasses import replace

import pytest
import torch
from layout_reference import CONFIG

from model.dit import VideoDiT
from parallel.activations import Allocations, PackMemory, _inputs, activation_memory, in_flight, pack_memory, passes
from parallel.dims import ParallelDims
from parallel.dryrun import fake_grid

TOKENS = 9600
"""Many beside the text, which context ranks do not share; on the meta device they cost nothing."""


def estimate(*, tokens=TOKENS, packs=8, rank=0, world_size=8, config=CONFIG, **options):
    dims = ParallelDims(precision="bf16", **options).resolve(world_size)
    with fake_grid(dims, rank, world_size) as grid:
        return activation_memory(grid, config, tokens=tokens, packs=packs)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_counts_what_is_alive(device):
    with Allocations() as made:
        x = torch.zeros(10, device=device, requires_grad=True)
        y = x.exp()  # keeps its result
        assert made.alive == 80
        z = y.view(2, 5) * 2
        assert made.alive == 120
        del y
        assert made.alive == 120
        z.sum().backward()
        del z
        assert made.alive == 80 and made.peak >= 160
    assert x.grad is not None


def test_the_meta_device_counts_as_a_real_one_does():
    """The CPU attends segment by segment, which copies each result once more into place."""
    with fake_grid(ParallelDims(precision="bf16"), 0, 1):
        found = {}
        for device in ("cpu", "meta"):
            with torch.device(device):
                dit = VideoDiT(CONFIG).bfloat16()
                found[device] = pack_memory(dit, 0, _inputs(dit, 96))
    copies = 2 * CONFIG.num_blocks * 96 * CONFIG.dim * 2
    assert found["cpu"].kept - copies == pytest.approx(found["meta"].kept, rel=0.01)
    assert found["meta"].buffer == found["cpu"].buffer == 0


def test_recomputing_keeps_less():
    none, selective, some, full = (
        estimate(**options)
        for options in (
            {},
            {"recompute": "selective"},
            {"recompute": "full", "recompute_blocks": 2},
            {"recompute": "full"},
        )
    )
    assert full < some < none and full < selective < none


def test_ranks_share_a_pack():
    alone, halves = estimate(), estimate(context=2)
    assert 0.45 < halves / alone < 0.6
    assert estimate(tensor=2) < estimate(tensor=2, sequence=False) < alone
    assert estimate(tokens=2 * TOKENS) / alone == pytest.approx(2, rel=0.2)


def test_earlier_stages_hold_more_packs():
    config = replace(CONFIG, num_blocks=8)
    held = [estimate(config=config, pipeline=4, rank=rank, world_size=4) for rank in range(4)]
    assert held == sorted(held, reverse=True) and held[1] > 2 * held[3]
    assert estimate(config=config, pipeline=4, world_size=4, packs=1) < held[0] / 2


@pytest.mark.parametrize(
    ("options", "rank", "packs", "order"),
    [
        ({}, 0, 2, "F0 B0 F0 B0"),
        ({"pipeline": 2}, 0, 3, "F0 F0 B0 F0 B0 B0"),
        ({"pipeline": 2}, 1, 2, "F0 B0 F0 B0"),
        ({"pipeline": 2, "virtual_pipeline": 2}, 1, 2, "F0 F0 F1 B1 F1 B1 B0 B0"),
        ({"pipeline": 2, "virtual_pipeline": 2}, 0, 2, "F0 F0 F1 F1 B1 B1 B0 B0"),
    ],
)
def test_passes_follow_the_schedule(options, rank, packs, order):
    dims = ParallelDims(precision="bf16", **options)
    with fake_grid(dims, rank, dims.model_size) as grid:
        found = passes(grid, packs)
    assert " ".join(("F" if is_forward else "B") + str(stage) for is_forward, stage in found) == order


def test_most_in_flight():
    stages = [PackMemory(kept=10, peak=15, buffer=0), PackMemory(kept=2, peak=3, buffer=0)]
    assert in_flight(stages, [(True, 0), (True, 0), (True, 1), (False, 1), (False, 0), (False, 0)]) == 25
