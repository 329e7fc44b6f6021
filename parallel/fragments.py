"""Optimizer state as rectangles of logical tensors: out of, and back into, ZeRO's flat partitions.

ZeRO-1 and 2 lay the parameters of a group end to end, pad the end and cut the whole into equal partitions, one a
replica; ZeRO-3 cuts every parameter by itself; ZeRO-0 cuts nothing. So a parameter (a tensor rank's shard of one) lies
whole in one partition, is cut over several, or is copied on all. Light: importing it imports no engine, since `Piece`
is also what other savers hand out.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.shard import Shard, is_on_every_stage

if TYPE_CHECKING:
    from parallel.runtime import Grid
    from parallel.zero import Slot, ZeroOptimizer

Read = Callable[[str, str, tuple[int, ...], tuple[int, ...]], Tensor]
"""(kind, name, offset, shape) -> that rectangle of the logical tensor."""


@dataclass(frozen=True)
class Piece:
    """A rectangle of a logical tensor. `tensor` may be a view of live state: copy it before the next step."""

    kind: str
    name: str
    global_shape: tuple[int, ...]
    offset: tuple[int, ...]
    tensor: Tensor


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Which elements of a parameter each replica holds."""

    slot: "Slot"
    shard: Shard
    is_copied: bool
    """All replicas hold all of it."""
    is_written_here: bool
    """Whether this tensor rank and stage write it; others hold the same."""

    @property
    def name(self) -> str:
        return self.slot.name

    @property
    def numel(self) -> int:
        return prod(self.shard.shape)

    @property
    def holders(self) -> range:
        """The replicas that have to come together for all of it."""
        if self.is_copied:
            return range(1)
        return range(self.slot.shift // self.slot.chunk, (self.slot.shift + self.numel - 1) // self.slot.chunk + 1)

    def held_by(self, replica: int) -> tuple[int, int]:
        """Elements [first, end) of the parameter that a replica holds; empty where there are none."""
        if self.is_copied:
            return 0, self.numel
        base = replica * self.slot.chunk - self.slot.shift
        return min(max(base, 0), self.numel), min(max(base + self.slot.chunk, 0), self.numel)


class Fragments:
    """The parameters of a stage in the partitions of this replica."""

    def __init__(self, grid: "Grid", zero: "ZeroOptimizer") -> None:
        self.grid = grid
        self.places = list(_places(grid, zero))
        if zero.zero_stage in (1, 2):
            for place in self.places:
                _check_against_deepspeed(place, zero, grid.replica_rank)

    def pieces(self, kind: str, flats: list[Tensor]) -> Iterator[Piece]:
        """What this rank has to write of `flats` (laid out as the masters), each logical element once over all ranks.

        Collective over replicas: a parameter cut over partitions is put together on the first that holds some.
        """
        for place in self.places:
            if not place.is_written_here:
                continue
            local = self._local(place, flats)
            if len(place.holders) > 1:
                local = self._assemble(place, local)
            if place.holders[0] == self.grid.replica_rank:
                yield Piece(
                    kind, place.name, place.shard.global_shape, place.shard.offset, local.view(place.shard.shape)
                )

    def fill(self, kind: str, flats: list[Tensor], read: Read) -> None:
        """Set this rank's partitions from logical tensors; reads the rows it needs and no more."""
        for place in self.places:
            first, end = place.held_by(self.grid.replica_rank)
            if first == end:
                continue
            rows, row_numel = place.shard.shape[0], place.numel // place.shard.shape[0]
            first_row, end_row = first // row_numel, -(-end // row_numel)
            assert end_row <= rows
            offset = (place.shard.offset[0] + first_row, *place.shard.offset[1:])
            shape = (end_row - first_row, *place.shard.shape[1:])
            values = read(kind, place.name, offset, shape)
            assert tuple(values.shape) == shape, f"{kind} {place.name}: {tuple(values.shape)} instead of {shape}"
            skipped = first - first_row * row_numel
            self._local(place, flats).copy_(values.reshape(-1)[skipped : skipped + end - first])

    def _local(self, place: _Place, flats: list[Tensor]) -> Tensor:
        """The held elements of a parameter, as a view of its partition."""
        first, end = place.held_by(self.grid.replica_rank)
        start = place.slot.start if end > first else 0
        return flats[place.slot.flat].detach().view(-1).narrow(0, start, end - first)

    def _assemble(self, place: _Place, local: Tensor) -> Tensor:
        first, end = place.held_by(self.grid.replica_rank)
        # Added up as integers: every element is held once, and bits survive, minus zero and all.
        whole = torch.zeros(place.numel, dtype=torch.int32, device=local.device)
        whole[first:end] = local.view(torch.int32)
        dist.reduce(
            whole, dst=dist.get_global_rank(self.grid.replica_group, place.holders[0]), group=self.grid.replica_group
        )
        return whole.view(torch.float32)


def _places(grid: "Grid", zero: "ZeroOptimizer") -> Iterator[_Place]:
    for slot in zero.slots():
        is_alone = grid.is_first_stage or not is_on_every_stage(slot.name)
        yield _Place(
            slot=slot,
            shard=zero.shards[slot.name],
            is_copied=zero.zero_stage == 0,
            is_written_here=(slot.name in zero.sharded or grid.tensor_rank == 0) and is_alone,
        )


def _check_against_deepspeed(place: _Place, zero: "ZeroOptimizer", replica: int) -> None:
    """AssertionError where DeepSpeed's own record of its layout is another."""
    mapping = zero.named[place.name]._hp_mapping  # type: ignore[attr-defined]
    first, end = place.held_by(replica)
    assert (mapping is None) == (first == end), place
    if mapping is not None:
        in_parameter, in_partition = mapping.lp_fragment_address, mapping.hp_fragment_address
        assert (in_parameter.start, in_parameter.numel) == (first, end - first), place
        assert in_partition.start == place.slot.start, place
