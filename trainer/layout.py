"""Try a layout of any number of processes in this one: what each rank would hold.

python -m trainer.layout model=wan_14b world_size=1024 parallel.tensor=8 parallel.pipeline=8
python -m trainer.layout model=wan_14b world_size=1024 parallel.tensor=8 parallel.pipeline=8 data.tokens_per_pack=32768
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import hydra
from omegaconf import DictConfig

from model.dit import DiTConfig
from parallel.dims import ParallelDims
from parallel.dryrun import DryRun, RankReport, dry_run
from parallel.launch import Launch
from trainer.compose import to_dataclass, user_errors

log = logging.getLogger(__name__)
HEADINGS = (
    *("ranks", "blocks", "parameters", "replicated", "weights", "gradients", "masters", "moments", "average"),
    *("packs", "total"),
)


@dataclass(frozen=True, kw_only=True)
class PackSizes:
    """What a step reads, where it is known."""

    tokens_per_pack: int | None = None
    packs_per_step: int | None = None

    def __post_init__(self) -> None:
        for name in ("tokens_per_pack", "packs_per_step"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise ValueError(f"data.{name}={number} must be at least 1, or null")


@dataclass(frozen=True, kw_only=True)
class LayoutConfig:
    """Which model over how many processes, and how."""

    model: DiTConfig
    parallel: ParallelDims
    data: PackSizes
    world_size: int | None = None
    """None takes as many processes as the sizes in `parallel` multiply to."""

    def __post_init__(self) -> None:
        if self.world_size is not None and self.world_size < 1:
            raise ValueError(f"world_size={self.world_size} must be at least 1, or null")


def run(config: LayoutConfig) -> None:
    """Dry-run the layout and say what its ranks hold."""
    Launch.require_single("trainer.layout")
    data, dims = config.data, config.parallel
    found = dry_run(
        dims,
        config.model,
        world_size=config.world_size or dims.model_size * (dims.data or 1),
        tokens_per_pack=data.tokens_per_pack,
        packs_per_step=data.packs_per_step,
    )
    for line in [*head(found), *table(found), *remarks(found, data)]:
        log.info(line)


def head(found: DryRun) -> list[str]:
    """What was tried."""
    return [
        f"layout: {found.dims.describe()}, {found.world_size} in all",
        f"model: {found.parameters:,} parameters, each of them found once in the shards of a replica",
        "",
    ]


def table(found: DryRun) -> list[str]:
    """A line for each distinct stage: what one of its ranks holds at the height of a step."""
    rows = [HEADINGS, *(_cells(rank) for rank in found.ranks)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]


def remarks(found: DryRun, data: PackSizes) -> list[str]:
    """The fullest rank, and what the table leaves out."""
    rank, parameters = found.fullest, found.fullest.parameters
    fullest = (
        f"fullest: ranks {_range(rank.first_rank, rank.last_rank)}, {size(rank.total)} each: "
        f"{parameters.blocks:,} parameters in blocks, {parameters.conditioning:,} for conditioning, "
        f"{parameters.ends:,} at the ends"
    )
    lines = ["", fullest]
    if passing := {name: number for name, number in rank.passing.items() if number}:
        listed = ", ".join(f"{size(number)} {name}" for name, number in passing.items())
        lines.append(f"on top for a moment of each step, at most: {listed}")
    lines.append(f"while the run starts: {size(rank.start)} at once")
    if rank.activations is not None:
        lines.append(
            f"packs: an estimate of what packs of {data.tokens_per_pack:,} tokens keep for their backward pass"
            + ("" if data.packs_per_step else ", the pipeline full of them")
        )
    elif found.dims.precision == "fp32":
        lines.append("packs: estimated in bf16 only (parallel.precision=bf16)")
    else:
        lines.append("packs: not known without data.tokens_per_pack=...")
    if found.message_bytes is not None:
        lines.append(f"messages: {size(found.message_bytes)} a pack, from each stage to the next and back")
    return lines


def size(number: int) -> str:
    """Bytes in words, to three digits."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if number >= unit:
            value = number / unit
            return f"{value:.{max(0, 3 - len(str(int(value))))}f} {name}"
    return f"{number} B"


def _cells(rank: RankReport) -> Sequence[str]:
    held = rank.lasting
    kinds = (held.weights, held.gradients, held.masters, held.moments, held.average)
    return (
        _range(rank.first_rank, rank.last_rank),
        ",".join(_range(stage.first_block, stage.end_block - 1) for stage in rank.stages),
        f"{rank.parameters.total:,}",
        f"{rank.parameters.replicated:,}",
        *(size(number) for number in kinds),
        "?" if rank.activations is None else size(rank.activations),
        size(rank.total),
    )


def _range(first: int, last: int) -> str:
    return f"{first}" if first == last else f"{first}-{last}"


@user_errors
@hydra.main(config_path="../conf", config_name="layout", version_base="1.3")
@user_errors
def main(config: DictConfig) -> None:
    """Hydra's entry."""
    run(to_dataclass(LayoutConfig, config))


if __name__ == "__main__":
    main()
