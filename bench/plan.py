"""Our plan of a data set that exists only as numbers."""

import hashlib
import time
from dataclasses import dataclass
from typing import cast

import numpy as np

from bench import mixture
from data.balance import PackCost
from data.latents import bucket_of
from data.manifest import Chunks, Manifest
from data.mixture import DataSet
from data.pack import PackPlan, Position

ROWS_PER_SHARD = 256
DRAWN = 1_000_000
"""Sizes drawn for a simulated data set; a larger one repeats them."""
Step = list[list[np.ndarray]]
"""What a step trains on: samples of each microbatch of each rank."""


class SimulatedManifest:
    """What a plan asks of a manifest of `rows` samples, whose sizes are those drawn, over and over."""

    folder = "simulated"

    def __init__(self, tokens_n: np.ndarray, rows: int) -> None:
        buckets = np.array([bucket_of(int(tokens), _modality(int(tokens))) for tokens in np.unique(tokens_n)])
        names, of_size = np.unique(buckets, return_inverse=True)
        bucket_n = of_size[np.searchsorted(np.unique(tokens_n), tokens_n)]
        self.order = np.argsort(bucket_n, kind="stable")
        self.tokens, self.rows = tokens_n[self.order].astype(np.int32), range(rows)
        self.bucket_names = tuple(names.tolist())
        self.outline = hashlib.sha256(tokens_n.tobytes() + str(rows).encode()).hexdigest()
        first = np.arange(0, rows, ROWS_PER_SHARD, dtype=np.int64)
        bucket = bucket_n[self.order][self._drawn(first)]
        most = np.maximum.reduceat(self.tokens, np.flatnonzero(np.diff(bucket_n[self.order], prepend=-1)))
        count = np.minimum(ROWS_PER_SHARD, rows - first)
        same = {"split": np.zeros_like(first), "shard": np.arange(len(first)), "least_tokens": np.ones_like(first)}
        self.chunks = Chunks(
            first=first, count=count, bucket=bucket, most_tokens=most[bucket], video_tokens=most[bucket] * count, **same
        )

    def __len__(self) -> int:
        return len(self.rows)

    def buckets(self) -> tuple[str, ...]:
        return self.bucket_names

    def column(self, name: str, rows: np.ndarray) -> np.ndarray:
        return self.tokens[self._drawn(rows)] if name == "video_tokens" else np.zeros(len(rows), dtype=np.int32)

    def _drawn(self, rows: np.ndarray) -> np.ndarray:
        """Which of the sizes a row has; neighbours in a bucket stay neighbours."""
        return rows * len(self.tokens) // len(self.rows)


def _modality(tokens: int) -> str:
    return "image" if tokens in {side * side for side in mixture.IMAGE_SIDES} else "video"


def simulated_plan(
    tokens_n: np.ndarray, *, budget: int, window: int, rows: int | None = None, cost: PackCost | None = None
) -> tuple[PackPlan, SimulatedManifest]:
    manifest = SimulatedManifest(tokens_n, rows or len(tokens_n))
    data = DataSet(manifests=(cast(Manifest, manifest),), weights=(1.0,))
    return PackPlan(data, seed=0, tokens_per_pack=budget, window=window, cost=cost), manifest


def ours(
    tokens_n: np.ndarray, *, ranks: int, packs_per_rank: int, budget: int, window: int, steps: int, cost: PackCost
) -> list[Step]:
    """Steps as our plan makes and deals them: the only place that knows how."""
    plan, manifest = simulated_plan(tokens_n, budget=budget, window=window, cost=cost)
    position, planned = Position(), []
    for _ in range(steps):
        packs, position = plan.step(position, ranks * packs_per_rank)
        rows = [manifest.order[list(pack.rows)] for pack in packs]
        planned.append([rows[rank * packs_per_rank : (rank + 1) * packs_per_rank] for rank in range(ranks)])
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
    tokens_n = mixture.draw(min(rows, DRAWN)).tokens_n
    cost = PackCost(linear=1.0, quadratic=mixture.LARGEST**-1.0)
    started = time.perf_counter()
    plan, _ = simulated_plan(tokens_n, budget=budget, window=window, rows=rows, cost=cost)
    _, position = plan.step(Position(), packs_per_step)
    start_s = time.perf_counter() - started
    seconds = []
    for _ in range(steps):
        started = time.perf_counter()
        _, position = plan.step(position, packs_per_step)
        seconds.append(time.perf_counter() - started)
    return PlanTime(rows=rows, start_s=start_s, step_s=seconds)
