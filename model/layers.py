"""The contract between the DiT and whoever shards it.

The model is written once against `Layers`. `DENSE` is the unsharded implementation; `parallel.tensor` holds the
Megatron-core one. Letters in shapes: L tokens of a pack, M those of one context shard, l those of one shard of the
residual stream (l = M unless the tensor ranks share it too; all are L where nothing is sharded), F features, f those
of one tensor shard, H heads of one tensor shard, d features of a head.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm


class Layers(Protocol):
    """What a DiT stage is built from. Every method returns something that works forward and backward.

    The residual stream between sublayers is `x_lD`: sharded over tokens when sequence or context parallelism is on.
    Gradients are complete over tensor ranks when autograd ends: nothing has to be reduced over them afterwards. Ranks
    of a context group are replicas that see other tokens: their gradients are summed with those of the data ranks.
    """

    tensor_size: int

    def column_linear(self, in_features: int, out_features: int, *, gather_sequence: bool) -> nn.Module:
        """Linear with bias whose output features are sharded: `x_lF -> y_Mf`.

        With `gather_sequence` the input is the residual stream and is gathered over tensor ranks first; without it
        the input is the same on all tensor ranks (the text) and may have any number of rows.
        """
        ...

    def row_linear(self, in_features: int, out_features: int) -> nn.Module:
        """Linear with bias whose input features are sharded: `x_Mf -> y_lF`, summed over shards."""
        ...

    def sharded_rms_norm(self, features: int, eps: float) -> nn.Module:
        """RMS norm over the full width `features` of a tensor `x_Mf` that holds one shard of it."""
        ...

    def project(self, x: Tensor, columns: Sequence[nn.Module]) -> tuple[Tensor, ...]:
        """Apply several column linears to the same input, which is gathered once for all of them."""
        ...

    def normalise(self, norms: Sequence[nn.Module], tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Apply each sharded norm to its own tensor, with one sum over shards for all of them."""
        ...

    def replicated(self, tensor: Tensor) -> Tensor:
        """Mark the entry of a replicated tensor (norm weight, bias, modulation) into the residual stream.

        Identity forward; backward sums the gradient over the ranks that each saw a shard of the sequence.
        """
        ...

    def scatter_sequence(self, x: Tensor) -> Tensor:
        """Keep this rank's tokens of what needs no gradient: `x_L... -> x_l...`."""
        ...

    def gather_sequence(self, x: Tensor) -> Tensor:
        """Collect the tokens of this context shard: `x_l... -> x_M...`.

        Backward keeps this rank's tokens: every tensor rank computes the same loss.
        """
        ...

    def gather_tokens(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """All tokens of a share of the heads, for all tokens' share: `x_MHd -> x_L(H / context)d` (Ulysses)."""
        ...

    def gather_heads(self, x: Tensor) -> Tensor:
        """The way back: `x_L(H / context)d -> x_MHd`."""
        ...

    def local_lengths(self, lengths: tuple[int, ...]) -> tuple[int, ...]:
        """How many tokens of each segment lie in this context shard; they sum to M."""
        ...


class FullWidthRMSNorm(nn.Module):
    """RMS norm over the last dimension (Zhang and Sennrich 2019, eq. 4); narrow types are squared in float32."""

    def __init__(self, features: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(features))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight.shape, self.weight, self.eps)


class DenseLayers:
    """`Layers` on one device: nothing is sharded."""

    tensor_size = 1

    def column_linear(self, in_features: int, out_features: int, *, gather_sequence: bool) -> nn.Module:
        return nn.Linear(in_features, out_features)

    def row_linear(self, in_features: int, out_features: int) -> nn.Module:
        return nn.Linear(in_features, out_features)

    def sharded_rms_norm(self, features: int, eps: float) -> nn.Module:
        return FullWidthRMSNorm(features, eps)

    def project(self, x: Tensor, columns: Sequence[nn.Module]) -> tuple[Tensor, ...]:
        return tuple(column(x) for column in columns)

    def normalise(self, norms: Sequence[nn.Module], tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return tuple(norm(x) for norm, x in zip(norms, tensors, strict=True))

    def replicated(self, tensor: Tensor) -> Tensor:
        return tensor

    def scatter_sequence(self, x: Tensor) -> Tensor:
        return x

    def gather_sequence(self, x: Tensor) -> Tensor:
        return x

    def gather_tokens(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return tuple(tensors)

    def gather_heads(self, x: Tensor) -> Tensor:
        return x

    def local_lengths(self, lengths: tuple[int, ...]) -> tuple[int, ...]:
        return lengths


DENSE = DenseLayers()
