"""Held-out loss on fixed clips, fixed noise and stratified noise levels, and what captions are worth.

Shapes: S held-out samples, V noise levels.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data.loader import Sample
from data.manifest import Manifest
from data.sample_reader import SampleReader
from diffusion.timesteps import stratified_levels
from model.packed import PackedInputs
from trainer.batch import EvaluationItem, Microbatch, PackLayout, build_evaluation_microbatch, fill_packs
from trainer.config import TrainConfig

Predict = Callable[[list[PackedInputs]], list[Tensor]]
_BOOTSTRAPS = 2000
_PACKS_AT_ONCE = 32
"""Packs in memory together; enough to keep a pipeline busy."""
MIN_SOURCES = 4
"""With fewer, over one bootstrap draw in twenty is of a single source, which bounds nothing."""


@dataclass(frozen=True, kw_only=True)
class EvaluationSet:
    """Everything a held-out loss depends on beside the weights; the same for every run and every layout."""

    samples: list[Sample]
    levels: tuple[float, ...]
    """Noise levels t, one stratum each; all weigh the same."""
    layout: PackLayout
    null_text: Tensor
    caption_kind: str
    seed: int = 0

    def packs(self, text_of: Sequence[int] | None = None) -> list[list[EvaluationItem]]:
        """All (sample, level) pairs by pack; `text_of[s]` is the sample whose caption sample s is given."""
        items = [
            EvaluationItem(sample=sample, level=level, text_from=self.samples[text_of[s]] if text_of else sample)
            for s, sample in enumerate(self.samples)
            for level in self.levels
        ]
        tokens = [item.sample.video_tokens for item in items]
        return [[items[i] for i in pack] for pack in fill_packs(tokens, self.layout.tokens_per_pack)]

    def by_source(self, values_S: np.ndarray) -> dict[str, list[float]]:
        """A value of each sample, under its source: runs that have the same sources can be paired."""
        found: dict[str, list[float]] = {}
        for sample, value in zip(self.samples, values_S.tolist(), strict=True):
            found.setdefault(sample.source, []).append(value)
        return found

    def microbatch(self, items: list[EvaluationItem]) -> Microbatch:
        """Inputs and targets of one pack."""
        return build_evaluation_microbatch(
            items,
            self.layout,
            seed=self.seed,
            null_text=self.null_text,
            caption_kind=self.caption_kind,
        )


def heldout_set(config: TrainConfig, manifest: Manifest, *, max_samples: int, levels: int) -> EvaluationSet | None:
    """Up to `max_samples` held-out samples, spread over all sources; None where nothing is held out."""
    if max_samples < 1:
        raise ValueError(f"max_samples={max_samples} must be at least 1 to evaluate anything")
    heldout = manifest.select("heldout")
    if len(heldout) == 0:
        return None
    return _evaluation_set(config, manifest, heldout_rows(heldout, max_samples), levels)


def trained_set(config: TrainConfig, manifest: Manifest, *, max_samples: int, levels: int) -> EvaluationSet:
    """Up to `max_samples` samples that are trained on, evenly from all: how far they lie below the held-out ones."""
    chunks = manifest.select("train").chunks
    ends = np.cumsum(chunks.count)
    assert len(ends) and max_samples > 0, "a run without training samples is refused before"
    places = np.unique(np.linspace(0, ends[-1] - 1, min(max_samples, ends[-1])).round().astype(np.int64))
    chunk = np.searchsorted(ends, places, side="right")
    rows = chunks.first[chunk] + places - ends[chunk] + chunks.count[chunk]
    return _evaluation_set(config, manifest, rows.tolist(), levels)


def _evaluation_set(config: TrainConfig, manifest: Manifest, rows: Sequence[int], levels: int) -> EvaluationSet:
    reader = SampleReader(manifest)
    samples = [reader.read(row) for row in rows]
    reader.close()
    return EvaluationSet(
        samples=samples,
        levels=tuple(stratified_levels(levels).tolist()),
        layout=PackLayout.of(config),
        null_text=manifest.null_text(),
        caption_kind=config.evaluation.caption_kind,
    )


def heldout_rows(heldout: Manifest, max_samples: int) -> list[int]:
    """Rows of up to `max_samples` held-out samples, spread over all sources."""
    chosen = spread_over_sources(heldout.column("source").tolist(), max_samples)
    return heldout.row_numbers[chosen].tolist()


def spread_over_sources(sources: Sequence[str], count: int) -> list[int]:
    """Up to `count` rows in order: the first of every source, then the second, and so on; evenly where not all fit."""
    rounds: list[list[int]] = []
    seen: Counter[str] = Counter()
    for row, source in enumerate(sources):
        if seen[source] == len(rounds):
            rounds.append([])
        rounds[seen[source]].append(row)
        seen[source] += 1
    chosen: list[int] = []
    for rows in rounds:
        room = min(count - len(chosen), len(rows))
        chosen += [rows[place] for place in np.linspace(0, len(rows) - 1, room).round().astype(int)]
    return sorted(chosen)


@dataclass(frozen=True, kw_only=True)
class HeldOutLoss:
    """Squared error per value of each (sample, level), and that of the predictor that always says zero."""

    loss_SV: np.ndarray
    zero_SV: np.ndarray

    @property
    def loss(self) -> float:
        return float(self.loss_SV.mean())

    @property
    def ratio_to_zero(self) -> float:
        """Below 1 where the model knows something."""
        return float(self.loss_SV.mean() / self.zero_SV.mean())


def heldout_loss(
    predict: Predict,
    evaluation: EvaluationSet,
    *,
    rank: int = 0,
    ranks: int = 1,
    total: Callable[[Tensor], Tensor] = lambda table: table,
    text_of: Sequence[int] | None = None,
) -> HeldOutLoss:
    """Evaluate; data rank `rank` of `ranks` takes every `ranks`-th pack and `total` sums the tables over them."""
    shape = (len(evaluation.samples), len(evaluation.levels))
    sums = torch.zeros(2, shape[0] * shape[1], dtype=torch.float64)
    packs = evaluation.packs(text_of)
    starts = np.cumsum([0, *map(len, packs)])
    # All ranks predict equally many packs, some again: under ZeRO-3 they meet in every forward pass.
    turns = range(rank, -(-len(packs) // ranks) * ranks, ranks)
    for first in range(0, len(turns), _PACKS_AT_ONCE):
        numbers = turns[first : first + _PACKS_AT_ONCE]
        built = [evaluation.microbatch(packs[number % len(packs)]) for number in numbers]
        predictions = predict([pack.inputs for pack in built])
        for number, pack, prediction_LP in zip(numbers, built, predictions, strict=True):
            if number < len(packs):
                sums[:, starts[number] : starts[number + 1]] = _errors(pack, prediction_LP)
    loss, zero = total(sums).numpy().reshape(2, *shape)
    return HeldOutLoss(loss_SV=loss, zero_SV=zero)


def _errors(pack: Microbatch, prediction_LP: Tensor) -> Tensor:
    """Mean squared error of each item of a pack, of the prediction and of zero: float64 `[2, items]`."""
    assert pack.target_LP is not None, "evaluation packs have targets on every rank"
    target_LP = pack.target_LP.double()
    error_L = (prediction_LP.double().cpu() - target_LP).square().mean(-1)
    zero_L = target_LP.square().mean(-1)
    lengths = pack.inputs.segment_lengths[: len(pack.keys)]
    segments = torch.stack([error_L, zero_L])[:, : sum(lengths)].split(lengths, dim=1)
    return torch.stack([part.mean(1) for part in segments], dim=1)


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float


def paired_interval(difference_S: np.ndarray, sources: Sequence[str], *, seed: int = 0) -> Interval:
    """Mean of paired differences over samples, with a symmetric bootstrap-t interval (Hall 1988).

    The bootstrap draws whole sources, since clips of one shot are not independent. Dividing each draw by its own
    standard error is what keeps 95 % with a dozen sources, where plain percentiles cover 90 %.
    """
    names, cluster_S = np.unique(np.asarray(sources), return_inverse=True)
    assert len(names) >= MIN_SOURCES, "the caller refuses fewer sources"
    sums_G, counts_G = np.bincount(cluster_S, weights=difference_S), np.bincount(cluster_S)
    mean, error = _mean_over_sources(sums_G, counts_G)
    drawn_BG = np.random.default_rng(seed).integers(len(names), size=(_BOOTSTRAPS, len(names)))
    means_B, errors_B = _mean_over_sources(sums_G[drawn_BG], counts_G[drawn_BG])
    # A draw of one source alone has no spread: it bounds nothing, unless no source differs from another.
    away_B = np.abs(means_B - mean)
    t_B = np.divide(away_B, errors_B, out=np.full_like(away_B, np.inf), where=errors_B > 0)
    reach = float(np.quantile(t_B, 0.95, method="higher")) * float(error) if error > 0 else 0.0
    return Interval(mean=float(mean), low=float(mean) - reach, high=float(mean) + reach)


def _mean_over_sources(sums_G: np.ndarray, counts_G: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean over samples and its standard error (but for a factor of G), by the last axis.

    The G sources are independent, their samples are not.
    """
    mean = sums_G.sum(-1) / counts_G.sum(-1)
    residual_G = sums_G - mean[..., None] * counts_G
    return mean, np.sqrt(np.square(residual_G).sum(-1)) / counts_G.sum(-1)


