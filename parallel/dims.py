"""How many ways a run is split. Light: it imports no engine."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal

import torch

Recompute = Literal["none", "selective", "full"]
Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class ParallelDims:
    """Sizes of the rank grid, fastest first: tensor, context, data, pipeline; and what its ranks do about memory.

    Which of them go together is told by `parallel.legality`. Raises ValueError for a value that is wrong by itself.
    """

    tensor: int = 1
    """Ranks that share each linear layer (Megatron tensor parallelism)."""
    sequence: bool = True
    """Share the residual stream over the tensor ranks too (Megatron sequence parallelism); idle with tensor=1."""
    context: int = 1
    """Ranks that share the tokens of a pack, and in attention the heads (Ulysses, Jacobs et al. 2023)."""
    pipeline: int = 1
    """Stages the blocks are cut into."""
    virtual_pipeline: int = 1
    """Stages of each pipeline rank; more than 1 interleaves them (Narayanan et al. 2021, section 2.2)."""
    blocks_per_stage: tuple[int, ...] | None = None
    """Blocks of each of the pipeline x virtual_pipeline stages in order; None cuts as evenly as possible."""
    data: int | None = None
    """Replicas that read different packs; None takes the processes that are left."""
    zero_stage: int = 1
    """What data and context ranks share (DeepSpeed ZeRO): 1 optimizer state, 2 and gradients, 3 and weights."""
    recompute: Recompute = "none"
    """Activations computed again in the backward pass: none, the cheap ones (all but matmuls and attention), all."""
    recompute_blocks: int | None = None
    """Blocks of each stage that recompute, from its first; None is all of them."""
    precision: Precision | None = None
    """Type of weights and activations; float32 masters and sums beside bf16. None is bf16 on a GPU, fp32 on a CPU."""
    start_timeout_s: float = 1800.0
    """A collective that waits longer ends the run, until the first step is done: nodes start apart, disks are cold."""
    timeout_s: float = 600.0
    """The same from then on."""
    heartbeat_timeout_s: float = 600.0
    """NCCL's watchdog ends a process that it has not been able to look after for so long, stuck in a CUDA call."""
    deterministic: bool = False
    """The same bits from the same run again on the same machines, at some cost in speed."""

    def __post_init__(self) -> None:
        for name in ("tensor", "context", "pipeline", "virtual_pipeline", "data"):
            size = getattr(self, name)
            if size is not None and size < 1:
                raise ValueError(f"parallel.{name} is {size}; it must be at least 1.")
        if self.zero_stage not in range(4):
            raise ValueError(f"parallel.zero_stage is {self.zero_stage}; ZeRO has the stages 0, 1, 2 and 3.")
        if self.recompute_blocks is not None and (self.recompute == "none" or self.recompute_blocks < 1):
            raise ValueError(
                f"parallel.recompute_blocks is {self.recompute_blocks} with recompute={self.recompute}; give 1 or more "
                "blocks together with recompute=selective or full, or leave it null."
            )
        if self.blocks_per_stage is not None and min(self.blocks_per_stage, default=0) < 1:
            raise ValueError(
                f"parallel.blocks_per_stage is {list(self.blocks_per_stage)}; each stage needs 1 block or more."
            )
        for name in ("start_timeout_s", "timeout_s", "heartbeat_timeout_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"parallel.{name} is {getattr(self, name)}; it must be above 0.")

    @property
    def model_size(self) -> int:
        """Ranks that hold one copy of the model and work on one pack."""
        return self.tensor * self.context * self.pipeline

    @property
    def shards_sequence(self) -> bool:
        return self.sequence and self.tensor > 1

    @property
    def stream_shards(self) -> int:
        """Equal shards that the tokens of a pack are cut into."""
        return self.context * (self.tensor if self.shards_sequence else 1)

    def resolve(self, world_size: int) -> "ParallelDims":
        """The same dims with `data` and `precision` filled in for this machine and so many processes.

        Raises ValueError where the sizes do not multiply to `world_size`.
        """
        split = f"tensor x context x pipeline = {self.tensor} x {self.context} x {self.pipeline} = {self.model_size}"
        if world_size % self.model_size:
            raise ValueError(
                f"{world_size} processes cannot hold whole copies of the model: {split} (parallel.*) does not divide "
                f"{world_size}; {_nearest_worlds(world_size, self.model_size)}, or make the split smaller."
            )
        data = world_size // self.model_size
        if self.data is not None and self.data != data:
            raise ValueError(
                f"parallel.data is {self.data}, but {world_size} processes / ({split}) = {data}; set parallel.data="
                f"{data} (or leave it null), or start {self.model_size * self.data} processes."
            )
        return replace(self, data=data, precision=self.precision or ("bf16" if torch.cuda.is_available() else "fp32"))

    @property
    def dtype(self) -> torch.dtype:
        """Type of weights and activations; needs resolved dims."""
        assert self.precision is not None, "resolve(world_size) comes first"
        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    def describe(self) -> str:
        """The layout in words."""
        sizes = [f"{self.tensor} tensor" + (" with sequence parallelism" if self.shards_sequence else "")]
        sizes += [f"{self.context} context"] if self.context > 1 else []
        chunks = f" of {self.virtual_pipeline} stages each" if self.virtual_pipeline > 1 else ""
        sizes += [f"{self.pipeline} pipeline{chunks}", f"{self.data} data"]
        recompute = "" if self.recompute == "none" else f", {self.recompute} recomputation"
        mode = ", deterministic" if self.deterministic else ""
        return f"{' x '.join(sizes)}, ZeRO-{self.zero_stage}, {self.precision}{recompute}{mode}"

    def stages(self, num_blocks: int) -> list[tuple[int, int]]:
        """Blocks [first, end) of each stage, in the order in which a pack meets them.

        Stage k is on pipeline rank k % pipeline.
        """
        counts = self.blocks_per_stage or even_counts(num_blocks, self.pipeline * self.virtual_pipeline)
        ends = list(accumulate(counts))
        assert len(counts) == self.pipeline * self.virtual_pipeline and ends[-1] == num_blocks, counts
        return [(end - count, end) for end, count in zip(ends, counts, strict=True)]


def even_counts(num_blocks: int, stages: int) -> list[int]:
    """Blocks of each stage, as even as possible.

    Blocks left over go to middle stages first, then to the first: both ends carry an embedding or a head already.
    """
    assert 1 <= stages <= num_blocks
    counts = [num_blocks // stages] * stages
    for stage in [*range(1, stages - 1), 0][: num_blocks % stages]:
        counts[stage] += 1
    return counts


def interleaving_group(packs: int, pipeline: int) -> int:
    """Packs that go through one stage of a rank before its next stage's turn; needs `packs >= pipeline`.

    Megatron-core wants at least `pipeline` of them, and as many in a last group that is smaller.
    """
    assert packs >= pipeline
    return next(n for n in range(pipeline, packs + 1) if packs % n == 0 or packs % n >= pipeline)


def neighbours(value: int, factor: int) -> tuple[int, int]:
    """The multiples of `factor` around `value`, both above 0."""
    below = max(value // factor, 1) * factor
    return below, below + factor


def _nearest_worlds(world_size: int, model_size: int) -> str:
    below, above = neighbours(world_size, model_size)
    return f"start {below} processes" if world_size < model_size else f"start {below} or {above} processes"


def parts(sizes: Sequence[int], total: int) -> str:
    """`12 = 5 x 2 + 2`, for errors: how `total` falls apart."""
    factor = 1
    for size in sizes:
        factor *= size
    return f"{total} = {total // factor} x {factor} + {total % factor}"
