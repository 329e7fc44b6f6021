"""The contract between the DiT and whoever shards it.

The model is written once against `Layers`. `DENSE` is the unsharded implementation; `parallel.tensor` holds the
Megatron-core one. Letters in shapes: L tokens of a pack, l = L / tensor_size tokens of one sequence shard (l = L
where nothing is sharded), F features, f = F / tensor_size features of one shard.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm


class Layers(Protocol):
    """What a DiT stage is built from. Every method returns something that works forward and backward.

    The residual stream between sublayers is `x_lD`: sharded over tokens when sequence parallelism is on.
    Gradients are complete when autograd ends: nothing has to be reduced over tensor ranks afterwards.
    """

    tensor_size: int

    def column_linear(self, in_features: int, out_features: int, *, gather_sequence: bool) -> nn.Module:
        """Linear with bias whose output features are sharded: `x_lF -> y_Lf`.

        With `gather_sequence` the input is the residual stream and is gathered over tokens first; without it
        the input is the same on all tensor ranks (the text) and may have any number of rows.
        """
        ...

    def row_linear(self, in_features: int, out_features: int) -> nn.Module:
        """Linear with bias whose input features are sharded: `x_Lf -> y_lF`, summed over shards."""
        ...

    def sharded_rms_norm(self, features: int, eps: float) -> nn.Module:
        """RMS norm over the full width `features` of a tensor `x_Lf` that holds one shard of it."""
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
        """Keep this rank's tokens: `x_L... -> x_l...`; backward gathers."""
        ...

    def gather_sequence(self, x: Tensor) -> Tensor:
        """Collect all tokens: `x_l... -> x_L...`.

        Backward keeps this rank's tokens: every rank computes the same loss.
        """
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


DENSE = DenseLayers()
