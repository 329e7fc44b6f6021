"""DeepSpeed's ZeRO around a stage: it owns the partitioned optimizer, and under ZeRO-3 the weights.

Up to ZeRO-1 Megatron's schedule runs the raw module and DeepSpeed sees whole gradients, once a step. ZeRO-2 and 3 cut
gradients up during each backward, which therefore goes through DeepSpeed's engine (`forward`, `backward`). Its loss
scaling and its own count of microbatches are off in both cases.
"""

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any

import deepspeed
import torch
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.utils import clip_grad_norm_
from deepspeed.runtime.zero import parameter_offload
from deepspeed.runtime.zero.parameter_offload import DeepSpeedZeRoOffload
from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from torch import Tensor

from model.block import Block
from model.dit import Head, VideoDiT
from model.packed import PackedInputs
from parallel.mpu import MpuAdapter
from parallel.optim import AdamWConfig, parameter_groups
from parallel.runtime import Grid
from parallel.shard import is_on_every_stage, is_sharded, shard_of

BUCKET_ELEMENTS = 50_000_000
RATE_FACTOR = "rate_factor"
"""Of a group, in DeepSpeed's own list of them."""
logging.getLogger("DeepSpeed").setLevel(logging.WARNING)


@dataclass(frozen=True, kw_only=True)
class Slot:
    """Where the elements of a parameter lie in the flat tensors of optimizer state.

    Replica r holds the elements [r * chunk - shift, (r + 1) * chunk - shift) that there are.
    """

    name: str
    flat: int
    """Index of the flat tensor."""
    start: int
    """Where this rank's first element is in it."""
    chunk: int
    shift: int


