"""Whether every layout gives the same run, on this machine and for this model.

    python -m trainer.parity
    python -m trainer.parity model=demo 'layouts=["tensor=2", "tensor=2 pipeline=2", "data=2 zero_stage=3"]'

Each layout is compared with plain torch in one process: loss and every gradient in float64 under Megatron's schedule,
then loss, global norm and weights over some steps with DeepSpeed in float32, then (but for ZeRO-0) the first gradient
in bf16. It starts the processes it needs, on this machine.
"""

import json
import logging
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import hydra
import torch
from omegaconf import DictConfig

from model.dit import DiTConfig
from parallel.dims import ParallelDims
from parallel.launch import Launch
from parallel.legality import Workload, require_legal
from parallel.optim import AdamWConfig
from parallel.parity import (
    BF16_TOLERANCE,
    GRADIENT_TOLERANCE,
    TRAINING_TOLERANCE,
    Distance,
    measure_bf16,
    measure_gradients,
    measure_training,
    write_references,
)
from parallel.reference import Trial
from parallel.worlds import WorldFailed, Worlds
from trainer.compose import parse_layout, to_dataclass, user_errors

log = logging.getLogger(__name__)
EXIT_DIFFERENT = 1
TOLERANCES = {
    "loss": GRADIENT_TOLERANCE,
    "gradient": GRADIENT_TOLERANCE,
    "loss in training": TRAINING_TOLERANCE,
    "global norm": TRAINING_TOLERANCE,
    "weight": TRAINING_TOLERANCE,
    "bf16": BF16_TOLERANCE,
}
"""Columns of the table, and what is allowed in each."""


