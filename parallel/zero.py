"""DeepSpeed's ZeRO-1 around a stage: it owns the partitioned optimizer and nothing else.

Megatron's schedule runs the raw module; DeepSpeed's own micro-steps, gradient accumulation and loss scaling are off.
"""

import io
import logging
from contextlib import redirect_stdout
from typing import Any

import deepspeed
import torch
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from torch import Tensor, nn

from parallel.mpu import MpuAdapter
from parallel.optim import AdamWConfig, is_decayed
from parallel.runtime import Grid
from parallel.shard import is_on_every_stage, shard_of

BUCKET_ELEMENTS = 50_000_000
logging.getLogger("DeepSpeed").setLevel(logging.WARNING)


class ZeroOptimizer:
    """AdamW over a stage, its state shared by the data ranks."""

    def __init__(self, grid: Grid, stage: nn.Module, config: AdamWConfig) -> None:
        self.named = dict(stage.named_parameters())
        self._is_bf16 = next(stage.parameters()).dtype == torch.bfloat16
        for name, parameter in self.named.items():
            # The norm counts these once: on the first stage.
            parameter.ds_pipe_replicated = is_on_every_stage(name) and not grid.is_first_stage  # type: ignore[attr-defined]
        groups = _parameter_groups(self.named, grid, config)
        adamw = torch.optim.AdamW(groups, lr=0.0, betas=(config.beta1, config.beta2), eps=config.eps, fused=True)
        _skip_compilation(grid.device)
        with redirect_stdout(io.StringIO()):  # a memory report, printed
            self._engine, self._optimizer, _, _ = deepspeed.initialize(
                model=stage,
                optimizer=adamw,
                config=_deepspeed_config(config, is_bf16=self._is_bf16),
                mpu=MpuAdapter(grid),
            )
        expected = BF16_Optimizer if self._is_bf16 else DeepSpeedZeroOptimizer
        assert type(self._optimizer) is expected, f"DeepSpeed chose {type(self._optimizer).__name__}"
        self._create_state()

    def gradient(self, name: str) -> Tensor:
        """The gradient DeepSpeed will reduce and apply; AssertionError where there is none."""
        parameter = self.named[name]
        gradient = getattr(parameter, "_hp_grad", None) if self._is_bf16 else parameter.grad
        assert gradient is not None, f"{name} has no gradient"
        return gradient

    def drop_gradients(self) -> None:
        self._optimizer.zero_grad()

    def step(self, lr: float) -> float:
        """Average gradients over data ranks, clip, update; returns the global norm before clipping.

        Where that is not finite nothing is updated, on any rank.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._engine.step()
        return float(self._engine.get_global_grad_norm())

    @property
    def masters(self) -> list[Tensor]:
        """This rank's partition of the float32 weights, one flat tensor per parameter group."""
        return getattr(self._optimizer, self._masters_attribute)

    @property
    def _masters_attribute(self) -> str:
        return "fp32_groups_flat_partition" if self._is_bf16 else "single_partition_of_fp32_groups"

    @property
    def groups(self) -> list[list[nn.Parameter]]:
        """The parameters of each group, in the order in which its flat tensor holds them."""
        return self._optimizer.bf16_groups if self._is_bf16 else self._optimizer.bit16_groups

    def moments(self, kind: str) -> list[Tensor]:
        """`exp_avg` or `exp_avg_sq` of this rank's partitions, laid out as `masters`."""
        return [self._optimizer.state[master][kind] for master in self.masters]

    @property
    def adam_steps(self) -> int:
        """Updates made so far."""
        return int(self._optimizer.state[self.masters[0]]["step"])

    def set_adam_steps(self, steps: int) -> None:
        for master in self.masters:
            self._optimizer.state[master]["step"].fill_(steps)

    def publish(self, flats: list[Tensor] | None = None) -> None:
        """Fill the stage's weights from the masters, or from other tensors of the same layout. Collective."""
        masters = self.masters
        setattr(self._optimizer, self._masters_attribute, flats or masters)
        self._optimizer.update_lp_params()
        setattr(self._optimizer, self._masters_attribute, masters)

    def close(self) -> None:
        self._engine.destroy()
        deepspeed.utils.groups.mpu = None
        del self._engine, self._optimizer

    def _create_state(self) -> None:
        """Have AdamW make its (zero) state now, so that a run can be saved before and loaded without a step."""
        for master in self.masters:
            master.grad = torch.zeros_like(master)
        self._optimizer.optimizer.step()
        for master in self.masters:
            master.grad = None
        self.set_adam_steps(0)


def _parameter_groups(named: dict[str, nn.Parameter], grid: Grid, config: AdamWConfig) -> list[dict[str, Any]]:
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for name, parameter in named.items():
        (decayed if is_decayed(name, shard_of(parameter, grid).global_shape) else kept).append(parameter)
    return [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]


def _deepspeed_config(config: AdamWConfig, *, is_bf16: bool) -> dict[str, Any]:
    precision = {
        # Gradients of an outside backward are added to the float32 buffer as they come.
        "bf16": {"enabled": True, "immediate_grad_update": True},
        "data_types": {"grad_accum_dtype": "fp32"},
    }
    return {
        "train_micro_batch_size_per_gpu": 1,
        # One boundary: all backwards of a step run before the only `engine.step`, which reduces what they left.
        # Managed accumulation would take every backward for a boundary and keep the last.
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": config.clip_norm,
        "zero_optimization": {
            "stage": 1,
            # These two need hooks or buffers that only DeepSpeed's own backward sets up.
            "contiguous_gradients": False,
            "overlap_comm": False,
            "reduce_scatter": True,
            "reduce_bucket_size": BUCKET_ELEMENTS,
            "allgather_bucket_size": BUCKET_ELEMENTS,
        },
        **(precision if is_bf16 else {}),
    }


def _skip_compilation(device: torch.device) -> None:
    """On the CPU DeepSpeed would compile a shared-memory all-reduce for inference; nothing here calls it."""
    if device.type == "cpu":
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
