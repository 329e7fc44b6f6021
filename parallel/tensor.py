"""The DiT's layers over tensor ranks, from Megatron-core's linear layers.

Shapes: L tokens of a pack, M = L / context_size those of one context shard, l those of one shard of the stream
(M / tensor_size with sequence parallelism, else M), F features, f = F / tensor_size of one tensor shard, H heads of one
tensor shard, h = H / context_size, d features of a head.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, cast

import torch
import torch.distributed as dist
from einops import rearrange
from megatron.core import ModelParallelConfig
from megatron.core.tensor_parallel.layers import (
    ColumnParallelLinear,
    RowParallelLinear,
    linear_with_grad_accumulation_and_async_allreduce,
)
from megatron.core.tensor_parallel.mappings import (
    all_to_all,
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
    scatter_to_sequence_parallel_region,
)
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from parallel.runtime import Grid
from parallel.shard import mark_sharded


class _SumGradient(torch.autograd.Function):
    """Identity; the gradient is summed over a group.

    Megatron's `copy_to_tensor_model_parallel_region` reduces the incoming gradient in place, which spoils it for
    other readers where it is shared and (0.16) loses the sum where it is not contiguous. This one sums a copy.
    """

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _sum(gradient, ctx.group), None


class _SumBothWays(torch.autograd.Function):
    """Sum over a group, of a tensor that every rank of it then uses on a shard of its own."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        return _sum(tensor, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _sum(gradient, ctx.group), None


def _sum(tensor: Tensor, group: ProcessGroup) -> Tensor:
    total = tensor.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=group)
    return total


class ColumnLinear(ColumnParallelLinear):
    """Megatron's layer, returning the output alone."""

    def forward(self, x: Tensor) -> Tensor:
        output, _ = super().forward(x)
        return output


class _ShareOfBias(torch.autograd.Function):
    """`bias / ranks`, to be summed over the ranks; each of them sees the gradient of the sum, which is the bias's."""

    @staticmethod
    def forward(ctx: Any, bias: Tensor, ranks: int) -> Tensor:
        return bias / ranks

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class RowLinear(RowParallelLinear):
    """Megatron's layer, except that the bias goes in before the sum over ranks, a share on each.

    After the sum each rank would add it to its own tokens only, and its gradient would need a reduction of its own.
    """

    def forward(self, x_Lf: Tensor) -> Tensor:
        partial_LF = linear_with_grad_accumulation_and_async_allreduce(
            x_Lf,
            self.weight,
            _ShareOfBias.apply(self.bias, self.tp_group.size()),
            gradient_accumulation_fusion=False,
            allreduce_dgrad=False,
            sequence_parallel=False,
            tp_group=self.tp_group,
        )
        if self.sequence_parallel:
            return reduce_scatter_to_sequence_parallel_region(partial_LF, group=self.tp_group)
        return reduce_from_tensor_model_parallel_region(partial_LF, group=self.tp_group)


