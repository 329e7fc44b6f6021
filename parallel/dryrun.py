"""A layout tried out in one process, at any world size: every distinct stage is built, without memory or peers.

Process groups are torch's fake ones, in which nothing travels; weights are on the meta device.
"""

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from math import prod

import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from model.dit import DiTConfig, Stage, VideoDiT
from model.flops import parameter_count
from parallel.activations import activation_memory
from parallel.dims import ParallelDims
from parallel.legality import Workload, require_legal
from parallel.memory import Groups, Memory, lasting_memory, passing_memory, start_memory
from parallel.optim import AdamWConfig, parameter_groups
from parallel.runtime import Grid
from parallel.shard import Shard, is_on_every_stage, is_sharded, shard_of
from parallel.stage import make_stage, stages_of

FILLED_PIPELINE = 4
"""Packs of a replica for each pipeline rank where the number is not known: more are never in flight."""


@dataclass(frozen=True, kw_only=True)
class RankParameters:
    """Parameters that one rank of a stage holds, under ZeRO-3 while they are gathered."""

    blocks: int
    conditioning: int
    """On every stage."""
    ends: int
    """Patch embedding and head."""
    sharded: int
    """Of all of these, those of which each tensor rank has another part."""

    @property
    def total(self) -> int:
        return self.blocks + self.conditioning + self.ends

    @property
    def replicated(self) -> int:
        """Those that tensor ranks hold a copy each of."""
        return self.total - self.sharded


@dataclass(frozen=True, kw_only=True)
class RankReport:
    """The ranks of one place in the pipeline, which are all alike."""

    first_rank: int
    last_rank: int
    stages: tuple[Stage, ...]
    parameters: RankParameters
    lasting: Memory
    """Of the replica that holds most."""
    passing: dict[str, int]
    start: int
    activations: int | None
    """Estimate of what the packs in flight hold; None where pack sizes are not given, or in float32."""

    @property
    def total(self) -> int:
        """Bytes at the height of a step."""
        return self.lasting.total + (self.activations or 0)


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """A layout and all its distinct ranks."""

    dims: ParallelDims
    world_size: int
    parameters: int
    """Of the model: every one was found, once, in the shards of one replica."""
    ranks: tuple[RankReport, ...]
    message_bytes: int | None
    """Of one pack from one stage to the next; None without a pipeline or a pack size."""

    @property
    def fullest(self) -> RankReport:
        return max(self.ranks, key=lambda rank: rank.total)


def dry_run(
    dims: ParallelDims,
    config: DiTConfig,
    *,
    world_size: int,
    tokens_per_pack: int | None = None,
    packs_per_step: int | None = None,
) -> DryRun:
    """Build every distinct stage of a layout and count what its ranks hold.

    Raises ValueError for an illegal layout, before anything is built. There must be no process group yet.
    """
    work = Workload(
        num_heads=config.num_heads,
        ffn_dim=config.ffn_dim,
        num_blocks=config.num_blocks,
        tokens_per_pack=tokens_per_pack,
        packs_per_step=packs_per_step,
    )
    dims = require_legal(dims, work, world_size)
    reports, found = [], dict[str, tuple[int, ...]]()
    for place in range(dims.pipeline):
        report, shapes = _try_place(place, dims, config, work, world_size)
        assert all(is_on_every_stage(name) for name in shapes.keys() & found.keys()), "a parameter is on two stages"
        reports.append(report)
        found |= shapes
    return DryRun(
        dims=dims,
        world_size=world_size,
        parameters=_require_whole(found, config),
        ranks=tuple(reports),
        message_bytes=_message_bytes(dims, config, work),
    )


@contextmanager
def fake_grid(dims: ParallelDims, rank: int, world_size: int) -> Iterator[Grid]:
    """The grid as one rank of many sees it, in which no message goes anywhere."""
    assert not dist.is_initialized(), "a dry run has no peers"
    was_settled = gc.get_freeze_count() > 0
    if not was_settled:
        gc.freeze()  # a grid that closes has garbage collected: only what came since is looked through
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
    try:
        grid = Grid(dims)
        try:
            yield grid
        finally:
            grid.close()
    finally:
        dist.destroy_process_group()
        if not was_settled:
            gc.unfreeze()


@dataclass(frozen=True)
class _HeldShard(Shard):
    """A shard, and whether other tensor ranks hold other ones."""

    is_sharded: bool


