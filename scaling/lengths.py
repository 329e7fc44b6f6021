"""What the steps of a run will hold, and so what they cost: walked through the plan of its data before it starts.

Video tokens are exact. How long the captions drawn are, and how many noise levels a sample has, is not in a manifest:
both are taken from the first samples, as training would draw them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from data.mixture import DataSet
from data.pack import PlannedPack, Position
from data.sample_reader import SampleReader
from model.dit import DiTConfig
from model.flops import TRAINING_FACTOR, PackSums, flops_of
from trainer.batch import PackLayout, PackRecipe, build_microbatch
from trainer.build import open_shards
from trainer.config import TrainConfig
from trainer.online_plan import with_plan

_CHUNK_STEPS = 128
_MOST_STEPS = 4096
"""Walked at most; longer runs go on as these did on average."""
_SAMPLES_READ = 256
_KINDS = ("video", "text", "video_pairs", "text_pairs", "rows")


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """What is drawn for a sample, over what the manifest knows of it."""

    text: float
    """Caption tokens over those of its longest caption."""
    text_pairs: float
    rows: float
    """Conditioning rows of a sample."""


class StepLengths:
    """Sums over the packs of each step of a run, as many as are asked for."""

    def __init__(self, config: TrainConfig) -> None:
        """ValueError where the shards are not there or the model does not fit them."""
        shards, self._plan = open_shards(with_plan(config))
        self._packs_per_step, self._pad_to = config.data.packs_per_step, config.text.pad_to
        self._position = Position()
        self._table = np.empty((0, len(_KINDS)))
        data = self._plan.plans[-1].data
        self.unique_tokens = sum(int(manifest.chunks.video_tokens.sum()) for manifest in data.manifests)
        samples = sum(len(manifest) for manifest in data.manifests)
        self._tokens_per_sample = self.unique_tokens / samples
        self._heldout_samples = len(shards.manifests[0].select("heldout"))
        self._drawn = self._draw(config, shards)

    def steps_for(self, model: DiTConfig, flops: float) -> int:
        """The number of steps whose training FLOPs come nearest to `flops`."""
        ends = self._until(lambda: np.cumsum(self._flops(model)), flops)
        return max(self._nearest(ends, flops), 1)

    def steps_for_tokens(self, tokens: float) -> int:
        """The number of steps whose video tokens come nearest to `tokens`."""
        ends = self._until(lambda: np.cumsum(self._table[:, 0]), tokens)
        return max(self._nearest(ends, tokens), 1)

    def tokens(self, steps: int) -> float:
        """Video tokens of the first `steps` steps."""
        self._walk_to(steps)
        return self._extended(self._table[:, 0], steps)

    def flops(self, model: DiTConfig, steps: int) -> float:
        """Training FLOPs of the first `steps` steps; recomputation is not counted."""
        self._walk_to(steps)
        return self._extended(self._flops(model), steps)

    def evaluation_tokens(self, config: TrainConfig) -> float:
        """Video tokens that one evaluation predicts, about."""
        wanted = config.evaluation
        samples = min(wanted.max_samples, self._heldout_samples) + wanted.train_samples
        return samples * wanted.levels * self._tokens_per_sample

    def _until(self, ends_of: Callable[[], np.ndarray], total: float) -> np.ndarray:
        self._walk_to(_CHUNK_STEPS)
        while ends_of()[-1] < total and len(self._table) < _MOST_STEPS:
            self._walk_to(len(self._table) + _CHUNK_STEPS)
        return ends_of()

    @staticmethod
    def _nearest(ends: np.ndarray, total: float) -> int:
        if total > ends[-1]:
            return round(total / ends[-1] * len(ends))
        return int(np.abs(ends - total).argmin()) + 1

    @staticmethod
    def _extended(values: np.ndarray, steps: int) -> float:
        return float(values[:steps].sum()) + max(steps - len(values), 0) * float(values.mean())

    def _flops(self, model: DiTConfig) -> np.ndarray:
        """Of each step walked; the formula is linear in the sums, so it takes arrays."""
        sums = PackSums(**dict(zip(_KINDS, self._table.T, strict=True)))  # type: ignore[arg-type]
        return np.asarray(TRAINING_FACTOR * flops_of(model, sums))

    def _walk_to(self, steps: int) -> None:
        planned: list[list[PlannedPack]] = []
        while len(self._table) + len(planned) < min(steps, _MOST_STEPS):
            packs, self._position = self._plan.step(self._position, self._packs_per_step)
            planned.append(packs)
        if planned:
            self._table = np.concatenate([self._table, self._sums(planned)])

    def _sums(self, planned: list[list[PlannedPack]]) -> np.ndarray:
        counts = [sum(len(pack.rows) for pack in packs) for packs in planned]
        rows = [row for packs in planned for pack in packs for row in pack.rows]
        data = self._plan.plans[0].data
        video = data.column("video_tokens", rows).astype(np.float64)
        longest = data.column("text_tokens", rows).astype(np.float64)
        if self._pad_to is not None:
            longest = np.full_like(longest, self._pad_to)
        drawn = self._drawn
        columns = np.stack(
            [video, longest * drawn.text, video**2, video * longest * drawn.text_pairs, np.full_like(video, drawn.rows)]
        )
        return np.add.reduceat(columns, np.cumsum([0, *counts[:-1]]), axis=1).T

    def _draw(self, config: TrainConfig, shards: DataSet) -> Drawn:
        """Draw for the first samples what training would."""
        data = self._plan.plans[0].data
        recipe = PackRecipe(
            flow=config.flow,
            seed=config.seed,
            layout=PackLayout.of(config),
            null_text=shards.manifests[0].null_text(),
            patches=False,
            targets=False,
        )
        reader, position, read = SampleReader(data, latents=False), Position(), 0
        found = np.zeros(5)
        while read < _SAMPLES_READ and position.epoch == 0:
            packs, position = self._plan.step(position, self._packs_per_step)
            for pack in packs:
                samples = [reader.read(row) for row in pack.rows]
                inputs = build_microbatch(samples, recipe, visits=pack.visits).inputs
                number, longest = len(samples), data.column("text_tokens", pack.rows)
                longest = longest if self._pad_to is None else np.full_like(longest, self._pad_to)
                video, text = (np.array(part[:number]) for part in (inputs.segment_lengths, inputs.text_lengths))
                found += [text.sum(), longest.sum(), (video * text).sum(), (video * longest).sum(), len(inputs.time_R)]
                read += number
        reader.close()
        return Drawn(text=found[0] / found[1], text_pairs=found[2] / found[3], rows=found[4] / read)
