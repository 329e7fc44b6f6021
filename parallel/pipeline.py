"""Megatron-core's pipeline schedules over packs; with one stage, its schedule without a pipeline.

Shapes: L tokens of a pack, l = L / tensor_size of one sequence shard, P values of a patch, D width.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
import torch.distributed as dist
from megatron.core.enums import ModelType
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer import TransformerConfig
from torch import Tensor, nn

from model.dit import VideoDiT
from model.packed import PackedInputs
from parallel.runtime import Grid


class Microbatch(Protocol):
    """One pack and what its prediction is compared with."""

    @property
    def inputs(self) -> PackedInputs: ...

    @property
    def target_LP(self) -> Tensor: ...

    @property
    def weight_L(self) -> Tensor: ...


def weighted_error(prediction_LP: Tensor, target_LP: Tensor, weight_L: Tensor) -> Tensor:
    """Sum over tokens of weight times the mean squared error of the patch, in float32 or wider."""
    wide_LP = prediction_LP if prediction_LP.dtype == torch.float64 else prediction_LP.float()
    error_L = (wide_LP - target_LP.to(wide_LP)).square().mean(-1)
    return (error_L * weight_L.to(wide_LP)).sum()


class _ScheduledStage(nn.Module):
    """What a Megatron schedule expects of a model, around a stage."""

    model_type = ModelType.encoder_or_decoder

    def __init__(self, stage: VideoDiT, config: TransformerConfig) -> None:
        super().__init__()
        self.stage = stage
        self.config = config
        self._received: Tensor | None = None

    def set_input_tensor(self, received: list[Tensor | None]) -> None:
        """The stream `[l, 1, D]` of the stage before, None on the first."""
        (self._received,) = received

    def forward(self, inputs: PackedInputs) -> Tensor:
        hidden_lD = None if self._received is None else self._received.squeeze(1)
        output = self.stage(inputs, hidden_lD)
        return output if self.stage.stage.has_output else output.unsqueeze(1)


class Pipeline:
    """Runs packs of one length forward, or forward and backward, through all stages."""

    def __init__(self, grid: Grid, stage: VideoDiT) -> None:
        self.grid = grid
        parameter = next(stage.parameters())
        self.place, self.dtype = parameter.device, parameter.dtype
        config = TransformerConfig(
            num_layers=stage.config.num_blocks,
            hidden_size=stage.config.dim,
            num_attention_heads=stage.config.num_heads,
            ffn_hidden_size=stage.config.ffn_dim,
            tensor_model_parallel_size=grid.tensor_size,
            pipeline_model_parallel_size=grid.pipeline_size,
            sequence_parallel=grid.dims.shards_sequence,
            params_dtype=self.dtype,
            pipeline_dtype=self.dtype,
            variable_seq_lengths=False,
            batch_p2p_comm=False,
            use_cpu_initialization=True,
            # The loss arrives scaled for the global batch: Megatron must not divide it again.
            calculate_per_token_loss=True,
        )
        self.model = _ScheduledStage(stage, config)

    def forward_backward(self, microbatches: Sequence[Microbatch], *, scale: float) -> float:
        """Leave d(scale * loss)/d(parameter) in the parameters' gradients and return scale * loss.

        The loss is the sum of `weighted_error` over the microbatches; it is 0 but on the last stage.
        """

        def step(packs: Iterator[Microbatch], model: nn.Module) -> tuple[Tensor, Any]:
            pack = next(packs)

            def loss(prediction_LP: Tensor) -> tuple[Tensor, Tensor, Tensor]:
                total = weighted_error(prediction_LP, pack.target_LP.to(self.place), pack.weight_L.to(self.place))
                total = total * scale
                # Megatron counts these tokens and, with per-token loss, divides by nothing.
                return total, torch.zeros((), dtype=torch.int, device=self.place), total.detach()

            return model(pack.inputs.to(self.place, self.dtype)), loss

        lengths = {pack.inputs.num_tokens for pack in microbatches}
        assert len(lengths) == 1, f"packs of one step must have one length, not {sorted(lengths)}"
        losses = self._run(step, microbatches, lengths.pop(), forward_only=False)
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

        outputs = self._run(step, inputs, length, forward_only=True)
        if self.grid.pipeline_size == 1:
            return outputs
        stage_config = self.model.stage.config
        shape = (len(inputs), length, stage_config.patch_values_out)
        if self.grid.is_last_stage:
            stacked = torch.stack(outputs)
        else:
            stacked = torch.empty(shape, dtype=self.dtype, device=self.place)
        last = dist.get_global_rank(self.grid.pipeline_group, self.grid.pipeline_size - 1)
        dist.broadcast(stacked, src=last, group=self.grid.pipeline_group)
        return list(stacked)

    def _run(self, step: Any, packs: Sequence[Any], length: int, *, forward_only: bool) -> list[Tensor]:
        shards = self.grid.tensor_size if self.grid.dims.shards_sequence else 1
        if length % shards:
            raise ValueError(
                f"a pack of {length} tokens cannot be cut into {shards} equal shards (parallel.tensor with sequence "
                f"parallelism); pad it to {-(-length // shards) * shards} tokens."
            )
        return get_forward_backward_func()(
            forward_step_func=step,
            data_iterator=iter(packs),
            model=self.model,
            num_microbatches=len(packs),
            seq_length=length,
            micro_batch_size=1,
            forward_only=forward_only,
        )
