"""Optimizer state as rectangles of logical tensors: out of, and back into, ZeRO's flat partitions.

ZeRO lays the parameters of a group end to end, pads the end and cuts the whole into equal partitions, one a data
rank. So a parameter (a tensor rank's shard of one) lies whole in one partition or is cut over several. Light: importing
it imports no engine, since `Piece` is also what other savers hand out.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.shard import Shard, is_on_every_stage, is_sharded, shard_of

if TYPE_CHECKING:
    from parallel.runtime import Grid
    from parallel.zero import ZeroOptimizer

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
    """Where a parameter lies in the flat tensor of its group."""

    name: str
    group: int
    shard: Shard
    start: int
    numel: int
    partition_numel: int
    is_written_here: bool
    """Whether this tensor rank and stage write it; other replicas hold the same."""

    @property
    def holders(self) -> range:
        """The data ranks whose partitions hold some of it."""
        return range(self.start // self.partition_numel, (self.start + self.numel - 1) // self.partition_numel + 1)

    def held_by(self, data_rank: int) -> tuple[int, int]:
        """Elements [first, end) of the parameter in the partition of `data_rank`; empty where there are none."""
        base = data_rank * self.partition_numel
        first = min(max(base - self.start, 0), self.numel)
        end = min(max(base + self.partition_numel - self.start, 0), self.numel)
        return first, end


class Fragments:
    """The parameters of a stage in the partitions of this data rank."""

    def __init__(self, grid: "Grid", zero: "ZeroOptimizer") -> None:
        self.grid = grid
        self.places = list(_places(grid, zero))
        for place in self.places:
            _check_against_deepspeed(place, zero, grid.data_rank)

    def pieces(self, kind: str, flats: list[Tensor]) -> Iterator[Piece]:
        """What this rank has to write of `flats` (one tensor a group), each logical element once over all ranks.

        Collective over data ranks: a parameter cut over partitions is put together on the first that holds some.
        """
        for place in self.places:
            if not place.is_written_here:
                continue
            local = self._local(place, flats)
            if len(place.holders) > 1:
                local = self._assemble(place, local)
            if place.holders[0] == self.grid.data_rank:
                yield Piece(
                    kind, place.name, place.shard.global_shape, place.shard.offset, local.view(place.shard.shape)
                )

    def fill(self, kind: str, flats: list[Tensor], read: Read) -> None:
        """Set this rank's partitions from logical tensors; reads the rows it needs and no more."""
        for place in self.places:
            first, end = place.held_by(self.grid.data_rank)
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
        first, end = place.held_by(self.grid.data_rank)
        base = place.start + first - self.grid.data_rank * place.partition_numel
        return flats[place.group].detach().narrow(0, base if end > first else 0, end - first)

    def _assemble(self, place: _Place, local: Tensor) -> Tensor:
        first, end = place.held_by(self.grid.data_rank)
        # Added up as integers: every element is held once, and bits survive, minus zero and all.
        whole = torch.zeros(place.numel, dtype=torch.int32, device=local.device)
        whole[first:end] = local.view(torch.int32)
        dist.reduce(whole, dst=dist.get_global_rank(self.grid.data_group, place.holders[0]), group=self.grid.data_group)
        return whole.view(torch.float32)


def _places(grid: "Grid", zero: "ZeroOptimizer") -> Iterator[_Place]:
    names = {id(parameter): name for name, parameter in zero.named.items()}
    for index, (group, master) in enumerate(zip(zero.groups, zero.masters, strict=True)):
        start = 0
        for parameter in group:
            name = names[id(parameter)]
            yield _Place(
                name=name,
                group=index,
                shard=shard_of(parameter, grid),
                start=start,
                numel=parameter.numel(),
                partition_numel=master.numel(),
                is_written_here=(is_sharded(parameter) or grid.tensor_rank == 0)
                and (grid.is_first_stage or not is_on_every_stage(name)),
            )
            start += parameter.numel()


def _check_against_deepspeed(place: _Place, zero: "ZeroOptimizer", data_rank: int) -> None:
    """AssertionError where DeepSpeed's own record of its layout is another."""
    mapping = zero.named[place.name]._hp_mapping  # type: ignore[attr-defined]
    first, end = place.held_by(data_rank)
    assert (mapping is None) == (first == end), place
    if mapping is not None:
        in_parameter, in_partition = mapping.lp_fragment_address, mapping.hp_fragment_address
        assert (in_parameter.start, in_parameter.numel) == (first, end - first), place
        assert in_partition.start == place.start + first - data_rank * place.partition_numel, place