class ZeroOptimizer:
    """AdamW over a stage, its state shared by the replicas."""

    def __init__(self, grid: Grid, stage: VideoDiT, config: AdamWConfig) -> None:
        self.named = dict(stage.named_parameters())
        self.shards = {name: shard_of(parameter, grid) for name, parameter in self.named.items()}
        self.sharded = {name for name, parameter in self.named.items() if is_sharded(parameter)}
        self.zero_stage = grid.dims.zero_stage
        self._grid = grid
        self._clip_norm, self._norm_of_whole = config.clip_norm, 0.0
        self._is_bf16 = next(stage.parameters()).dtype == torch.bfloat16
        for name, parameter in self.named.items():
            # The norm counts these once: on the first stage.
            parameter.ds_pipe_replicated = is_on_every_stage(name) and not grid.is_first_stage  # type: ignore[attr-defined]
        adamw = torch.optim.AdamW(
            self._parameter_groups(config, stage.config.width_factor),
            lr=0.0,
            betas=(config.beta1, config.beta2),
            eps=config.eps,
            fused=True,
        )
        _skip_compilation(grid.device)
        if self.zero_stage == 3:
            # Fetched as one: their weights are also used outside of the modules that own them.
            deepspeed.utils.set_z3_leaf_modules(stage, [Block, Head])
            _restart_numbering()
        wanted = deepspeed_config(config, zero_stage=self.zero_stage, is_bf16=self._is_bf16)
        with redirect_stdout(io.StringIO()):  # a memory report, printed
            self._engine, self._optimizer, _, _ = deepspeed.initialize(
                model=stage, optimizer=adamw, config=wanted, mpu=MpuAdapter(grid)
            )
        if self.zero_stage == 0:
            self._engine.clip_fp32_gradients = self._clip_whole_gradients
        self._require_settings(wanted)
        grouped = [] if self.zero_stage == 0 else self.groups
        self._places = {id(p): (group, i) for group, members in enumerate(grouped) for i, p in enumerate(members)}
        self._create_state()

    @property
    def drives_backward(self) -> bool:
        """Whether forward and backward have to go through this class."""
        return self.zero_stage >= 2

    def forward(self, inputs: PackedInputs) -> Tensor:
        """The module's prediction for a pack."""
        return self._engine(inputs)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a pack to this rank's partitions."""
        self._engine.backward(loss)

    def gradient(self, name: str) -> Tensor:
        """The gradient DeepSpeed will reduce and apply; AssertionError where there is none."""
        assert not self.drives_backward, "gradients are partitioned as they come"
        parameter = self.named[name]
        gradient = parameter.grad
        if isinstance(self._optimizer, BF16_Optimizer):
            # Its float32 buffer stands, zeroed, where no gradient has come.
            group, place = self._places[id(parameter)]
            has_come = self._optimizer.fp32_groups_has_gradients[group][place]
            gradient = parameter._hp_grad if has_come else None  # type: ignore[attr-defined]
        assert gradient is not None, f"{name} has no gradient"
        return gradient.view(parameter.shape)

    def drop_gradients(self) -> None:
        """Forget the gradients of a step that is not taken."""
        match self.zero_stage:
            case 0:
                self._engine.zero_grad()
            case 3:
                self._optimizer._pre_step()
                self._optimizer.zero_grad()
            case _:
                self._optimizer.zero_grad()
                if self.zero_stage == 2:
                    self._optimizer.micro_step_id = -1
                    for group in range(len(self.groups)):
                        self._optimizer.averaged_gradients[group] = None
                        self._optimizer.all_grad_tensors[group] = None

    def step(self, lr: float) -> float:
        """Average gradients over replicas, clip, update; returns the global norm before clipping.

        Where that is not finite nothing is updated, on any rank.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = lr * group[RATE_FACTOR]
        self._engine.step()
        return self._norm_of_whole if self.zero_stage == 0 else float(self._engine.get_global_grad_norm())

    @property
    def masters(self) -> list[Tensor]:
        """This rank's share of the float32 weights: flat tensors, as `slots` lays parameters out in them."""
        if self.zero_stage == 0:
            return list(self.named.values())
        return getattr(self._optimizer, self._masters_attribute)

    @property
    def _masters_attribute(self) -> str:
        if self.zero_stage == 3:
            return "fp32_partitioned_groups_flat"
        is_bf16_optimizer = isinstance(self._optimizer, BF16_Optimizer)
        return "fp32_groups_flat_partition" if is_bf16_optimizer else "single_partition_of_fp32_groups"

    @property
    def groups(self) -> list[list[torch.nn.Parameter]]:
        """The parameters of each flat tensor in order (ZeRO-1, 2 and 3)."""
        if self.zero_stage == 3:
            return self._optimizer.fp16_groups
        is_bf16_optimizer = isinstance(self._optimizer, BF16_Optimizer)
        return self._optimizer.bf16_groups if is_bf16_optimizer else self._optimizer.bit16_groups

    def slots(self) -> Iterator[Slot]:
        """Where each parameter lies: whole, in one of equal cuts of its group, or cut by itself."""
        if self.zero_stage == 0:
            for index, (name, parameter) in enumerate(self.named.items()):
                yield Slot(name=name, flat=index, start=0, chunk=parameter.numel(), shift=0)
            return
        names = {id(parameter): name for name, parameter in self.named.items()}
        rank, replicas = self._grid.replica_rank, self._grid.replica_size
        for index, (group, master) in enumerate(zip(self.groups, self.masters, strict=True)):
            place = 0
            for parameter in group:
                name = names[id(parameter)]
                if self.zero_stage == 3:
                    _, start, chunk = self._optimizer.grad_position[self._optimizer.get_param_id(parameter)]
                    yield Slot(name=name, flat=index, start=start, chunk=chunk, shift=0)
                    place += chunk
                else:
                    start = max(place - rank * master.numel(), 0)
                    yield Slot(name=name, flat=index, start=start, chunk=master.numel(), shift=place)
                    place += parameter.numel()
            assert place <= master.numel() * (1 if self.zero_stage == 3 else replicas)

    def moments(self, kind: str) -> list[Tensor]:
        """`exp_avg` or `exp_avg_sq`, laid out as `masters`."""
        state = self._adamw.state
        return [state[master][kind].view_as(master) for master in self.masters]

    @property
    def adam_steps(self) -> int:
        """Updates made so far."""
        return int(self._adamw.state[self.masters[0]]["step"])

    def set_adam_steps(self, steps: int) -> None:
        for master in self.masters:
            self._adamw.state[master]["step"].fill_(steps)

    @torch.no_grad()
    def publish(self) -> None:
        """Fill the stage's weights from the masters. Collective."""
        match self.zero_stage:
            case 0:
                pass  # they are the weights
            case 3:
                # Weights of the last forward may still be whole.
                self._optimizer._partition_all_parameters()
                for index in range(len(self.masters)):
                    self._optimizer._reassign_or_swap_out_partitioned_parameters(index)
            case _:
                self._optimizer.update_lp_params()

    @contextmanager
    def published(self, flats: list[Tensor]) -> Iterator[None]:
        """Inside, the stage has the weights of other tensors laid out as `masters`. Collective."""
        held = [master.detach().clone() for master in self.masters]
        self._set_masters(flats)
        try:
            yield
        finally:
            self._set_masters(held)

    @torch.no_grad()
    def _set_masters(self, flats: list[Tensor]) -> None:
        for master, flat in zip(self.masters, flats, strict=True):
            master.copy_(flat)
        self.publish()

    def local_weights(self) -> dict[str, Tensor]:
        """What this rank keeps of each parameter: its tensor rank's shard, under ZeRO-3 a cut of that."""
        return {name: p.ds_tensor if self.zero_stage == 3 else p.detach() for name, p in self.named.items()}  # type: ignore[attr-defined]

    @property
    def settings(self) -> dict[str, Any]:
        """What DeepSpeed says it does, of what changes numbers."""
        engine = self._engine
        return {
            "optimizer": type(self._optimizer).__name__,
            "zero_stage": int(engine.zero_optimization_stage()),
            "gradient_clipping": float(engine.gradient_clipping()),
            "gradient_accumulation_steps": int(engine.gradient_accumulation_steps()),
            "managed_gradient_accumulation": bool(engine.managed_gradient_accumulation()),
            "overlap_comm": bool(engine.zero_overlap_comm()),
            "contiguous_gradients": bool(engine.zero_contiguous_gradients()),
            "reduce_scatter": bool(engine.zero_reduce_scatter()),
            "reduce_bucket_size": int(engine.zero_reduce_bucket_size()),
            "allgather_bucket_size": int(engine.zero_allgather_bucket_size()),
            "grad_accum_dtype": str(engine.get_data_types()[1]).removeprefix("torch."),
            "communication_data_type": str(engine.communication_data_type).removeprefix("torch."),
            "prescale_gradients": not engine.postscale_gradients(),
        }

    def _clip_whole_gradients(self) -> None:
        """What DeepSpeed does without ZeRO, except that the norm is kept."""
        self._norm_of_whole = float(clip_grad_norm_(list(self.named.values()), self._clip_norm, mpu=self._engine.mpu))

    def close(self) -> None:
        self._engine.destroy()
        deepspeed.utils.groups.mpu = None
        del self._engine, self._optimizer
        # ZeRO-3 leaves these behind, and they hold the engine with its groups, threads and sockets.
        parameter_offload.FWD_MODULE_STACK.clear()
        (cell,) = PartitionedParameterCoordinator._PartitionedParameterCoordinator__params_to_release.__closure__
        cell.cell_contents.cache_clear()

    @property
    def _adamw(self) -> torch.optim.AdamW:
        return self._optimizer if self.zero_stage == 0 else self._optimizer.optimizer

    def _require_settings(self, wanted: dict[str, Any]) -> None:
        """AssertionError where DeepSpeed took another optimizer or other settings than it was given."""
        if self.zero_stage == 0:
            expected: type = torch.optim.AdamW
        elif self.zero_stage == 3:
            expected = DeepSpeedZeroOptimizer_Stage3
        else:
            expected = BF16_Optimizer if self._is_bf16 and self.zero_stage == 1 else DeepSpeedZeroOptimizer
        zero = wanted["zero_optimization"]
        others = {
            "optimizer": expected.__name__,
            "zero_stage": zero["stage"],
            "grad_accum_dtype": "float32",
            "communication_data_type": "float32",
        }
        for name, value in self.settings.items():
            right = {**wanted, **zero, **others}[name]
            assert value == right, f"DeepSpeed set {name}={value}, not {right}"

    def _create_state(self) -> None:
        """Have AdamW make its (zero) state now, so that a run can be saved before and loaded without a step."""
        masters = self.masters
        for master in masters:
            master.grad = torch.zeros_like(master)
        if self.zero_stage == 3:
            for index in range(len(masters)):
                self._optimizer._optimizer_step(index)
        else:
            self._adamw.step()
        for master in masters:
            master.grad = None
        self.set_adam_steps(0)

    def _parameter_groups(self, config: AdamWConfig, width_factor: float) -> list[dict[str, Any]]:
        shapes = {name: shard.global_shape for name, shard in self.shards.items()}
        return [
            {
                "params": [self.named[name] for name in group.names],
                "weight_decay": group.weight_decay,
                RATE_FACTOR: group.rate_factor,
            }
            for group in parameter_groups(config, shapes, width_factor)
        ]


