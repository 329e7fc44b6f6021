"""Held-out loss on fixed clips, fixed noise and stratified noise levels, and what captions are worth.

Shapes: S held-out samples, V noise levels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data.loader import Sample, SampleReader
from data.manifest import Manifest
from diffusion.timesteps import stratified_levels
from model.packed import PackedInputs
from trainer.batch import EvaluationItem, Microbatch, build_evaluation_microbatch, fill_packs
from trainer.config import TrainConfig

Predict = Callable[[list[PackedInputs]], list[Tensor]]
_BOOTSTRAPS = 2000


@dataclass(frozen=True, kw_only=True)
class EvaluationSet:
    """Everything a held-out loss depends on beside the weights; the same for every run and every layout."""

    samples: list[Sample]
    levels: tuple[float, ...]
    """Noise levels t, one stratum each; all weigh the same."""
    tokens_per_pack: int
    patch_size: tuple[int, int, int]
    null_text: Tensor
    caption_kind: str
    seed: int = 0

    def microbatches(self, text_of: Sequence[int] | None = None) -> list[Microbatch]:
        """All (sample, level) pairs in packs; `text_of[s]` is the sample whose caption sample s is given."""
        items = [
            EvaluationItem(sample=sample, level=level, text_from=self.samples[text_of[s]] if text_of else sample)
            for s, sample in enumerate(self.samples)
            for level in self.levels
        ]
        tokens = [item.sample.video_tokens for item in items]
        return [self._pack([items[i] for i in pack]) for pack in fill_packs(tokens, self.tokens_per_pack)]

    def _pack(self, items: list[EvaluationItem]) -> Microbatch:
        return build_evaluation_microbatch(
            items,
            seed=self.seed,
            tokens_per_pack=self.tokens_per_pack,
            patch_size=self.patch_size,
            null_text=self.null_text,
            caption_kind=self.caption_kind,
        )


def heldout_set(config: TrainConfig, manifest: Manifest, *, max_samples: int, levels: int) -> EvaluationSet | None:
    """The first `max_samples` held-out samples, spread over all sources; None where nothing is held out."""
    heldout = manifest.select("heldout")
    if len(heldout) == 0:
        return None
    reader = SampleReader(heldout)
    rows = np.linspace(0, len(heldout) - 1, min(max_samples, len(heldout))).round().astype(int).tolist()
    samples = [reader.read(row) for row in rows]
    reader.close()
    return EvaluationSet(
        samples=samples,
        levels=tuple(stratified_levels(levels).tolist()),
        tokens_per_pack=config.data.tokens_per_pack,
        patch_size=config.model.patch_size,
        null_text=manifest.null_text(),
        caption_kind=config.evaluation.caption_kind,
    )


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
    packs = evaluation.microbatches(text_of)
    starts = np.cumsum([0, *(len(pack.keys) for pack in packs)])
    mine = list(range(rank, len(packs), ranks))
    for number, prediction_LP in zip(mine, predict([packs[n].inputs for n in mine]), strict=True):
        pack = packs[number]
        error_L = (prediction_LP.double().cpu() - pack.target_LP.double()).square().mean(-1)
        zero_L = pack.target_LP.double().square().mean(-1)
        lengths = pack.inputs.segment_lengths[: len(pack.keys)]
        for row, values_L in enumerate((error_L, zero_L)):
            segments = values_L[: sum(lengths)].split(lengths)
            sums[row, starts[number] : starts[number + 1]] = torch.stack([part.mean() for part in segments])
    loss, zero = total(sums).numpy().reshape(2, *shape)
    return HeldOutLoss(loss_SV=loss, zero_SV=zero)


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float


def paired_interval(difference_S: np.ndarray, sources: Sequence[str], *, seed: int = 0) -> Interval:
    """Mean of paired differences; the bootstrap draws whole sources, since clips of one shot are not independent."""
    names, cluster_S = np.unique(np.asarray(sources), return_inverse=True)
    sums = np.bincount(cluster_S, weights=difference_S)
    counts = np.bincount(cluster_S)
    drawn = np.random.default_rng(seed).integers(len(names), size=(_BOOTSTRAPS, len(names)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return Interval(mean=float(difference_S.mean()), low=float(low), high=float(high))


def captions_of_others(sources: Sequence[str]) -> list[int]:
    """For each sample, one of another source whose caption it gets in the permutation test.

    Raises:
        ValueError: one source holds more than half of the samples, so that not all can have another's.
    """
    by_source = sorted(range(len(sources)), key=lambda sample: (sources[sample], sample))
    shift = len(sources) // 2
    given = {sample: by_source[(place + shift) % len(sources)] for place, sample in enumerate(by_source)}
    clashes = [sources[a] for a, b in given.items() if sources[a] == sources[b]]
    if clashes:
        raise ValueError(
            f"captions cannot be permuted between sources: {clashes[0]!r} holds over half of the {len(sources)} "
            "held-out samples; hold out more sources or evaluate fewer samples"
        )
    return [given[sample] for sample in range(len(sources))]
