"""Training loss by noise level and by bucket, added up on the device and summed over ranks only when it is told.

Shapes: L tokens of a pack, M those of one context shard, B buckets, V noise levels.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from model.packed import PackedInputs, on_device
from parallel.runtime import Grid
from parallel.tensor import context_shard
from trainer.batch import Microbatch


def bins_of(inputs: PackedInputs, buckets: Sequence[int], levels: int) -> Tensor:
    """The cell `[L]` of each token in a table of buckets x equal strata of the noise level.

    `buckets` are those of the pack's samples; a segment of padding, which carries no loss, is given the first.
    """
    level_R = (inputs.time_R * levels).long().clamp(0, levels - 1)
    padded = [*buckets, *[0] * (len(inputs.segment_lengths) - len(buckets))]
    bucket_L = torch.tensor(padded).repeat_interleave(torch.tensor(inputs.segment_lengths))
    return bucket_L * levels + level_R[inputs.row_L]


class LossTally:
    """The table, over the steps since it was told last."""

    def __init__(self, grid: Grid, buckets: Sequence[str], levels: int) -> None:
        """`buckets` are those of the whole data set, in one order on all ranks."""
        self.grid, self.buckets, self.levels = grid, tuple(buckets), levels
        self._number = {name: number for number, name in enumerate(buckets)}
        self._sums = torch.zeros(2, len(self.buckets) * levels, dtype=torch.float64, device=grid.device)

    def add(self, pack: Microbatch, error_M: Tensor, weight_M: Tensor) -> None:
        """The mean squared error of each token of this context shard, and its weight in the loss."""
        bins_L = bins_of(pack.inputs, [self._number[name] for name in pack.buckets], self.levels)
        bins_M = on_device(context_shard(bins_L, self.grid.context_rank, self.grid.context_size), error_M.device)
        both = torch.stack([error_M * weight_M, weight_M]).double()
        self._sums.index_add_(1, bins_M, both)

    def row(self) -> dict[str, float]:
        """Mean loss by level and by bucket, where any token had a weight; then it begins anew. Collective."""
        # The tensor ranks of a last stage all hold the same, and other stages nothing.
        sums = self.grid.sum_over_ranks(self._sums if self.grid.tensor_rank == 0 else torch.zeros_like(self._sums))
        self._sums.zero_()
        error_BV, weight_BV = sums.cpu().view(2, len(self.buckets), self.levels)
        edges = [number / self.levels for number in range(self.levels + 1)]
        names = [f"loss_t{(low + high) / 2:g}" for low, high in pairwise(edges)]
        row = _means(names, error_BV.sum(0), weight_BV.sum(0))
        return row | _means([f"loss_bucket/{name}" for name in self.buckets], error_BV.sum(1), weight_BV.sum(1))


def _means(names: Sequence[str], errors: Tensor, weights: Tensor) -> dict[str, float]:
    rows = zip(names, errors.tolist(), weights.tolist(), strict=True)
    return {name: error / weight for name, error, weight in rows if weight}