class ShardedRMSNorm(nn.Module):
    """RMS norm over the full width of a tensor `x_Lf` of which this rank holds some features."""

    def __init__(self, features: int, eps: float, group: ProcessGroup) -> None:
        super().__init__()
        self.features, self.eps, self.group = features, eps, group
        self.weight = nn.Parameter(torch.ones(features // group.size()))
        mark_sharded(self.weight, 0)

    def forward(self, x_Lf: Tensor) -> Tensor:
        return _rms_norms([self], [x_Lf])[0]


def _rms_norms(norms: Sequence[ShardedRMSNorm], tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Each norm of its own tensor; the sums of squares of all travel together."""
    wide = [x_Lf if x_Lf.dtype == torch.float64 else x_Lf.float() for x_Lf in tensors]
    squares_N1 = torch.cat([x_Lf.square().sum(-1, keepdim=True) for x_Lf in wide])
    if norms[0].group.size() > 1:
        squares_N1 = _SumBothWays.apply(squares_N1, norms[0].group)
    squares = squares_N1.split([len(x_Lf) for x_Lf in tensors])
    return tuple(
        (x_Lf * torch.rsqrt(square_L1 / norm.features + norm.eps)).to(norm.weight.dtype) * norm.weight
        for norm, x_Lf, square_L1 in zip(norms, wide, squares, strict=True)
    )


class MegatronLayers:
    """`model.layers.Layers` over the tensor and context ranks of a grid."""

    def __init__(self, grid: Grid) -> None:
        self.group = grid.tensor_group
        self.tensor_size = grid.tensor_size
        self.shards_sequence = grid.dims.shards_sequence
        self.context_group = grid.context_group
        self.context_rank, self.context_size = grid.context_rank, grid.context_size

    def _options(self, *, sequence: bool) -> dict[str, Any]:
        config = ModelParallelConfig(
            tensor_model_parallel_size=self.tensor_size,
            sequence_parallel=sequence,
            use_cpu_initialization=True,
            perform_initialization=False,
            params_dtype=torch.get_default_dtype(),
            gradient_accumulation_fusion=False,
        )
        return {"config": config, "init_method": nn.init.zeros_, "bias": True, "tp_group": self.group}

    def column_linear(self, in_features: int, out_features: int, *, gather_sequence: bool) -> nn.Module:
        options = self._options(sequence=self.shards_sequence and gather_sequence)
        layer = ColumnLinear(in_features, out_features, gather_output=False, **options)
        for parameter in (layer.weight, layer.bias):
            mark_sharded(parameter, 0)
        return layer

    def row_linear(self, in_features: int, out_features: int) -> nn.Module:
        options = self._options(sequence=self.shards_sequence)
        layer = RowLinear(in_features, out_features, input_is_parallel=True, skip_bias_add=True, **options)
        mark_sharded(layer.weight, 1)
        return layer

    def sharded_rms_norm(self, features: int, eps: float) -> nn.Module:
        return ShardedRMSNorm(features, eps, self.group)

    def project(self, x: Tensor, columns: Sequence[nn.Module]) -> tuple[Tensor, ...]:
        # Their weights end to end are one column linear: one gather, one matmul, one reduction of the gradient.
        linears = cast(Sequence[ColumnLinear], columns)
        output = linear_with_grad_accumulation_and_async_allreduce(
            x,
            torch.cat([linear.weight for linear in linears]),
            torch.cat([linear.bias for linear in linears]),
            gradient_accumulation_fusion=False,
            allreduce_dgrad=linears[0].allreduce_dgrad,
            sequence_parallel=linears[0].sequence_parallel,
            tp_group=self.group,
        )
        return output.split([len(linear.bias) for linear in linears], dim=-1)

    def normalise(self, norms: Sequence[nn.Module], tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return _rms_norms(cast(Sequence[ShardedRMSNorm], norms), tensors)

    def replicated(self, tensor: Tensor) -> Tensor:
        return _SumGradient.apply(tensor, self.group) if self.shards_sequence else tensor

    def scatter_sequence(self, x: Tensor) -> Tensor:
        here = context_shard(x, self.context_rank, self.context_size)
        return scatter_to_sequence_parallel_region(here, group=self.group) if self.shards_sequence else here

    def gather_sequence(self, x: Tensor) -> Tensor:
        if not self.shards_sequence:
            return x
        # All ranks compute the same loss from the gathered tensor: each keeps its slice, nothing is summed.
        return gather_from_sequence_parallel_region(x, tensor_parallel_output_grad=False, group=self.group)

    def gather_tokens(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        if self.context_size == 1:
            return tuple(tensors)
        # All of them in one message: `[M, N, (rank h), d]`, of which each rank is sent its heads.
        stacked = torch.stack(list(tensors), dim=1)
        sent = rearrange(stacked, "M N (rank h) d -> (rank M) N h d", rank=self.context_size)
        return all_to_all(self.context_group, sent).unbind(1)

    def gather_heads(self, x: Tensor) -> Tensor:
        if self.context_size == 1:
            return x
        received = all_to_all(self.context_group, x)
        return rearrange(received, "(rank M) h d -> M (rank h) d", rank=self.context_size)

    def local_lengths(self, lengths: tuple[int, ...]) -> tuple[int, ...]:
        shard = sum(lengths) // self.context_size
        first = self.context_rank * shard
        ends = [min(max(end - first, 0), shard) for end in accumulate(lengths)]
        return tuple(end - start for start, end in zip([0, *ends[:-1]], ends, strict=True))


def context_shard(x: Tensor, context_rank: int, context_size: int) -> Tensor:
    """The rows of `x_L...` that belong to a context rank: `x_M...`."""
    shard = len(x) // context_size
    return x.narrow(0, context_rank * shard, shard)
