"""What packs on their way through a stage hold: run on the meta device, where memory is counted and nothing computed.

An estimate: kernels may hold workspace, and an allocator loses some to fragments. Shapes: L tokens of a pack, M those
of one context shard, l those of one shard of the stream, P values of a patch, D width.
"""

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed._tools.fake_collectives  # registers those of meta tensors
from megatron.core.pipeline_parallel.schedules import get_pp_rank_microbatches, get_schedule_table
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model.dit import DiTConfig, VideoDiT
from model.packed import PackedInputs
from parallel.dims import interleaving_group
from parallel.pipeline import weighted_error
from parallel.runtime import Grid
from parallel.stage import make_stage

TEXT_TOKENS = 512
"""Of a pack, as where one caption is padded for Wan."""
META = torch.device("meta")


@dataclass(frozen=True, kw_only=True)
class PackMemory:
    """Bytes of one pack in one stage, weights and their gradients apart."""

    kept: int
    """From the end of its forward pass to its backward pass."""
    peak: int
    """The most at any moment of the two."""
    buffer: int
    """What stays for the next pack to use: Megatron-core's buffer for the gathered stream."""


class Allocations(TorchDispatchMode):
    """Counts the bytes of what is made inside and still alive."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.peak = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return made

    def ignore(self, module: nn.Module) -> None:
        """Count nothing of a module's parameters."""
        self._sizes |= {parameter.untyped_storage()._cdata: 0 for parameter in module.parameters()}

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._sizes:
            return
        self._sizes[storage._cdata] = storage.nbytes()
        self.alive += storage.nbytes()
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._release, storage._cdata).atexit = False

    def _release(self, identity: int) -> None:
        self.alive -= self._sizes.pop(identity)


def activation_memory(grid: Grid, config: DiTConfig, *, tokens: int, packs: int) -> int:
    """The most that a step of `packs` packs of `tokens` tokens holds on this rank for packs in flight, in bytes.

    A pack is one clip. Needs bf16: only the attention of narrow types is known to keep no matrix of scores.
    """
    assert grid.dims.precision == "bf16"
    with _megatron_allocates_on(META), META:
        dit = make_stage(grid, config).to(grid.dims.dtype)
        stages = [pack_memory(dit, number, _inputs(dit, tokens)) for number in range(len(dit.stages))]
    # The first stage that needs a buffer makes it for all.
    return in_flight(stages, passes(grid, packs)) + sum(pack.buffer for pack in stages)


def pack_memory(dit: VideoDiT, number: int, inputs: PackedInputs) -> PackMemory:
    """Run a pack forward and backward through one of a module's stages, where the module is."""
    handles = [p.register_post_accumulate_grad_hook(_drop_gradient) for p in dit.parameters()]
    with Allocations() as made:
        made.ignore(dit)
        kept = _run(dit, number, inputs, made)
    for handle in handles:
        handle.remove()
    return PackMemory(kept=kept - made.alive, peak=made.peak - made.alive, buffer=made.alive)


def _run(dit: VideoDiT, number: int, inputs: PackedInputs, made: Allocations) -> int:
    """Both passes; returns what was alive between them."""
    part, parameter = dit.stages[number], next(dit.parameters())
    tensors: dict[str, Any] = {name: value.clone() for name, value in vars(inputs).items() if isinstance(value, Tensor)}
    inputs = replace(inputs, **tensors).to(parameter.device, parameter.dtype)
    del tensors
    received_lD = None
    if not part.has_input:
        length = len(dit.layers.scatter_sequence(inputs.row_L))
        received_lD = parameter.new_zeros(length, dit.config.dim).requires_grad_()
    output = dit(inputs, received_lD, stage=number)
    kept = made.alive
    if part.has_output:
        weighted_error(output, torch.zeros_like(output), output.new_ones(len(output))).backward()
    else:
        output.backward(torch.zeros_like(output))
    return kept


def passes(grid: Grid, packs: int) -> list[tuple[bool, int]]:
    """The passes of this rank in a step, in order: whether forward, and through which of its stages."""
    stages = grid.dims.virtual_pipeline
    if grid.pipeline_size == 1:
        return [(True, 0), (False, 0)] * packs
    group = interleaving_group(packs, grid.pipeline_size) if stages > 1 else packs
    _, _, warmup, _ = get_pp_rank_microbatches(packs, stages, group)
    forward = [stage for _, stage in get_schedule_table(packs, stages, group)]
    backward = [stages - 1 - stage for stage in forward]
    order = [(True, stage) for stage in forward[:warmup]]
    for there, back in zip(forward[warmup:], backward, strict=False):
        order += [(True, there), (False, back)]
    return order + [(False, stage) for stage in backward[len(forward) - warmup :]]


def in_flight(stages: Sequence[PackMemory], order: Sequence[tuple[bool, int]]) -> int:
    """The most bytes at any moment of these passes."""
    now = most = 0
    for is_forward, number in order:
        pack = stages[number]
        now -= 0 if is_forward else pack.kept
        most = max(most, now + pack.peak)
        now += pack.kept if is_forward else 0
    assert now == 0, "every pack comes back"
    return most


def _inputs(dit: VideoDiT, tokens: int) -> PackedInputs:
    config = dit.config
    return PackedInputs(
        patch_LP=torch.zeros(tokens, config.patch_values_in),
        position_L3=torch.zeros(tokens, 3, dtype=torch.int64),
        row_L=torch.zeros(tokens, dtype=torch.int64),
        segment_lengths=(tokens,),
        time_R=torch.zeros(1),
        is_condition_R=torch.zeros(1, dtype=torch.bool),
        text_KE=torch.zeros(TEXT_TOKENS, config.text_dim),
        text_lengths=(TEXT_TOKENS,),
    )


def _drop_gradient(parameter: Tensor) -> None:
    parameter.grad = None


@contextmanager
def _megatron_allocates_on(device: torch.device) -> Iterator[None]:
    """Megatron-core makes what it gathers into on torch's current GPU, whatever it gathers."""
    before = torch.cuda.current_device
    torch.cuda.current_device = lambda: device  # type: ignore[assignment, return-value]
    try:
        yield
    finally:
        torch.cuda.current_device = before
