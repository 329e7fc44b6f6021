"""Ways to share samples out over ranks that ours is compared with, and one score for all of them."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bench.plan import Step
from data.pack import best_fit
from model.dit import DiTConfig
from model.flops import training_flops

PADDED_BATCH = 8


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How many ranks and packs there are, and how large packs may be."""

    ranks: int = 64
    packs_per_rank: int = 4
    budget: int = 32_760
    window: int = 1024
    steps: int = 20

    @property
    def packs_per_step(self) -> int:
        return self.ranks * self.packs_per_rank


@dataclass(frozen=True, kw_only=True)
class Score:
    """How well steps use their ranks; one number a step. Padding inside a batch is paid for, a pack's end is not."""

    fill: list[float]
    """Tokens of samples over tokens that are computed or reserved."""
    balance: list[float]
    """FLOPs of all microbatches of a rank: mean over ranks / largest."""
    microbatch: list[float]
    """FLOPs of a microbatch: largest of the step / mean. A pipeline waits for it."""
    speed: list[float]
    """FLOPs that samples need over FLOPs that pass until the last rank is done: what is not lost."""


def token_packs(tokens_n: np.ndarray, setting: Setting, rng: np.random.Generator) -> list[Step]:
    """First fit by tokens in windows of shuffled samples; packs dealt in order."""
    order = rng.permutation(len(tokens_n))
    packs: list[np.ndarray] = []
    while len(packs) < setting.steps * setting.packs_per_step:
        rows, order = order[: setting.window], order[setting.window :]
        packs += [rows[pack] for pack in best_fit(tokens_n[rows], setting.budget)]
    return dealt(packs, setting)


def padded_batches(tokens_n: np.ndarray, setting: Setting, rng: np.random.Generator) -> list[Step]:
    """Shuffled batches of equally many samples, each padded to its longest."""
    batches = setting.steps * setting.packs_per_step
    rows = rng.permutation(len(tokens_n))[: batches * PADDED_BATCH]
    return dealt(np.split(rows, batches), setting)


def bucket_batches(tokens_n: np.ndarray, setting: Setting, rng: np.random.Generator) -> list[Step]:
    """A bucket a size, each with the batch size that fits the budget; whole batches, shuffled, dealt in order."""
    batches: list[np.ndarray] = []
    for size in np.unique(tokens_n):
        rows = rng.permutation(np.flatnonzero(tokens_n == size))
        batch = setting.budget // int(size)
        whole = len(rows) // batch
        batches += np.split(rows[: whole * batch], whole) if whole else []
    return dealt([batches[index] for index in rng.permutation(len(batches))], setting)


def dealt(packs: list[np.ndarray], setting: Setting) -> list[Step]:
    """Packs in order, one to each rank in turn."""
    count = setting.packs_per_step
    assert len(packs) >= setting.steps * count, f"{len(packs)} packs are too few for {setting}"
    steps = [packs[step * count : (step + 1) * count] for step in range(setting.steps)]
    return [[step[rank :: setting.ranks] for rank in range(setting.ranks)] for step in steps]


def sample_flops(config: DiTConfig) -> Callable[[int, int], int]:
    """FLOPs of training on one sample of so many video and text tokens."""

    def flops(video: int, text: int) -> int:
        return training_flops(config, video_tokens=[video], text_tokens=[text], rows=1)

    return flops


def score(steps: list[Step], tokens_n: np.ndarray, text_n: np.ndarray, config: DiTConfig, *, padded_to: int) -> Score:
    """`padded_to` is the pack's length, or 0 where batches are padded to their longest sample."""
    flops = sample_flops(config)
    needed_n = np.array([flops(int(v), int(c)) for v, c in zip(tokens_n, text_n, strict=True)], dtype=np.float64)
    result = Score(fill=[], balance=[], microbatch=[], speed=[])
    for step in steps:
        needed_rm = np.array([[needed_n[rows].sum() for rows in rank] for rank in step])
        if padded_to:
            spent_rm, room = needed_rm, padded_to * needed_rm.size
        else:
            longest_rm = [[(len(rows), tokens_n[rows].max(), text_n[rows].max()) for rows in rank] for rank in step]
            spent_rm = np.array([[n * float(flops(int(v), int(c))) for n, v, c in rank] for rank in longest_rm])
            room = sum(int(n * v) for rank in longest_rm for n, v, _ in rank)
        per_rank = spent_rm.sum(axis=1)
        result.fill.append(sum(int(tokens_n[rows].sum()) for rank in step for rows in rank) / room)
        result.balance.append(float(per_rank.mean() / per_rank.max()))
        result.microbatch.append(float(spent_rm.max() / spent_rm.mean()))
        result.speed.append(float(needed_rm.sum() / (per_rank.max() * len(step))))
    return result