def _shards(grid: Grid, config: DiTConfig) -> dict[str, _HeldShard]:
    """What this rank holds of each parameter of its stages."""
    with torch.device("meta"):
        stage = make_stage(grid, config)
    named = dict(stage.named_parameters())
    return {name: _HeldShard(**vars(shard_of(p, grid)), is_sharded=is_sharded(p)) for name, p in named.items()}


def _try_place(
    place: int, dims: ParallelDims, config: DiTConfig, work: Workload, world_size: int
) -> tuple[RankReport, dict[str, tuple[int, ...]]]:
    """Build the first and the last rank of one place in the pipeline; also the logical shapes of what is there."""
    ranks = world_size // dims.pipeline
    first, last = place * ranks, (place + 1) * ranks - 1
    with fake_grid(dims, last, world_size) as grid:
        shapes = {name: shard.shape for name, shard in _shards(grid, config).items()}
    with fake_grid(dims, first, world_size) as grid:
        shards = _shards(grid, config)
        assert grid.pipeline_rank == place and {name: shard.shape for name, shard in shards.items()} == shapes
        groups = optimizer_groups(shards, config.width_factor)
        replicas = [lasting_memory(groups, grid.dims, replica=replica) for replica in range(grid.replica_size)]
        report = RankReport(
            first_rank=first,
            last_rank=last,
            stages=tuple(stages_of(grid, config.num_blocks)),
            parameters=_count(shards),
            lasting=max(replicas, key=lambda memory: memory.total),
            passing=passing_memory(groups, grid.dims),
            start=start_memory(groups, grid.dims),
            activations=_activations(grid, config, work),
        )
    return report, {name: shard.global_shape for name, shard in shards.items()}


def optimizer_groups(shards: Mapping[str, Shard], width_factor: float = 1.0) -> Groups:
    """Elements of the parameters of each group, as `parallel.zero` makes them."""
    shapes = {name: shard.global_shape for name, shard in shards.items()}
    return [
        [tuple(prod(shards[name].shape) for name in names) for _, names in groupby(group.names, _applied_as)]
        for group in parameter_groups(AdamWConfig(), shapes, width_factor)
    ]


def _applied_as(name: str) -> str:
    """The tensor that a parameter is a part of where `model.attention` projects: query, key and value, or the last two.

    A gradient then is a part of one of that tensor.
    """
    layer, _, kind = name.rpartition(".")
    attention, _, projection = layer.rpartition(".")
    together = ("key", "value") if attention.endswith(".cross_attention") else ("query", "key", "value")
    return f"{attention}.{kind}" if attention and projection in together else name


def _count(shards: Mapping[str, _HeldShard]) -> RankParameters:
    sizes = {name: prod(shard.shape) for name, shard in shards.items()}
    blocks = sum(size for name, size in sizes.items() if name.startswith("blocks."))
    conditioning = sum(size for name, size in sizes.items() if is_on_every_stage(name))
    return RankParameters(
        blocks=blocks,
        conditioning=conditioning,
        ends=sum(sizes.values()) - blocks - conditioning,
        sharded=sum(sizes[name] for name, shard in shards.items() if shard.is_sharded),
    )


def _require_whole(found: Mapping[str, tuple[int, ...]], config: DiTConfig) -> int:
    """Parameters of the model; AssertionError where the stages together are not the model on one device."""
    with torch.device("meta"):
        dense = {name: tuple(p.shape) for name, p in VideoDiT(config).named_parameters()}
    assert found == dense, f"parameters that differ: {sorted(set(found.items()) ^ set(dense.items()))[:4]}"
    total = sum(map(prod, found.values()))
    assert total == parameter_count(config).total, f"{total} parameters, not {parameter_count(config).total}"
    return total


def _activations(grid: Grid, config: DiTConfig, work: Workload) -> int | None:
    if work.tokens_per_pack is None or grid.dims.precision != "bf16":
        return None
    packs = FILLED_PIPELINE * grid.pipeline_size
    if work.packs_per_step is not None:
        packs = work.packs_per_step // grid.data_size
    return activation_memory(grid, config, tokens=work.tokens_per_pack, packs=packs)


def _message_bytes(dims: ParallelDims, config: DiTConfig, work: Workload) -> int | None:
    if work.tokens_per_pack is None or dims.pipeline == 1:
        return None
    return work.tokens_per_pack // dims.stream_shards * config.dim * dims.dtype.itemsize
