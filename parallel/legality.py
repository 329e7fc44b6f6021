"""Which layouts are legal, and why not. Light: it imports no engine.

`RULES` is the table; `require_legal` refuses a layout before any process group exists, with the nearest legal one.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from math import log2

from parallel.dims import ParallelDims, neighbours, parts


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What a layout has to fit. Sizes of packs are None where nothing is trained."""

    num_heads: int
    ffn_dim: int
    num_blocks: int
    tokens_per_pack: int | None = None
    packs_per_step: int | None = None


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One line of the table."""

    law: str
    """What has to hold."""
    why: str
    broken: Callable[[ParallelDims, Workload], str | None]
    """What is wrong with resolved dims, with the arithmetic; None where the law holds."""


def _heads(dims: ParallelDims, work: Workload) -> str | None:
    shares = dims.tensor * dims.context
    if work.num_heads % shares == 0:
        return None
    split = f"parallel.tensor={dims.tensor}" + (f" x context={dims.context}" if dims.context > 1 else "")
    return f"{split} does not divide model.num_heads={work.num_heads} ({parts([shares], work.num_heads)})"


def _ffn(dims: ParallelDims, work: Workload) -> str | None:
    if work.ffn_dim % dims.tensor == 0:
        return None
    split = parts([dims.tensor], work.ffn_dim)
    return f"parallel.tensor={dims.tensor} does not divide model.ffn_dim={work.ffn_dim} ({split})"


def _blocks(dims: ParallelDims, work: Workload) -> str | None:
    stages = dims.pipeline * dims.virtual_pipeline
    if stages <= work.num_blocks:
        return None
    product_ = f"{stages}" if dims.virtual_pipeline == 1 else f"{dims.pipeline} x {dims.virtual_pipeline} = {stages}"
    return (
        f"parallel.pipeline={dims.pipeline}"
        + (f" x virtual_pipeline={dims.virtual_pipeline}" if dims.virtual_pipeline > 1 else "")
        + f" makes {product_} stages, which need a block each, but model.num_blocks is {work.num_blocks}"
    )


def _uneven(dims: ParallelDims, work: Workload) -> str | None:
    counts, stages = dims.blocks_per_stage, dims.pipeline * dims.virtual_pipeline
    if counts is None or (len(counts) == stages and sum(counts) == work.num_blocks):
        return None
    return (
        f"parallel.blocks_per_stage={list(counts)} gives {sum(counts)} blocks to {len(counts)} stages, but the model "
        f"has {work.num_blocks} blocks and pipeline x virtual_pipeline = {dims.pipeline} x {dims.virtual_pipeline} = "
        f"{stages} stages"
    )


def _tokens(dims: ParallelDims, work: Workload) -> str | None:
    tokens, shards = work.tokens_per_pack, dims.stream_shards
    if tokens is None or (tokens >= 1 and tokens % shards == 0):
        return None
    below, above = neighbours(tokens, shards)
    ranks = f"context={dims.context}" + (f" x tensor={dims.tensor}" if dims.shards_sequence else "")
    return (
        f"data.tokens_per_pack={tokens} cannot be cut into {shards} equal shards (parallel.{ranks}): use {below} or "
        f"{above} tokens"
    )


def _packs(dims: ParallelDims, work: Workload) -> str | None:
    packs, data = work.packs_per_step, dims.data
    assert data is not None, "resolve(world_size) comes first"
    if packs is None or (packs >= 1 and packs % data == 0):
        return None
    below, above = neighbours(packs, data)
    return (
        f"data.packs_per_step={packs} cannot be shared by parallel.data={data} replicas ({parts([data], packs)}): use "
        f"{below} or {above} packs"
    )


def _pipeline_zero(dims: ParallelDims, work: Workload) -> str | None:
    if dims.pipeline == 1 or dims.zero_stage == 1:
        return None
    return f"parallel.pipeline={dims.pipeline} goes with parallel.zero_stage=1, not {dims.zero_stage}"


def _precision(dims: ParallelDims, work: Workload) -> str | None:
    if dims.precision != "bf16" or dims.zero_stage >= 1:
        return None
    return "parallel.precision=bf16 needs parallel.zero_stage=1 or more, not 0"


def _virtual(dims: ParallelDims, work: Workload) -> str | None:
    if dims.virtual_pipeline == 1 or dims.pipeline > 1:
        return None
    return f"parallel.virtual_pipeline={dims.virtual_pipeline} interleaves stages, but parallel.pipeline is 1"


def _virtual_packs(dims: ParallelDims, work: Workload) -> str | None:
    if dims.virtual_pipeline == 1 or work.packs_per_step is None:
        return None
    assert dims.data is not None
    mine = work.packs_per_step // dims.data
    if mine >= dims.pipeline:
        return None
    return (
        f"parallel.virtual_pipeline={dims.virtual_pipeline} needs at least parallel.pipeline={dims.pipeline} packs on "
        f"each replica, but data.packs_per_step={work.packs_per_step} / parallel.data={dims.data} = {mine}: use "
        f"{dims.pipeline * dims.data} packs"
    )


RULES: tuple[Rule, ...] = (
    Rule(
        law="`tensor x context` divides `model.num_heads`",
        why="each rank attends with whole heads of its own",
        broken=_heads,
    ),
    Rule(law="`tensor` divides `model.ffn_dim`", why="the MLP is cut by columns, then by rows", broken=_ffn),
    Rule(
        law="`pipeline x virtual_pipeline` is at most `model.num_blocks`",
        why="every stage holds a block",
        broken=_blocks,
    ),
    Rule(
        law="`blocks_per_stage` has `pipeline x virtual_pipeline` entries that sum to `model.num_blocks`",
        why="every block is on one stage",
        broken=_uneven,
    ),
    Rule(
        law="`context` (`x tensor` with `sequence`) divides `data.tokens_per_pack`",
        why="messages have one shape",
        broken=_tokens,
    ),
    Rule(law="`data` divides `data.packs_per_step`", why="replicas take equal turns", broken=_packs),
    Rule(
        law="`pipeline > 1` means `zero_stage = 1`",
        why="ZeRO-2 and 3 cut gradients up during each backward, before the stages' sums; ZeRO-0 in float32 keeps "
        "whole optimizer states, which a pipeline exists to avoid",
        broken=_pipeline_zero,
    ),
    Rule(
        law="`precision = bf16` means `zero_stage >= 1`",
        why="the float32 master weights belong to ZeRO",
        broken=_precision,
    ),
    Rule(
        law="`virtual_pipeline > 1` means `pipeline > 1`",
        why="there is nothing to interleave on one stage",
        broken=_virtual,
    ),
    Rule(
        law="`virtual_pipeline > 1` means `packs_per_step / data >= pipeline`",
        why="packs go through each of a rank's stages in groups of at least `pipeline`",
        broken=_virtual_packs,
    ),
)


def require_legal(dims: ParallelDims, work: Workload, world_size: int) -> ParallelDims:
    """The dims with `data` filled in; ValueError, with the nearest legal layout, where they break a rule."""
    try:
        resolved = dims.resolve(world_size)
    except ValueError as error:
        if nearest := nearest_legal(dims, work, world_size):
            reason = str(error).rstrip(".")
            raise ValueError(f"{reason}; {_suggestion(dims, nearest, world_size)}.") from None
        raise
    problem = _broken(resolved, work)
    if problem is None:
        return resolved
    nearest = nearest_legal(replace(dims, precision=resolved.precision), work, world_size)
    raise ValueError(f"{problem}; {_suggestion(dims, nearest, world_size)}.")


def _broken(resolved: ParallelDims, work: Workload) -> str | None:
    return next(filter(None, (rule.broken(resolved, work) for rule in RULES)), None)


def nearest_legal(dims: ParallelDims, work: Workload, world_size: int) -> ParallelDims | None:
    """The legal layout on as many processes that changes least; None where there is none."""
    legal = (choice for choice in _choices(dims, work, world_size) if _broken(choice, work) is None)
    return min(legal, key=lambda choice: _distance(dims, choice), default=None)


def _choices(dims: ParallelDims, work: Workload, world_size: int) -> Iterator[ParallelDims]:
    divisors = [n for n in range(1, world_size + 1) if world_size % n == 0]
    heads = [n for n in divisors if work.num_heads % n == 0]
    depths = [n for n in divisors if n <= work.num_blocks]
    virtual = sorted({1, 2, dims.virtual_pipeline})
    zero = sorted({1, dims.zero_stage})
    counts = {None, dims.blocks_per_stage}
    for tensor, context, pipeline, v, stage, uneven in product(heads, heads, depths, virtual, zero, counts):
        size = tensor * context * pipeline
        if world_size % size == 0:
            yield replace(
                dims,
                tensor=tensor,
                context=context,
                pipeline=pipeline,
                virtual_pipeline=v,
                blocks_per_stage=uneven,
                data=world_size // size,
                zero_stage=stage,
            )


def _distance(wanted: ParallelDims, choice: ParallelDims) -> float:
    """How much a user would have to change: powers of two of each size, and a little for each setting touched."""
    sizes = ("tensor", "context", "pipeline", "virtual_pipeline")
    far = sum(abs(log2(getattr(wanted, name) / getattr(choice, name))) for name in sizes)
    return far + 0.1 * len(_changes(wanted, choice))


def _changes(wanted: ParallelDims, choice: ParallelDims) -> list[str]:
    changes = []
    for name in ("tensor", "context", "pipeline", "virtual_pipeline", "blocks_per_stage", "data", "zero_stage"):
        before, after = getattr(wanted, name), getattr(choice, name)
        if before != after and not (name == "data" and before is None):
            changes.append(f"parallel.{name}={'null' if after is None else after}")
    return changes


def _suggestion(dims: ParallelDims, nearest: ParallelDims | None, world_size: int) -> str:
    if nearest is None:
        return f"no layout of {world_size} processes is legal for this model and these packs"
    return f"the nearest legal layout of {world_size} processes is {' '.join(_changes(dims, nearest))}"


def table() -> str:
    """The rules in Markdown."""
    return "\n".join(["| rule | because |", "|---|---|", *(f"| {rule.law} | {rule.why} |" for rule in RULES)])
