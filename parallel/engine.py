"""One training step of a stage, whatever the layout: schedule, complete gradients, update, average."""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from model.dit import VideoDiT
from model.packed import PackedInputs
from parallel.fragments import Fragments, Piece, Read
from parallel.optim import AdamWConfig
from parallel.pipeline import Microbatch, Pipeline, Watch
from parallel.runtime import Grid
from parallel.shard import is_on_every_stage
from parallel.stage import check_replicas, sum_over_stages
from parallel.zero import ZeroOptimizer

KINDS = ("master", "exp_avg", "exp_avg_sq", "ema")


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What a step did; the same on every rank."""

    loss: float
    """Weighted mean over the tokens of the global batch."""
    grad_norm: float
    """Global norm before clipping; not finite where the step was skipped."""
    skipped: bool
    """Loss or norm were not finite, or no token carried loss: nothing was updated."""


class TrainEngine:
    """Trains one stage of a DiT together with the other ranks of its grid. Every method is collective."""

    def __init__(self, grid: Grid, stage: VideoDiT, optim: AdamWConfig) -> None:
        """`stage` comes from `build_stage`, in float32; it runs in the precision of the grid's dims."""
        initial = {name: parameter.detach().clone() for name, parameter in stage.named_parameters()}
        self.grid, self.stage = grid, stage.to(grid.dims.dtype)
        self._pipeline = Pipeline(grid, stage)
        self._zero = ZeroOptimizer(grid, stage, optim)
        check_replicas(grid, initial, self._zero.sharded)
        self._fragments = Fragments(grid, self._zero)
        if grid.dims.dtype == torch.float32 and grid.dims.zero_stage < 3:
            changed = [name for name, p in stage.named_parameters() if not torch.equal(p, initial[name])]
            assert not changed, f"DeepSpeed changed the weights of rank {grid.rank}: {changed}"
        else:
            self._restore_masters(initial)
        self._ema = [master.detach().clone() for master in self._zero.masters]

    def step(self, microbatches: Sequence[Microbatch], *, lr: float) -> StepResult:
        """Forward and backward over this data rank's packs, then one update with learning rate `lr`.

        The loss is the sum over tokens of weight times squared error (mean over a patch's values), divided by the sum
        of the weights of the global batch. All data ranks give the same number of packs, all of one length.
        """
        local = sum((pack.weight_L.sum(dtype=torch.float64) for pack in microbatches), torch.zeros(()).double())
        weight = float(self.grid.sum_over_data(local))
        if weight == 0:
            return StepResult(loss=0.0, grad_norm=0.0, skipped=True)
        # DeepSpeed averages over the replicas; the factor makes that a sum.
        share, gradients = self._accumulate(microbatches, scale=self.grid.replica_size / weight)
        loss, is_finite = self._agree(share / self.grid.replica_size, list(gradients.values()))
        if not is_finite:
            self._zero.drop_gradients()
            return StepResult(loss=loss, grad_norm=math.nan, skipped=True)
        norm = self._zero.step(lr)
        return StepResult(loss=loss, grad_norm=norm, skipped=not math.isfinite(norm))

    def _accumulate(self, microbatches: Sequence[Microbatch], *, scale: float) -> tuple[float, dict[str, Tensor]]:
        """Add up the gradients of `scale` times the loss over this replica's share; no update.

        Returns that share of the loss, and the gradients DeepSpeed will reduce over the replicas: complete over tensor
        ranks and stages. There are none under ZeRO-2 and 3, which reduce them as they come.
        """
        if self._zero.drives_backward:
            return self._through_deepspeed(microbatches, scale), {}
        share = self._pipeline.forward_backward(microbatches, scale=scale)
        gradients = {name: self._zero.gradient(name) for name in self._zero.named}
        sum_over_stages(self.grid, [g for name, g in gradients.items() if is_on_every_stage(name)])
        return share, gradients

    def watch(self, watch: Watch) -> None:
        """Have the errors of all tokens trained on from now on looked at, on the last stage; it must not wait."""
        self._pipeline.watch = watch

    def predict(self, inputs: Sequence[PackedInputs]) -> list[Tensor]:
        """Predictions `[L, P]` without gradients, on every rank that holds this copy of the model."""
        return self._pipeline.predict(inputs)

    @property
    def adam_steps(self) -> int:
        """Updates made so far; a skipped step is none."""
        return self._zero.adam_steps

    @torch.no_grad()
    def update_ema(self, decay: float) -> None:
        """Average the float32 weights: `ema = decay * ema + (1 - decay) * weights`."""
        torch._foreach_lerp_(self._ema, self._zero.masters, 1 - decay)

    @contextmanager
    def ema_weights(self) -> Iterator[None]:
        """Inside, the stage (and so `predict`) has the averaged weights; no step may be taken there."""
        with self._zero.published(self._ema):
            yield

    def pieces(self, kinds: Iterable[str] = KINDS) -> Iterator[Piece]:
        """What this rank has to save: over all ranks, every element of every logical tensor once."""
        for kind in kinds:
            yield from self._fragments.pieces(kind, self._flats(kind))

    def load(self, read: Read, *, adam_steps: int) -> None:
        """Take weights, moments and average from logical tensors, saved under any layout."""
        for kind in KINDS:
            self._fragments.fill(kind, self._flats(kind), read)
        self._zero.set_adam_steps(adam_steps)
        self._zero.publish()
        self.check_replicas()

    def check_replicas(self) -> None:
        """ValueError naming the parameters, and the ranks, where copies of one are no longer bit-equal."""
        check_replicas(self.grid, self._zero.local_weights(), self._zero.sharded, cut=self._zero.zero_stage == 3)

    @property
    def settings(self) -> dict[str, Any]:
        """What DeepSpeed says it does, of what changes numbers."""
        return self._zero.settings

    def close(self) -> None:
        """Let go of the optimizer and its hooks; the grid is closed after it."""
        self._zero.close()

    def __enter__(self) -> "TrainEngine":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _flats(self, kind: str) -> list[Tensor]:
        match kind:
            case "master":
                return self._zero.masters
            case "ema":
                return self._ema
            case _:
                return self._zero.moments(kind)

    def _agree(self, share: float, gradients: list[Tensor]) -> tuple[float, bool]:
        """The loss of the global batch, and whether it and the gradients of all ranks are finite."""
        finite = torch.stack(torch._foreach_norm(gradients)).isfinite().all() if gradients else True
        # The tensor ranks of a last stage all hold the same share.
        share = share if self.grid.tensor_rank == 0 else 0.0
        sums = torch.tensor([share, float(not finite)], dtype=torch.float64, device=self.grid.device)
        dist.all_reduce(sums)
        loss, bad_ranks = sums.tolist()
        return loss, math.isfinite(loss) and not bad_ranks

    def _through_deepspeed(self, microbatches: Sequence[Microbatch], scale: float) -> float:
        """As `Pipeline.forward_backward`, but the gradients are partitioned as they come."""
        share = 0.0
        for pack in microbatches:
            inputs = pack.inputs.to(self._pipeline.place, self._pipeline.dtype)
            loss = self._pipeline.loss(pack, self._zero.forward(inputs), scale)
            self._zero.backward(loss)
            share += float(loss.detach())
        return share

    def _restore_masters(self, initial: dict[str, Tensor]) -> None:
        """Start from the float32 weights, not from what is left of them in a narrower type."""
        shards = self._zero.shards

        def read(kind: str, name: str, offset: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
            starts = [o - start for o, start in zip(offset, shards[name].offset, strict=True)]
            return initial[name][tuple(slice(o, o + n) for o, n in zip(starts, shape, strict=True))]

        self._fragments.fill("master", self._zero.masters, read)
        self._zero.publish()
