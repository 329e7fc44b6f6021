"""What training on a data set will be like: steps an epoch, fill, balance, and what is seldom or never seen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np

from data.balance import PackCost, imbalance
from data.manifest import BucketSize, Manifest
from data.mixture import DataSet, MixConfig
from data.pack import PackPlan, Position, best_fit, too_large

_WINDOW = 4096


@dataclass(frozen=True, kw_only=True)
class PackSettings:
    """How packs will be made; as in the config of the run."""

    tokens_per_pack: int
    packs_per_step: int = 1
    ranks: int = 1
    cost: PackCost
    seed: int = 0
    window: int = _WINDOW
    most_steps: int = 1000
    """Planned to foretell an epoch; a longer one is estimated from them."""

    def __post_init__(self) -> None:
        for name in ("tokens_per_pack", "packs_per_step", "ranks", "window", "most_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} {getattr(self, name)} must be at least 1")
        if self.packs_per_step % self.ranks:
            raise ValueError(
                f"--packs-per-step {self.packs_per_step} must be a multiple of --ranks {self.ranks}: "
                f"take {ceil(self.packs_per_step / self.ranks) * self.ranks}"
            )


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """Of one epoch."""

    packs: float
    steps: float
    fill: float
    """Of the tokens that packs can hold, the share they do."""
    imbalance_mean: float | None
    imbalance_max: float | None
    """Work of the busiest rank over the mean, of the steps planned; None where no step is whole."""
    is_estimate: bool

    def lines(self, settings: PackSettings) -> list[str]:
        about = "about " if self.is_estimate else ""
        steps = f"{about}{self.steps:,.1f} steps of {settings.packs_per_step} packs"
        lines = [
            f"epoch    {about}{self.packs:,.0f} packs of {settings.tokens_per_pack:,} tokens, {steps}",
            f"fill     {self.fill:.4f}",
        ]
        if self.imbalance_mean is not None and self.imbalance_max is not None:
            lines.append(
                f"balance  the busiest of {settings.ranks} ranks does {self.imbalance_mean:.4f} times the mean work "
                f"({self.imbalance_max:.4f} in the worst step)"
            )
        return lines


def foretell(manifest: Manifest, settings: PackSettings) -> Outlook | None:
    """Plan an epoch, or the beginning of one. None where no sample fits a pack; those that do not are left out."""
    large = sum(count for count, _, _ in too_large(manifest, settings.tokens_per_pack).values())
    if large == len(manifest):
        return None
    plan = PackPlan(
        DataSet.of(manifest),
        seed=settings.seed,
        tokens_per_pack=settings.tokens_per_pack,
        window=settings.window,
        # Only where it must be: the order depends on it.
        mix=MixConfig(max_tokens=settings.tokens_per_pack) if large else None,
        cost=settings.cost,
    )
    position, packs, tokens, samples = Position(), 0, 0, 0
    ratios: list[float] = []
    while position.epoch == 0 and position.step < settings.most_steps:
        planned, position = plan.step(position, settings.packs_per_step)
        own = [pack for pack in planned if pack.epoch == 0]
        packs, tokens = packs + len(own), tokens + sum(pack.video_tokens for pack in own)
        samples += sum(len(pack.rows) for pack in own)
        if len(own) == len(planned):
            ratios.append(imbalance([pack.cost for pack in planned], settings.ranks))
    is_estimate = position.epoch == 0
    whole = packs * (len(manifest) - large) / samples if is_estimate else packs
    return Outlook(
        packs=whole,
        steps=whole / settings.packs_per_step,
        fill=tokens / (packs * settings.tokens_per_pack),
        imbalance_mean=float(np.mean(ratios)) if ratios else None,
        imbalance_max=max(ratios, default=None),
        is_estimate=is_estimate,
    )


def foretell_clips(tokens: Sequence[int], settings: PackSettings) -> Outlook | None:
    """The same of samples that are not encoded yet; of balance nothing is said. None where no sample fits a pack."""
    sizes = np.array([count for count in tokens if count <= settings.tokens_per_pack], dtype=np.int64)
    if not len(sizes):
        return None
    windows = [sizes[start : start + settings.window] for start in range(0, len(sizes), settings.window)]
    packs = sum(len(best_fit(window, settings.tokens_per_pack)) for window in windows)
    return Outlook(
        packs=packs,
        steps=packs / settings.packs_per_step,
        fill=float(sizes.sum()) / (packs * settings.tokens_per_pack),
        imbalance_mean=None,
        imbalance_max=None,
        is_estimate=True,
    )


def starving(buckets: Mapping[str, BucketSize], steps: float, every: int) -> list[str]:
    """Buckets of which a sample comes less often than once in `every` steps, a line each."""
    lines = []
    for name, size in buckets.items():
        if size.samples * every < steps:
            lines.append(
                f"{name}: {size.samples} samples in an epoch of {steps:,.0f} steps, one every "
                f"{steps / size.samples:,.0f} steps: raise its weight (data.mix.weights.{name}), or add such clips"
            )
    return lines