def standard_error(values_S: np.ndarray, sources: Sequence[str]) -> float:
    """Of the mean over samples, clustered by source; NaN where there is only one source."""
    names, cluster_S = np.unique(np.asarray(sources), return_inverse=True)
    if len(names) < 2:
        return math.nan
    _, error = _mean_over_sources(np.bincount(cluster_S, weights=values_S), np.bincount(cluster_S))
    return float(error) * math.sqrt(len(names) / (len(names) - 1))


def captions_of_others(sources: Sequence[str], *, count: int = 1) -> list[list[int]]:
    """Up to `count` permutations of captions between sources: for each sample, the one whose caption it gets.

    Every caption is given once in each, and no sample gets the same caption twice. The average over several says
    more than one, since what a wrong caption costs depends on which it is.

    Raises:
        ValueError: one source holds more than half of the samples, so that not all can have another's.
    """
    by_source = sorted(range(len(sources)), key=lambda sample: (sources[sample], sample))
    largest, total = Counter(sources).most_common(1)[0]
    if 2 * total > len(sources):
        raise ValueError(
            f"captions cannot be permuted between sources: {largest!r} holds over half of the {len(sources)} "
            "held-out samples; hold out more sources or evaluate fewer samples"
        )
    # In this order, whoever takes the caption at least `total` places on takes it from another source.
    legal = len(sources) - 2 * total + 1
    shifts = total + (2 * np.arange(min(count, legal)) + 1) * legal // (2 * min(count, legal))
    place_of = {sample: place for place, sample in enumerate(by_source)}
    return [
        [by_source[(place_of[sample] + shift) % len(sources)] for sample in range(len(sources))]
        for shift in shifts.tolist()
    ]
