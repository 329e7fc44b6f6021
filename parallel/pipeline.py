"""Megatron-core's pipeline schedules over packs; with one stage, its schedule without a pipeline.

Shapes: L tokens of a pack, M = L / context_size those of one context shard, l those of one shard of the stream, P
values of a patch, D width.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
import torch.distributed as dist
from megatron.core.enums import ModelType
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer import TransformerConfig
from torch import Tensor, nn

from model.dit import VideoDiT
from model.packed import PackedInputs, on_device
from parallel.dims import interleaving_group
from parallel.runtime import Grid
from parallel.tensor import context_shard


class Microbatch(Protocol):
    """One pack and what its prediction is compared with."""

    @property
    def inputs(self) -> PackedInputs: ...

    @property
    def target_LP(self) -> Tensor | None: ...

    @property
    def weight_L(self) -> Tensor: ...


Watch = Callable[[Any, Tensor, Tensor], None]
"""Is shown each pack that is trained on, with the error and the weight `[M]` of this context shard's tokens."""


def token_error(prediction_LP: Tensor, target_LP: Tensor) -> Tensor:
    """The mean squared error `[L]` of each token's patch, in float32 or wider."""
    wide_LP = prediction_LP if prediction_LP.dtype == torch.float64 else prediction_LP.float()
    return (wide_LP - target_LP.to(wide_LP)).square().mean(-1)


def weighted_error(prediction_LP: Tensor, target_LP: Tensor, weight_L: Tensor) -> Tensor:
    """Sum over tokens of weight times the mean squared error of the patch, in float32 or wider."""
    error_L = token_error(prediction_LP, target_LP)
    return (error_L * weight_L.to(error_L)).sum()


class _ScheduledStage(nn.Module):
    """What a Megatron schedule expects of a model, around one of the stages of a module."""

    model_type = ModelType.encoder_or_decoder

    def __init__(self, dit: VideoDiT, number: int, config: TransformerConfig) -> None:
        super().__init__()
        self.dit = dit
        self.number = number
        self.config = config
        self._received: Tensor | None = None

    def set_input_tensor(self, received: list[Tensor | None]) -> None:
        """The stream `[l, 1, D]` of the stage before, None on the first."""
        (self._received,) = received

    def forward(self, inputs: PackedInputs) -> Tensor:
        hidden_lD = None if self._received is None else self._received.squeeze(1)
        output = self.dit(inputs, hidden_lD, stage=self.number)
        return output if self.dit.stages[self.number].has_output else output.unsqueeze(1)


def schedule_config(grid: Grid, *, dtype: torch.dtype, **sizes: int) -> TransformerConfig:
    """What Megatron's schedules read; `sizes` are those of the model, by Megatron's names."""
    return TransformerConfig(
        **sizes,
        tensor_model_parallel_size=grid.tensor_size,
        context_parallel_size=grid.context_size,
        pipeline_model_parallel_size=grid.pipeline_size,
        virtual_pipeline_model_parallel_size=grid.dims.virtual_pipeline if grid.dims.virtual_pipeline > 1 else None,
        sequence_parallel=grid.dims.shards_sequence,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        variable_seq_lengths=False,
        batch_p2p_comm=False,
        # Interleaving would free what is still being sent (Megatron-LM #4047, before 0.18).
        deallocate_pipeline_outputs=False,
        use_cpu_initialization=True,
        # The loss arrives scaled for the global batch: Megatron must not divide it again.
        calculate_per_token_loss=True,
    )


