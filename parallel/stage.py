"""The pipeline stage of this rank: which blocks, which shard of each weight, from which initial values."""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from model.dit import DiTConfig, Stage, VideoDiT
from model.init import initial_value
from parallel.dims import split_blocks
from parallel.runtime import Grid
from parallel.shard import is_on_every_stage, is_sharded, shard_of
from parallel.tensor import MegatronLayers

INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def build_stage(grid: Grid, config: DiTConfig, *, seed: int) -> VideoDiT:
    """This rank's part of the DiT on its device, in float32, with the initial values of `seed`.

    Raises ValueError where the model cannot be split this way.
    """
    grid.dims.check_model(num_heads=config.num_heads, ffn_dim=config.ffn_dim, num_blocks=config.num_blocks)
    first, end = split_blocks(config.num_blocks, grid.pipeline_size)[grid.pipeline_rank]
    part = Stage(first, end, grid.is_first_stage, grid.is_last_stage)
    stage = VideoDiT(config, layers=MegatronLayers(grid), stage=part)
    with torch.no_grad():
        for name, parameter in stage.named_parameters():
            shard = shard_of(parameter, grid)
            parameter.copy_(shard.of(initial_value(name, shard.global_shape, seed)))
    return stage.to(grid.device)


@torch.no_grad()
def sum_over_stages(grid: Grid, gradients: list[Tensor]) -> None:
    """Sum, in place, the gradients of the parameters that every stage has a copy of."""
    if grid.pipeline_size == 1:
        return
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat, group=grid.pipeline_group)
    sums = flat.split([gradient.numel() for gradient in gradients])
    for gradient, total in zip(gradients, sums, strict=True):
        gradient.copy_(total.view_as(gradient))


@torch.no_grad()
def check_replicas(grid: Grid, stage: nn.Module) -> None:
    """Raise AssertionError naming the parameters that should be bit-equal over their replicas and are not.

    Collective. Compares sums of the bits read as integers: over data ranks for all parameters, over tensor ranks for
    the replicated ones and over stages for those on every stage.
    """
    named = list(stage.named_parameters())
    bits = [p.detach().view(INTEGERS[p.element_size()]).sum(dtype=torch.int64) for _, p in named]
    everywhere = [i for i, (name, _) in enumerate(named) if is_on_every_stage(name)]
    replicated = [i for i, (_, parameter) in enumerate(named) if not is_sharded(parameter)]
    rows = [(grid.data_group, list(range(len(named)))), (grid.tensor_group, replicated)]
    for group, chosen in [*rows, (grid.pipeline_group, everywhere)]:
        if group.size() == 1 or not chosen:
            continue
        wrong = _differing(torch.stack([bits[i] for i in chosen]), group)
        names = [named[chosen[i]][0] for i in wrong]
        assert not names, f"rank {grid.rank}: not equal over ranks {dist.get_process_group_ranks(group)}: {names}"


def _differing(values: Tensor, group: ProcessGroup) -> list[int]:
    low, high = values.clone(), values.clone()
    dist.all_reduce(low, op=dist.ReduceOp.MIN, group=group)
    dist.all_reduce(high, op=dist.ReduceOp.MAX, group=group)
    return (low != high).nonzero().flatten().tolist()
