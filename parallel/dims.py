"""How many ways a run is split, checked before any process group exists."""

from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class ParallelDims:
    """Sizes of the rank grid; fastest first: tensor, context, data, pipeline.

    Raises ValueError for sizes that no model and no number of processes could make legal.
    """

    tensor: int = 1
    """Ranks that share each linear layer (Megatron tensor parallelism)."""
    sequence: bool = True
    """Share the residual stream over the tensor ranks too (Megatron sequence parallelism); idle with tensor=1."""
    context: int = 1
    """Ranks that share a sequence inside attention; 1 in this version."""
    pipeline: int = 1
    """Stages the blocks are cut into."""
    data: int | None = None
    """Replicas that read different packs; None takes the processes that are left."""
    zero_stage: int = 1
    """What the replicas share of the optimizer (DeepSpeed ZeRO); 1 in this version."""
    timeout_s: float = 1800.0
    """A collective that waits longer ends the run."""

    def __post_init__(self) -> None:
        for name in ("tensor", "context", "pipeline", "data"):
            size = getattr(self, name)
            if size is not None and size < 1:
                raise ValueError(f"parallel.{name} is {size}; it must be at least 1.")
        if self.context != 1:
            raise ValueError(
                f"parallel.context is {self.context}, but context parallelism is not in this version; set "
                "parallel.context=1 and shorten packs or raise parallel.tensor."
            )
        if self.zero_stage != 1:
            raise ValueError(
                f"parallel.zero_stage is {self.zero_stage}, but only ZeRO-1 is in this version (and the only stage "
                "that works with pipeline > 1); set parallel.zero_stage=1."
            )
        if self.timeout_s <= 0:
            raise ValueError(f"parallel.timeout_s is {self.timeout_s}; it must be above 0.")

    @property
    def model_size(self) -> int:
        """Ranks that hold one copy of the model."""
        return self.tensor * self.context * self.pipeline

    @property
    def shards_sequence(self) -> bool:
        return self.sequence and self.tensor > 1

    def resolve(self, world_size: int) -> "ParallelDims":
        """The same dims with `data` filled in; raises ValueError where the sizes do not multiply to `world_size`."""
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
        return replace(self, data=data)

    def check_model(self, *, num_heads: int, ffn_dim: int, num_blocks: int) -> None:
        """Raise ValueError where a model of this size cannot be split this way."""
        for what, size in (("model.num_heads", num_heads), ("model.ffn_dim", ffn_dim)):
            if size % self.tensor:
                raise ValueError(
                    f"parallel.tensor={self.tensor} does not divide {what}={size} ({size} = {size // self.tensor} x "
                    f"{self.tensor} + {size % self.tensor}); the nearest sizes that divide num_heads and ffn_dim are "
                    f"{_nearest_common_divisors(self.tensor, num_heads, ffn_dim)}."
                )
        if self.pipeline > num_blocks:
            raise ValueError(
                f"parallel.pipeline={self.pipeline} stages need a block each, but model.num_blocks is {num_blocks}; "
                f"set parallel.pipeline={num_blocks} or less."
            )

    def check_packs(self, *, tokens_per_pack: int, packs_per_step: int) -> None:
        """Raise ValueError where packs of this size and number cannot be shared; needs resolved dims."""
        assert self.data is not None, "resolve(world_size) comes first"
        shards = self.context * (self.tensor if self.shards_sequence else 1)
        if tokens_per_pack < 1 or tokens_per_pack % shards:
            below, above = _neighbours(tokens_per_pack, shards)
            raise ValueError(
                f"data.tokens_per_pack={tokens_per_pack} cannot be cut into {shards} equal shards (parallel.tensor="
                f"{self.tensor} with sequence parallelism x context={self.context}); use {below} or {above}."
            )
        if packs_per_step < 1 or packs_per_step % self.data:
            below, above = _neighbours(packs_per_step, self.data)
            raise ValueError(
                f"data.packs_per_step={packs_per_step} cannot be shared by parallel.data={self.data} replicas "
                f"({packs_per_step} = {packs_per_step // self.data} x {self.data} + {packs_per_step % self.data}); "
                f"use {below} or {above}."
            )


def split_blocks(num_blocks: int, stages: int) -> list[tuple[int, int]]:
    """Blocks [first, end) of each stage, as even as possible.

    Blocks left over go to middle stages first, then to the first: both ends carry an embedding or a head already.
    """
    assert 1 <= stages <= num_blocks
    counts = [num_blocks // stages] * stages
    for stage in [*range(1, stages - 1), 0][: num_blocks % stages]:
        counts[stage] += 1
    ends = [sum(counts[: stage + 1]) for stage in range(stages)]
    return [(end - count, end) for end, count in zip(ends, counts, strict=True)]


def _neighbours(value: int, factor: int) -> tuple[int, int]:
    """The multiples of `factor` around `value`, both above 0."""
    below = max(value // factor, 1) * factor
    return below, below + factor


def _nearest_worlds(world_size: int, model_size: int) -> str:
    below, above = _neighbours(world_size, model_size)
    return f"start {below} processes" if world_size < model_size else f"start {below} or {above} processes"


def _nearest_common_divisors(wanted: int, *sizes: int) -> str:
    legal = [n for n in range(1, min(sizes) + 1) if all(size % n == 0 for size in sizes)]
    below = max((n for n in legal if n < wanted), default=1)
    above = min((n for n in legal if n > wanted), default=None)
    return str(below) if above is None else f"{below} and {above}"