@dataclass(frozen=True, kw_only=True)
class ParityConfig:
    """Which layouts of which model, and how long each is compared."""

    model: DiTConfig
    optim: AdamWConfig
    layouts: tuple[str, ...]
    """Each a list of settings of `parallel`, such as "tensor=2 pipeline=2"."""
    tokens_per_pack: int
    packs_per_step: int
    microbatches: tuple[int, ...]
    """Packs on each replica for which gradients are compared."""
    steps: int
    """Of training in float32; 0 skips that."""
    bf16_seeds: int
    """Runs in bf16 whose median counts; 0 skips that."""
    lr: float
    report: str | None = None
    """A file for the table in JSON."""
    timeout_s: float = 600.0

    def __post_init__(self) -> None:
        for name, example in (("layouts", '["tensor=2"]'), ("microbatches", "[1,2,3]")):
            if not getattr(self, name):
                raise ValueError(f"{name}: none are given, such as {name}={example}")
        if min(self.microbatches) < 1:
            raise ValueError(f"microbatches={list(self.microbatches)}: each must be at least 1")
        for name, least in (("tokens_per_pack", 1), ("packs_per_step", 1), ("steps", 0), ("bf16_seeds", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}")
        for name in ("lr", "timeout_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} must be above 0")
        if self.report is not None and not Path(self.report).absolute().parent.is_dir():
            raise ValueError(f"report={self.report}: there is no such folder to write it into")


@dataclass(frozen=True, kw_only=True)
class Row:
    """How one layout compares."""

    layout: str
    distances: dict[str, Distance]
    """By the names of `TOLERANCES`."""
    verdict: str
    threads: int = 0
    files: int = 0
    """What rank 0 holds after the layout's groups are gone."""

    @property
    def is_equal(self) -> bool:
        return self.verdict == "equal"


class Comparison:
    """Puts layouts through the same trial, one after another."""

    def __init__(self, config: ParityConfig, folder: str, worlds: Worlds) -> None:
        self.config, self.folder, self.worlds = config, folder, worlds
        self.trial = Trial(
            model=config.model,
            tokens_per_pack=config.tokens_per_pack,
            packs_per_step=config.packs_per_step,
            steps=config.steps,
            optim=config.optim,
            lr=config.lr,
        )
        self._bf16_single: float | None = None
        self._threads = self._files = 0

    def write_references(self, layouts: list[ParallelDims]) -> None:
        """What the layouts are compared with."""
        replicas = {dims.data or 1 for dims in layouts}
        counts = sorted({number * data for number in self.config.microbatches for data in replicas})
        self.worlds.run(1, write_references, Path(self.folder), self.trial, counts, self.config.bf16_seeds)

    def row(self, layout: str, dims: ParallelDims) -> Row:
        """Compare one layout; raises WorldFailed where it cannot run."""
        dims = replace(dims, start_timeout_s=self.config.timeout_s)
        wide = replace(dims, precision="fp32")
        legal = [n for n in self.config.microbatches if dims.virtual_pipeline == 1 or n >= dims.pipeline]
        found = dict(self._measure(dims, measure_gradients, wide, legal))
        if self.config.steps:
            found |= self._measure(dims, measure_training, wide)
        if self.config.bf16_seeds and dims.zero_stage > 0:
            found["bf16"] = Distance(value=self._bf16_ratio(dims), what="x one process")
        wrong = [name for name, distance in found.items() if not distance.value <= TOLERANCES[name]]
        verdict = f"DIFFERS: {wrong[0]} {found[wrong[0]]}" if wrong else "equal"
        return Row(layout=layout, distances=found, verdict=verdict, threads=self._threads, files=self._files)

    def _bf16_ratio(self, dims: ParallelDims) -> float:
        """Distance from float64 in bf16, over that of a single process."""
        if self._bf16_single is None:
            self._bf16_single = self._bf16(ParallelDims())
        return self._bf16(dims) / self._bf16_single

    def _bf16(self, dims: ParallelDims) -> float:
        return statistics.median(self._measure(dims, measure_bf16, dims, self.config.bf16_seeds))

    def _measure(self, dims: ParallelDims, function: Any, wide: ParallelDims, *arguments: Any) -> Any:
        outcomes = self.worlds.run(world_size(dims), function, wide, self.folder, self.trial, *arguments)
        self._threads, self._files = outcomes[0].threads, outcomes[0].files
        return outcomes[0].value


def world_size(dims: ParallelDims) -> int:
    """Processes a layout takes; it has one replica where it does not say."""
    return dims.model_size * (dims.data or 1)


def legal_layouts(config: ParityConfig) -> dict[str, ParallelDims]:
    """The layouts by their text; ValueError for the first that cannot be."""
    model = config.model
    work = Workload(
        num_heads=model.num_heads,
        ffn_dim=model.ffn_dim,
        num_blocks=model.num_blocks,
        tokens_per_pack=config.tokens_per_pack,
        packs_per_step=config.packs_per_step,
    )
    layouts = {text: parse_layout(text) for text in config.layouts}
    for text, dims in layouts.items():
        try:
            require_legal(replace(dims, precision="fp32"), work, world_size(dims))
        except ValueError as error:
            raise ValueError(f"layouts: {text!r}: {error}") from error
        if dims.virtual_pipeline > 1 and max(config.microbatches) < dims.pipeline:
            raise ValueError(
                f"layouts: {text!r} needs {dims.pipeline} packs on each replica, but microbatches is "
                f"{list(config.microbatches)}: add {dims.pipeline} to it"
            )
    return layouts


def open_worlds(config: ParityConfig, needed: int) -> Worlds:
    """Processes for the largest layout."""
    available = torch.cuda.device_count() if torch.cuda.is_available() else needed
    if needed > available:
        raise ValueError(
            f"layouts: the largest takes {needed} processes, but {available} GPUs are here: leave that layout out, or "
            "compare on the CPU with CUDA_VISIBLE_DEVICES= python -m trainer.parity"
        )
    return Worlds(needed, timeout_s=config.timeout_s)


def compare(config: ParityConfig, layouts: dict[str, ParallelDims]) -> Iterator[Row]:
    """Rows as they are found; a layout that fails ends the processes, and the next gets new ones."""
    needed = max(world_size(dims) for dims in layouts.values())
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="tessera-parity-"))
        comparison = Comparison(config, folder, open_worlds(config, needed))
        stack.callback(lambda: comparison.worlds.close())
        comparison.write_references(list(layouts.values()))
        for text, dims in layouts.items():
            try:
                yield comparison.row(text, dims)
            except WorldFailed as failure:
                log.debug("%s", failure)
                yield Row(layout=text, distances={}, verdict=f"FAILED: {str(failure).strip().splitlines()[-1]}")
                comparison.worlds = open_worlds(config, needed)


def run(config: ParityConfig) -> int:
    """Compare and print; returns the exit code."""
    Launch.require_single("trainer.parity")
    layouts = legal_layouts(config)
    widths = [max(24, *map(len, config.layouts)), *(max(8, len(name)) for name in TOLERANCES), 7, 0]
    print(_line(["layout", *TOLERANCES, "verdict", "worst gradient; worst weight"], widths), flush=True)
    rows = []
    for row in compare(config, layouts):
        rows.append(row)
        print(_line(_cells(row), widths), flush=True)
    if config.report is not None:
        Path(config.report).write_text(json.dumps([asdict(row) for row in rows], indent=1), encoding="utf-8")
    different = [row.layout for row in rows if not row.is_equal]
    print(f"{len(rows) - len(different)} of {len(rows)} layouts give the same run")
    return EXIT_DIFFERENT if different else 0


def _cells(row: Row) -> list[str]:
    found = row.distances
    numbers = [f"{found[name].value:.2g}" if name in found else "" for name in TOLERANCES]
    worst = "; ".join(found[name].what for name in ("gradient", "weight") if name in found)
    return [row.layout or "one process", *numbers, row.verdict, worst]


def _line(cells: list[str], widths: list[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


@user_errors
@hydra.main(config_path="../conf", config_name="parity", version_base="1.3")
@user_errors
def main(config: DictConfig) -> None:
    sys.exit(run(to_dataclass(ParityConfig, config)))


if __name__ == "__main__":
    main()