class Pipeline:
    """Runs packs of one length forward, or forward and backward, through all stages."""

    def __init__(self, grid: Grid, dit: VideoDiT) -> None:
        self.grid = grid
        self.dit = dit
        parameter = next(dit.parameters())
        self.place, self.dtype = parameter.device, parameter.dtype
        self.schedule = schedule_config(
            grid,
            dtype=self.dtype,
            num_layers=dit.config.num_blocks,
            hidden_size=dit.config.dim,
            num_attention_heads=dit.config.num_heads,
            ffn_hidden_size=dit.config.ffn_dim,
        )
        self.watch: Watch | None = None
        self.chunks = [_ScheduledStage(dit, number, self.schedule) for number in range(len(dit.stages))]

    def loss(self, pack: Microbatch, prediction_MP: Tensor, scale: float) -> Tensor:
        """`scale` times this context shard's part of a pack's `weighted_error`."""
        assert pack.target_LP is not None, "the last stage reads targets"
        rank, size = self.grid.context_rank, self.grid.context_size
        target_MP, weight_M = (
            on_device(context_shard(x, rank, size), self.place) for x in (pack.target_LP, pack.weight_L)
        )
        error_M = token_error(prediction_MP, target_MP)
        weight_M = weight_M.to(error_M)
        if self.watch is not None:
            self.watch(pack, error_M.detach(), weight_M)
        return (error_M * weight_M).sum() * scale

    def forward_backward(self, microbatches: Sequence[Microbatch], *, scale: float) -> float:
        """Leave d(scale * loss)/d(parameter) in the parameters' gradients and return scale * loss.

        The loss is the sum of `weighted_error` over the microbatches and this context shard; it is 0 but on the last
        stage.
        """

        def step(packs: Iterator[Microbatch], model: nn.Module) -> tuple[Tensor, Any]:
            pack = next(packs)

            def loss(prediction_MP: Tensor) -> tuple[Tensor, Tensor, Tensor]:
                total = self.loss(pack, prediction_MP, scale)
                # Megatron counts these tokens and, with per-token loss, divides by nothing.
                return total, torch.zeros((), dtype=torch.int, device=self.place), total.detach()

            return model(pack.inputs.to(self.place, self.dtype)), loss

        lengths = {pack.inputs.num_tokens for pack in microbatches}
        assert len(lengths) == 1, f"packs of one step must have one length, not {sorted(lengths)}"
        losses = self.run(step, microbatches, lengths.pop(), forward_only=False)
        return float(sum(losses)) if losses else 0.0

    @torch.no_grad()
    def predict(self, inputs: Sequence[PackedInputs]) -> list[Tensor]:
        """Predictions `[L, P]` in order, on every rank of the model-parallel group."""
        predictions: dict[int, Tensor] = {}
        for length in sorted({pack.num_tokens for pack in inputs}):
            chosen = [i for i, pack in enumerate(inputs) if pack.num_tokens == length]
            outputs = self._predict_equal([inputs[i] for i in chosen], length)
            predictions.update(zip(chosen, outputs, strict=True))
        return [predictions[i] for i in range(len(inputs))]

    def _predict_equal(self, inputs: Sequence[PackedInputs], length: int) -> list[Tensor]:
        def step(packs: Iterator[PackedInputs], model: nn.Module) -> tuple[Tensor, None]:
            return model(next(packs).to(self.place, self.dtype)), None

        # Interleaved stages need as many packs as there are ranks: the last is run again, and dropped.
        missing = self.grid.pipeline_size - len(inputs) if len(self.chunks) > 1 else 0
        outputs = self.run(step, [*inputs, *[inputs[-1]] * missing], length, forward_only=True)[: len(inputs)]
        grid = self.grid
        if grid.is_last_stage:
            stacked = torch.stack(outputs)
        else:
            shape = (len(inputs), length // grid.context_size, self.dit.config.patch_values_out)
            stacked = torch.empty(shape, dtype=self.dtype, device=self.place)
        if grid.pipeline_size > 1:
            last = dist.get_global_rank(grid.pipeline_group, grid.pipeline_size - 1)
            dist.broadcast(stacked, src=last, group=grid.pipeline_group)
        if grid.context_size > 1:
            shards = [torch.empty_like(stacked) for _ in range(grid.context_size)]
            dist.all_gather(shards, stacked, group=grid.context_group)
            stacked = torch.cat(shards, dim=1)
        return list(stacked)

    def run(self, step: Any, packs: Sequence[Any], length: int, *, forward_only: bool) -> list[Tensor]:
        """Run Megatron's schedule for this layout: `step(iterator, chunk)` for each pack and stage of this rank."""
        shards = self.grid.dims.stream_shards
        if length % shards:
            raise ValueError(
                f"a pack of {length} tokens cannot be cut into {shards} equal shards (parallel.context, and "
                f"parallel.tensor with sequence parallelism); pad it to {-(-length // shards) * shards} tokens."
            )
        is_interleaved = len(self.chunks) > 1
        if is_interleaved:
            self.schedule.microbatch_group_size_per_vp_stage = interleaving_group(len(packs), self.grid.pipeline_size)
        return get_forward_backward_func()(
            forward_step_func=step,
            data_iterator=[iter(packs) for _ in self.chunks] if is_interleaved else iter(packs),
            model=self.chunks if is_interleaved else self.chunks[0],
            num_microbatches=len(packs),
            seq_length=length,
            micro_batch_size=1,
            forward_only=forward_only,
        )
