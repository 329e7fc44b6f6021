"""Our plan of a data set that exists only as numbers."""

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np

from bench import mixture
from data.manifest import Manifest
from data.pack import PackPlan, Position

ROWS_PER_SHARD = 256
DRAWN = 1_000_000
"""Sizes drawn for a simulated data set; a larger one repeats them."""
Step = list[list[np.ndarray]]
"""What a step trains on: samples of each microbatch of each rank."""


@dataclass(frozen=True, kw_only=True)
class SimulatedManifest:
    """What a plan asks of a manifest."""

    video_tokens: np.ndarray
    shard_of_row: np.ndarray
    hash: str
    folder: Path = Path("simulated")

    def __len__(self) -> int:
        return len(self.video_tokens)

    def keys(self, rows: list[int]) -> list[str]:
        return [f"sample{row}" for row in rows]


def simulated_plan(tokens_n: np.ndarray, *, budget: int, window: int, seed: int = 0) -> PackPlan:
    manifest = SimulatedManifest(
        video_tokens=tokens_n.astype(np.int32),
        shard_of_row=np.arange(len(tokens_n), dtype=np.int32) // ROWS_PER_SHARD,
        hash=hashlib.sha256(tokens_n.tobytes()).hexdigest(),
    )
    return PackPlan(cast(Manifest, manifest), seed=seed, tokens_per_pack=budget, window=window)


def ours(tokens_n: np.ndarray, *, ranks: int, packs_per_rank: int, budget: int, window: int, steps: int) -> list[Step]:
    """Steps as our plan makes and deals them: the only place that knows how."""
    plan = simulated_plan(tokens_n, budget=budget, window=window)
    position, planned = Position(), []
    for _ in range(steps):
        packs, position = plan.step(position, ranks * packs_per_rank)
        rows = [np.array(pack.rows) for pack in packs]
        planned.append([rows[rank::ranks] for rank in range(ranks)])
    return planned


@dataclass(frozen=True, kw_only=True)
class PlanTime:
    """What planning costs for one size of the data set."""

    rows: int
    start_s: float
    """Until the first step is known, once a run."""
    step_s: list[float]
    """Each further step, all of it within one epoch."""


def time_plan(rows: int, *, packs_per_step: int, budget: int, window: int, steps: int) -> PlanTime:
    tokens_n = np.resize(mixture.draw(min(rows, DRAWN)).tokens_n.astype(np.int32), rows)
    started = time.perf_counter()
    plan = simulated_plan(tokens_n, budget=budget, window=window)
    _, position = plan.step(Position(), packs_per_step)
    start_s = time.perf_counter() - started
    seconds = []
    for _ in range(steps):
        started = time.perf_counter()
        _, position = plan.step(position, packs_per_step)
        seconds.append(time.perf_counter() - started)
    return PlanTime(rows=rows, start_s=start_s, step_s=seconds)
