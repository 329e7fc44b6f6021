"""What training on a data set will be like: its buckets, steps an epoch, fill, balance, what is seldom seen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

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
        # Ranks first: without a number of packs there is one for each of them.
        for name in ("tokens_per_pack", "ranks", "packs_per_step", "window", "most_steps"):
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
        elif self.steps < 1:
            lines.append(
                f"balance  no whole step is in an epoch: it has {about}{self.packs:,.0f} packs, and a step takes "
                f"{settings.packs_per_step} (--packs-per-step)"
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


_BAR = 30
_FONT, _ROW, _WIDTH, _MARGIN = 16, 28, 1100, 24
_COLUMNS = {"samples": 260, "tokens": 680}
"""Where the two sets of bars begin, in pixels."""
_LONGEST_BAR = 300
_COLOURS = {"image": "#d97706", "video": "#2563eb"}
_INK, _PAPER = "#111827", "#ffffff"


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """Buckets by name, in their order."""

    buckets: Mapping[str, BucketSize]

    @property
    def samples(self) -> int:
        return sum(size.samples for size in self.buckets.values())

    @property
    def tokens(self) -> int:
        return sum(size.tokens for size in self.buckets.values())

    def lines(self) -> list[str]:
        """A table with a bar for each bucket's share of the tokens."""
        lines = [f"{'bucket':<22}{'samples':>10}{'tokens':>14}{'shards':>8}  share of the tokens"]
        most = max((size.tokens for size in self.buckets.values()), default=1)
        for name, size in self.buckets.items():
            bar = "#" * max(1, round(_BAR * size.tokens / most))
            share = f"{size.tokens / self.tokens:6.1%}"
            lines.append(f"{name:<22}{size.samples:>10,}{size.tokens:>14,}{size.shards:>8,}  {share} {bar}")
        return lines

    def save_picture(self, path: Path, title: str) -> None:
        """A PNG: for each bucket its share of the samples, and of the tokens."""
        height = 2 * _MARGIN + _ROW * (len(self.buckets) + 3)
        image = Image.new("RGB", (_WIDTH, height), _PAPER)
        draw, font = ImageDraw.Draw(image), ImageFont.load_default(size=_FONT)
        draw.text((_MARGIN, _MARGIN), title, fill=_INK, font=font)
        total = {"samples": self.samples, "tokens": self.tokens}
        for what, left in _COLUMNS.items():
            draw.text((left, _MARGIN + _ROW), f"{total[what]:,} {what}", fill=_INK, font=font)
            counts = {name: size.samples if what == "samples" else size.tokens for name, size in self.buckets.items()}
            most = max(counts.values(), default=1)
            for number, (name, count) in enumerate(counts.items()):
                top = _MARGIN + _ROW * (number + 2)
                long = left + max(2, round(_LONGEST_BAR * count / most))
                draw.rectangle((left, top, long, top + _ROW - 8), fill=_COLOURS[name.partition("-")[0]])
                draw.text((long + 6, top), f"{count / total[what]:.1%}", fill=_INK, font=font)
        for number, name in enumerate(self.buckets):
            draw.text((_MARGIN, _MARGIN + _ROW * (number + 2)), name, fill=_INK, font=font)
        image.save(path, "PNG")