def deepspeed_config(config: AdamWConfig, *, zero_stage: int, is_bf16: bool) -> dict[str, Any]:
    """Every setting of DeepSpeed's that changes numbers, said outright."""
    bf16: dict[str, Any] = {"enabled": True, "check_grad_overflow": True}
    if zero_stage == 1:
        # Gradients of an outside backward are added to the float32 buffer as they come.
        bf16["immediate_grad_update"] = True
    return {
        "train_micro_batch_size_per_gpu": 1,
        # One boundary: all backwards of a step run before the only `engine.step`, which reduces what they left.
        # Managed accumulation would take every backward for a boundary and keep the last.
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": config.clip_norm,
        "prescale_gradients": False,
        "communication_data_type": "fp32",
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_optimization": {
            "stage": zero_stage,
            # Up to ZeRO-1 these two need hooks or buffers that only DeepSpeed's own backward sets up.
            "contiguous_gradients": False,
            "overlap_comm": False,
            "reduce_scatter": True,
            "reduce_bucket_size": BUCKET_ELEMENTS,
            "allgather_bucket_size": BUCKET_ELEMENTS,
            "stage3_param_persistence_threshold": 0,
            # Would replace torch's linear for the whole process.
            "memory_efficient_linear": False,
        },
        **({"bf16": bf16} if is_bf16 else {}),
    }


def _restart_numbering() -> None:
    """ZeRO-3 compares its numbers of modules and parameters over ranks, and counts them over a process's lifetime.

    Ranks that took part in different layouts before would disagree.
    """
    (count,) = DeepSpeedZeRoOffload._register_deepspeed_module.__defaults__
    count[0] = 0
    deepspeed.zero.Init.param_id = 0


def _skip_compilation(device: torch.device) -> None:
    """On the CPU DeepSpeed would compile a shared-memory all-reduce for inference; nothing here calls it."""
    if device.type == "cpu":
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
