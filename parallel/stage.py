"""The pipeline stage of this rank: which blocks, which shard of each weight, from which initial values."""

from collections.abc import Container, Mapping

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from model.dit import DiTConfig, Stage, VideoDiT
from model.init import initial_value
from parallel.legality import Workload, require_legal
from parallel.recompute import set_recompute
from parallel.runtime import Grid
from parallel.shard import is_on_every_stage, shard_of
from parallel.tensor import MegatronLayers

NAMES_SHOWN = 4
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def build_stage(grid: Grid, config: DiTConfig, *, seed: int) -> VideoDiT:
    """This rank's part of the DiT on its device, in float32, with the initial values of `seed`.

    Raises ValueError where the model cannot be split this way.
    """
    stage = make_stage(grid, config)
    with torch.no_grad():
        for name, parameter in stage.named_parameters():
            shard = shard_of(parameter, grid)
            parameter.copy_(shard.of(initial_value(name, shard.global_shape, seed, config.mup_base_dim)))
    return stage.to(grid.device)


def make_stage(grid: Grid, config: DiTConfig) -> VideoDiT:
    """As `build_stage`, on torch's default device and without the initial values."""
    work = Workload(num_heads=config.num_heads, ffn_dim=config.ffn_dim, num_blocks=config.num_blocks)
    require_legal(grid.dims, work, grid.world_size)
    stage = VideoDiT(config, layers=MegatronLayers(grid), stages=stages_of(grid, config.num_blocks))
    set_recompute(stage, grid.dims)
    return stage


def stages_of(grid: Grid, num_blocks: int) -> list[Stage]:
    """The stages of this pipeline rank: more than one where they are interleaved."""
    cuts = grid.dims.stages(num_blocks)
    mine = range(grid.pipeline_rank, len(cuts), grid.pipeline_size)
    return [Stage(*cuts[i], has_input=i == 0, has_output=i == len(cuts) - 1) for i in mine]


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
def check_replicas(grid: Grid, weights: Mapping[str, Tensor], sharded: Container[str], *, cut: bool = False) -> None:
    """Refuse weights that should be bit-equal over their copies and are not; collective over all ranks.

    Compares sums of the bits read as integers: over replicas for all parameters (unless these `cut` them up, as under
    ZeRO-3), over tensor ranks for those not `sharded`, and over stages for those on every stage.

    Raises:
        ValueError: on every rank, naming the parameters and the ranks whose copies are odd.
    """
    names = list(weights)
    bits = {n: w.detach().view(INTEGERS[w.element_size()]).sum(dtype=torch.int64) for n, w in weights.items()}
    copied = [
        ("replicas", grid.replica_group, [] if cut else names),
        ("tensor ranks", grid.tensor_group, [n for n in names if n not in sharded]),
        ("stages", grid.pipeline_group, [n for n in names if is_on_every_stage(n)]),
    ]
    problems = [_odd_copies(what, group, {n: bits[n] for n in chosen}) for what, group, chosen in copied]
    problem = next(filter(None, problems), None)
    if grid.any(problem is not None):
        raise ValueError(next(filter(None, grid.gather_objects(problem))))


def _odd_copies(what: str, group: ProcessGroup, bits: dict[str, Tensor]) -> str | None:
    """Which of some parameters differ within a group, and on which of its ranks; the same on all of them."""
    if group.size() == 1 or not bits:
        return None
    mine = torch.stack(list(bits.values()))
    everyone = [torch.empty_like(mine) for _ in range(group.size())]
    dist.all_gather(everyone, mine, group=group)
    copies = torch.stack(everyone)
    odd = copies != copies.mode(dim=0).values
    if not odd.any():
        return None
    named = [name for name, is_odd in zip(bits, odd.any(0).tolist(), strict=True) if is_odd]
    ranks = dist.get_process_group_ranks(group)
    odd_ranks = [rank for rank, is_odd in zip(ranks, odd.any(1).tolist(), strict=True) if is_odd]
    most_agree = bool((2 * odd.sum(0) < group.size()).all())
    whose = f"odd on ranks {odd_ranks}" if most_agree else "too few agree to tell which ranks are wrong"
    shown = ", ".join(named[:NAMES_SHOWN]) + (
        f" and {len(named) - NAMES_SHOWN} more" if len(named) > NAMES_SHOWN else ""
    )
    return (
        f"weights that have to be equal on the {what} {ranks} are not: {shown}; {whose}. Resume from a checkpoint "
        "before this, and look for a faulty device or link there"
    )
