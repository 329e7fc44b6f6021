"""How many bytes training keeps on a rank, kind by kind: what DeepSpeed 0.19 allocates in each ZeRO stage.

Groups are the optimizer's (`parallel.optim`), with the elements of every parameter of this rank's tensor shard
in order. Parameters whose gradients arrive as one tensor, being applied as one, are in one tuple. Dims are resolved.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from parallel.dims import ParallelDims
from parallel.zero import BUCKET_ELEMENTS

Groups = Sequence[Sequence[tuple[int, ...]]]
FLOAT32 = 4
SUB_GROUP_ELEMENTS = 10**9
"""ZeRO-3 updates its partitions in flat tensors of about this size."""
LIVE_ELEMENTS = 10**9
"""ZeRO-3 keeps up to so many gathered weights that will be used again."""
WHOLE_REDUCTION_ELEMENTS = 500_000_000
"""Without ZeRO, and by the BF16_Optimizer, gradients are reduced in copies that close above this size."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes that stay, as they are once the backward passes of a step are done and its update begins."""

    weights: int
    """What the forward pass reads; under ZeRO-3 this rank's share."""
    gradients: int
    masters: int
    """float32 weights that the optimizer updates; without ZeRO they are the weights."""
    moments: int
    """AdamW's two, and its counts of steps."""
    average: int
    """The moving average of the weights, laid out as the masters."""

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.masters + self.moments + self.average


def lasting_memory(groups: Groups, dims: ParallelDims, *, replica: int) -> Memory:
    """What this replica's rank holds at the end of a step's backward passes, activations apart."""
    whole = _elements(groups)
    if dims.zero_stage == 0:
        counts = FLOAT32 * sum(len(sizes) for group in groups for sizes in group)
        size = FLOAT32 * whole
        return Memory(weights=size, gradients=size, masters=0, moments=2 * size + counts, average=size)
    flats = flat_partitions(groups, dims)
    share = FLOAT32 * sum(flats)
    return Memory(
        weights=dims.dtype.itemsize * sum(flats) * (1 if dims.zero_stage == 3 else _replicas(dims)),
        gradients=_gradients(groups, dims, replica),
        masters=share,
        moments=2 * share + FLOAT32 * len(flats),
        average=share,
    )


def flat_partitions(groups: Groups, dims: ParallelDims) -> list[int]:
    """Elements of each flat tensor of a replica's share of the optimizer's state, padding included (ZeRO-1, 2, 3)."""
    replicas = _replicas(dims)
    if dims.zero_stage < 3:
        # Whole groups are padded to a multiple of two elements a replica.
        return [2 * -(-_elements([group]) // (2 * replicas)) for group in groups]
    shares = ([-(-numel // replicas) for sizes in group for numel in sizes] for group in groups)
    return [flat for group in shares for flat in _sub_groups(group)]


def passing_memory(groups: Groups, dims: ParallelDims) -> dict[str, int]:
    """Bytes that come on top for a moment of each step, by name; not all at once, and at most."""
    whole, size = _elements(groups), dims.dtype.itemsize
    bucket = min(whole, BUCKET_ELEMENTS)
    if dims.zero_stage == 0:
        return {"reduction": FLOAT32 * min(whole, WHOLE_REDUCTION_ELEMENTS)}
    flats = flat_partitions(groups, dims)
    update = FLOAT32 * max(flats)
    match dims.zero_stage, dims.precision:
        case 1, "bf16":
            # The flat gradients of both groups are copied end to end, unless the first alone fills the buffer.
            padded = [flat * _replicas(dims) for flat in flats]
            return {"reduction": FLOAT32 * sum(padded) if padded[0] <= WHOLE_REDUCTION_ELEMENTS else 0}
        case 1, _:
            return {"reduction": FLOAT32 * bucket, "update": update}
        case 2, _:
            return {"reduction": (size + FLOAT32) * bucket, "update": update}
        case _:
            gathered = size * min(whole, LIVE_ELEMENTS)
            return {"gathered weights": gathered, "reduction": (size + FLOAT32) * bucket, "update": update}


def start_memory(groups: Groups, dims: ParallelDims) -> int:
    """Bytes held at once, at least, while a run starts.

    The stage is made whole and in float32, and a copy of that kept until the masters are filled from it.
    """
    initial = FLOAT32 * _elements(groups)
    lasting = lasting_memory(groups, dims, replica=0)
    is_made_early = dims.zero_stage == 3 or (dims.zero_stage == 1 and dims.precision == "bf16")
    return max(2 * initial, initial + lasting.total - (0 if is_made_early else lasting.gradients))


def _gradients(groups: Groups, dims: ParallelDims, replica: int) -> int:
    replicas, flats = _replicas(dims), flat_partitions(groups, dims)
    match dims.zero_stage, dims.precision:
        case 1, "bf16":
            return FLOAT32 * sum(flats) * replicas  # BF16_Optimizer adds up whole gradients in float32
        case 1, _:
            return FLOAT32 * _elements(groups)
        case 2, "fp32":
            # What arrives as one tensor is kept whole where a part of it belongs to this replica.
            cuts = zip(groups, flats, strict=True)
            return FLOAT32 * sum(n for group, flat in cuts for n in _touching(group, replica * flat, flat))
        case _:
            return FLOAT32 * sum(flats)


def _touching(group: Sequence[tuple[int, ...]], first: int, length: int) -> Iterator[int]:
    """Sizes of the gradients, laid end to end, that have an element in [first, first + length)."""
    end = 0
    for sizes in group:
        start, end = end, end + sum(sizes)
        if start < first + length and end > first:
            yield sum(sizes)


def _elements(groups: Groups) -> int:
    return sum(sum(sizes) for group in groups for sizes in group)


def _sub_groups(shares: Sequence[int]) -> Iterator[int]:
    """Sums of runs of shares; a run ends with the share that fills it."""
    total = 0
    for share in shares:
        total += share
        if total >= SUB_GROUP_ELEMENTS:
            yield total
            total = 0
    if total:
        yield total


def _replicas(dims: ParallelDims) -> int:
    assert dims.data is not None, "resolve(world_size) comes first"
    return dims.data * dims.context
