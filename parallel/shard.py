"""Which part of a logical parameter a rank holds. Light: it imports no engine."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from parallel.runtime import Grid

EVERY_STAGE = "conditioning."
"""Parameters under this name are on every stage: the same values, gradients that have to be summed."""


@dataclass(frozen=True)
class Shard:
    """The rectangle of a logical parameter that a tensor rank holds."""

    global_shape: tuple[int, ...]
    offset: tuple[int, ...]
    shape: tuple[int, ...]

    def of(self, logical: Tensor) -> Tensor:
        """Cut the rectangle out of the whole tensor."""
        assert tuple(logical.shape) == self.global_shape
        return logical[tuple(slice(o, o + n) for o, n in zip(self.offset, self.shape, strict=True))]


def shard_of(parameter: nn.Parameter, grid: "Grid") -> Shard:
    """Where a parameter made by `MegatronLayers` (or by plain torch: then it is whole) lies in the logical one."""
    shape = tuple(parameter.shape)
    offset, global_shape = [0] * len(shape), list(shape)
    if is_sharded(parameter):
        dim = parameter.partition_dim  # type: ignore[attr-defined]
        offset[dim] = shape[dim] * grid.tensor_rank
        global_shape[dim] = shape[dim] * grid.tensor_size
    return Shard(tuple(global_shape), tuple(offset), shape)


def is_sharded(parameter: nn.Parameter) -> bool:
    """Whether the tensor ranks hold different parts of it, rather than a copy each."""
    return getattr(parameter, "tensor_model_parallel", False)


def mark_sharded(parameter: nn.Parameter, dim: int) -> None:
    """Say that the tensor ranks split this parameter along `dim`."""
    # Under the names that Megatron-core and DeepSpeed's gradient norm look for.
    parameter.tensor_model_parallel = True  # type: ignore[attr-defined]
    parameter.partition_dim = dim  # type: ignore[attr-defined]


def is_on_every_stage(name: str) -> bool:
    """Whether each pipeline stage has a copy of this parameter."""
    return name.startswith(EVERY_STAGE)
