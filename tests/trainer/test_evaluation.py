"""Held-out loss: a table that only weights and data decide; what captions are worth, with an interval that holds.

Shapes: S samples, V noise levels, L tokens of a pack, P values of a patch.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from data.loader import Sample
from data.manifest import Manifest
from diffusion.noise import draw_noise
from diffusion.timesteps import stratified_levels
from model.packed import PackedInputs, patchify
from tests.trainer.evaluation_case import MODEL, new_dit, write_case, write_shards
from trainer import evaluation
from trainer.batch import PackLayout, count_tokens
from trainer.evaluation import (
    EvaluationSet,
    captions_of_others,
    heldout_loss,
    heldout_set,
    paired_interval,
    spread_over_sources,
    trained_set,
)
from trainer.inference import Predictor

GRIDS = [(1, 4, 4), (2, 4, 6), (3, 2, 4), (1, 2, 2), (5, 4, 4)]
CHANNELS, TEXT_DIM = MODEL.in_channels, MODEL.text_dim


def sample(number: int, *, grid: tuple[int, int, int] | None = None, scale: float = 1.0) -> Sample:
    generator = torch.Generator().manual_seed(number)
    latent_CTHW = scale * torch.randn(CHANNELS, *(grid or GRIDS[number % len(GRIDS)]), generator=generator)
    return Sample(
        key=f"clip/{number}",
        index=number,
        latent_shape=tuple(latent_CTHW.shape),
        latent_CTHW=latent_CTHW,
        text={"short": torch.randn(1 + number % 3, TEXT_DIM, generator=generator)},
        captions={"short": f"caption {number}"},
        source=f"shot {number // 2}",
        video_tokens=count_tokens(latent_CTHW.shape, MODEL.patch_size),
        fps=8.0,
        bucket="video",
    )


def make_set(samples: list[Sample], *, levels: int = 4, tokens: int = 48) -> EvaluationSet:
    return EvaluationSet(
        samples=samples,
        levels=tuple(stratified_levels(levels).tolist()),
        layout=PackLayout(tokens_per_pack=tokens, patch_size=MODEL.patch_size),
        null_text=torch.zeros(1, TEXT_DIM),
        caption_kind="short",
    )


def exact_dit() -> Predictor:
    return Predictor(new_dit(5, scale=0.3).double())


def zero(packs: list[PackedInputs]) -> list[Tensor]:
    return [torch.zeros_like(pack.patch_LP) for pack in packs]


def per_token(velocity: Callable[[Tensor, Tensor], Tensor]) -> Callable[[list[PackedInputs]], list[Tensor]]:
    """A predictor that sees only the noised values of a token and its noise level."""
    return lambda packs: [velocity(pack.patch_LP.double(), pack.time_R[pack.row_L].double()[:, None]) for pack in packs]


@pytest.mark.parametrize("ranks", [2, 3, 50])
def test_the_table_is_the_same_over_any_number_of_data_ranks(ranks: int) -> None:
    whole_set, predict = make_set([sample(n) for n in range(6)]), exact_dit()
    whole = heldout_loss(predict, whole_set)
    parts = [heldout_loss(predict, whole_set, rank=rank, ranks=ranks) for rank in range(ranks)]
    for name in ("loss_SV", "zero_SV"):
        tables = np.stack([getattr(part, name) for part in parts])
        assert ((tables != 0).sum(0) == 1).all(), "each entry comes from one rank"
        np.testing.assert_array_equal(tables.sum(0), getattr(whole, name))
    added = heldout_loss(predict, whole_set, rank=1, ranks=ranks, total=lambda table: table + 1)
    np.testing.assert_array_equal(added.loss_SV, parts[1].loss_SV + 1)


@pytest.mark.parametrize("ranks", [2, 3, 50])
def test_all_ranks_predict_equally_many_packs(ranks: int) -> None:
    """Under ZeRO-3 a rank that predicts less than the others leaves them waiting for its part of the weights."""
    whole_set, predict = make_set([sample(n) for n in range(6)]), exact_dit()
    counts = []
    for rank in range(ranks):
        calls: list[int] = []
        heldout_loss(
            lambda packs, calls=calls: calls.append(len(packs)) or predict(packs), whole_set, rank=rank, ranks=ranks
        )
        counts.append(calls)
    assert counts[0] and all(calls == counts[0] for calls in counts)


def test_the_table_is_the_same_for_any_pack_size(monkeypatch: pytest.MonkeyPatch) -> None:
    samples, predict = [sample(n) for n in range(6)], exact_dit()
    alone = np.concatenate([heldout_loss(predict, make_set([one], tokens=one.video_tokens)).loss_SV for one in samples])
    assert np.ptp(alone) > 0.1, "the entries tell samples and levels apart"
    for tokens in (20, 48, 1000):
        table = heldout_loss(predict, make_set(samples, tokens=tokens))
        np.testing.assert_allclose(table.loss_SV, alone, rtol=1e-12)
    monkeypatch.setattr(evaluation, "_PACKS_AT_ONCE", 2)
    np.testing.assert_array_equal(
        heldout_loss(predict, make_set(samples, tokens=1000)).loss_SV, table.loss_SV, "few packs at once"
    )


def test_only_own_packs_are_built(monkeypatch: pytest.MonkeyPatch) -> None:
    built, build = [], EvaluationSet.microbatch
    monkeypatch.setattr(EvaluationSet, "microbatch", lambda self, items: built.append(len(items)) or build(self, items))
    heldout_loss(zero, make_set([sample(n) for n in range(6)]), rank=1, ranks=4)
    assert 0 < sum(built) < 6 * 4


def test_noise_is_fixed_per_seed_sample_and_level() -> None:
    evaluated = make_set([sample(0), sample(1)])

    def targets(one: EvaluationSet) -> dict[tuple[str, float], Tensor]:
        found = {}
        for items in one.packs():
            pack = one.microbatch(items)
            for item, part in zip(items, pack.target_LP.split(pack.inputs.segment_lengths), strict=False):
                found[item.sample.key, item.level] = part
        return found

    first, again = targets(evaluated), targets(replace(evaluated, layout=replace(evaluated.layout, tokens_per_pack=20)))
    other = targets(replace(evaluated, seed=1))
    assert len(first) == 2 * 4
    for (key, level), target in first.items():
        x0_CTHW = next(one for one in evaluated.samples if one.key == key).latent_CTHW
        noise_CTHW = draw_noise(tuple(x0_CTHW.shape), 0, "eval", key, f"{level:.6f}")
        assert torch.equal(target, patchify(noise_CTHW - x0_CTHW, MODEL.patch_size))
        assert torch.equal(target, again[key, level])
        assert not torch.equal(target, other[key, level])
    assert len({tuple(target.flatten().tolist()) for target in first.values()}) == len(first)


def test_the_zero_predictor_is_exactly_one() -> None:
    table = heldout_loss(zero, make_set([sample(n) for n in range(5)]))
    assert table.ratio_to_zero == 1.0
    np.testing.assert_array_equal(table.loss_SV, table.zero_SV)


def test_a_predictors_loss_is_what_it_is_by_hand() -> None:
    """v = 0.3 x_t + t, against numpy over the latents, with no packs, patches or levels of ours."""
    samples = [sample(n) for n in range(5)]
    evaluated = make_set(samples)
    table = heldout_loss(per_token(lambda x, t: 0.3 * x + t), evaluated)
    for s, one in enumerate(samples):
        for v, t in enumerate((0.125, 0.375, 0.625, 0.875)):
            noise_CTHW = draw_noise(tuple(one.latent_CTHW.shape), 0, "eval", one.key, f"{t:.6f}")
            x0, eps = one.latent_CTHW.numpy().astype(float), noise_CTHW.numpy().astype(float)
            error = 0.3 * ((1 - t) * x0 + t * eps) + t - (eps - x0)
            assert table.loss_SV[s, v] == pytest.approx((error**2).mean(), rel=1e-6)
            assert table.zero_SV[s, v] == pytest.approx(((eps - x0) ** 2).mean(), rel=1e-6)
    assert table.loss == pytest.approx(table.loss_SV.mean(), rel=1e-15)
    assert table.ratio_to_zero == pytest.approx(table.loss_SV.sum() / table.zero_SV.sum(), rel=1e-15)


@pytest.mark.parametrize(("scale", "levels"), [(1.0, 16), (0.5, 4)])
def test_the_best_predictor_of_white_latents_scores_what_theory_says(scale: float, levels: int) -> None:
    """x_0 ~ N(0, s^2): E[v | x_t] = x_t (t - (1 - t) s^2) / var_t with error s^2 / var_t, var_t that of x_t.

    For s = 1 its mean over t is pi / 4 = 0.785 of the zero predictor's.
    """
    samples = [sample(n, grid=(4, 16, 16), scale=scale) for n in range(12)]

    def variance(t: Tensor) -> Tensor:
        return ((1 - t) * scale) ** 2 + t**2

    best = per_token(lambda x, t: x * (t - (1 - t) * scale**2) / variance(t))
    table = heldout_loss(best, make_set(samples, levels=levels, tokens=1024))
    expected_V = (scale**2 / variance(stratified_levels(levels).double())).numpy()
    np.testing.assert_allclose(table.loss_SV.mean(0), expected_V, rtol=0.05)
    assert table.ratio_to_zero == pytest.approx(expected_V.mean() / (1 + scale**2), rel=0.01)
    if scale == 1.0:
        assert table.ratio_to_zero == pytest.approx(np.pi / 4, rel=0.01)
    worse = per_token(lambda x, t: 1.2 * x * (t - (1 - t) * scale**2) / variance(t))
    assert heldout_loss(worse, make_set(samples, levels=levels, tokens=1024)).loss > table.loss


def test_another_caption_is_met_with_the_same_noise() -> None:
    evaluated, predict = make_set([sample(n) for n in range(6)]), exact_dit()
    own = heldout_loss(predict, evaluated)
    same = heldout_loss(predict, evaluated, text_of=list(range(6)))
    others = heldout_loss(predict, evaluated, text_of=[0, 1, 2, 4, 5, 3])
    np.testing.assert_array_equal(own.loss_SV, same.loss_SV)
    np.testing.assert_array_equal(own.zero_SV, others.zero_SV)
    np.testing.assert_allclose(own.loss_SV[:3], others.loss_SV[:3], rtol=1e-12)
    assert (own.loss_SV[3:] != others.loss_SV[3:]).all()


def test_captions_of_others_are_a_permutation_between_sources() -> None:
    generator = np.random.default_rng(0)
    for _ in range(300):
        count = int(generator.integers(2, 30))
        sources = [f"shot {n}" for n in generator.integers(0, generator.integers(2, 12), size=count)]
        if 2 * max(Counter(sources).values()) > count:
            with pytest.raises(ValueError, match=f"holds over half of the {count} held-out samples"):
                captions_of_others(sources)
            continue
        permutations = captions_of_others(sources, count=4)
        assert 1 <= len(permutations) <= 4
        for given in permutations:
            assert sorted(given) == list(range(count)), "every caption is given once"
            assert not [s for s, other in enumerate(given) if sources[s] == sources[other]]
        for sample in zip(*permutations, strict=True):
            assert len(set(sample)) == len(permutations), "no sample gets the same caption twice"


def test_one_source_in_over_half_is_named() -> None:
    with pytest.raises(ValueError, match=r"'b' holds over half of the 5 held-out samples; hold out more sources"):
        captions_of_others(["b", "a", "b", "b", "c"])
    (only,) = captions_of_others(["b", "a", "b", "c"], count=3)
    assert sorted(only) == [0, 1, 2, 3], "two of four leave one way"


def test_as_many_permutations_as_asked_for_where_there_are() -> None:
    assert len(captions_of_others([f"shot {n}" for n in range(22)], count=5)) == 5


CLUSTERS = [5, 4, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1]
"""Clips of each held-out source of the demo."""


def clustered(counts: list[int], generator: np.random.Generator) -> tuple[np.ndarray, list[str]]:
    """Differences of mean 0 that share something within a source."""
    shared = np.repeat(generator.normal(size=len(counts)), counts)
    names = np.repeat([f"shot {n}" for n in range(len(counts))], counts)
    return shared + 0.7 * generator.normal(size=sum(counts)), names.tolist()


def test_the_interval_is_the_bootstrap_t_of_the_textbook() -> None:
    """Draw by draw, sample by sample, in plain Python."""
    difference_S, sources = clustered(CLUSTERS, np.random.default_rng(3))
    by_source = {name: [d for d, s in zip(difference_S, sources, strict=True) if s == name] for name in set(sources)}
    names = sorted(by_source)

    def mean_and_error(drawn: list[str]) -> tuple[float, float]:
        values = [value for name in drawn for value in by_source[name]]
        mean = sum(values) / len(values)
        square = sum(sum(value - mean for value in by_source[name]) ** 2 for name in drawn)
        return mean, (square * len(drawn) / (len(drawn) - 1)) ** 0.5 / len(values)

    mean, error = mean_and_error(names)
    drawn = np.random.default_rng(8).integers(len(names), size=(2000, len(names)))
    draws = [mean_and_error([names[n] for n in row]) for row in drawn]
    t = sorted(abs(m - mean) / e for m, e in draws)
    reach = t[int(np.ceil(0.95 * 1999))] * error
    interval = paired_interval(difference_S, sources, seed=8)
    assert interval.mean == pytest.approx(difference_S.mean(), rel=1e-12)
    assert (interval.low, interval.high) == pytest.approx((mean - reach, mean + reach), rel=1e-9)


def test_with_many_sources_it_agrees_with_scipy() -> None:
    generator = np.random.default_rng(0)
    counts = generator.integers(1, 5, size=400).tolist()
    difference_S, sources = clustered(counts, generator)
    sums = np.array([part.sum() for part in np.split(difference_S, np.cumsum(counts)[:-1])])
    theirs = stats.bootstrap(
        (sums, np.array(counts)),
        lambda sums, counts, axis: sums.sum(axis) / counts.sum(axis),
        paired=True,
        n_resamples=4000,
        method="BCa",
        rng=np.random.default_rng(1),
    ).confidence_interval
    ours = paired_interval(difference_S, sources)
    width = theirs.high - theirs.low
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.06 * width)


@pytest.mark.parametrize("counts", [CLUSTERS, [2, 1, 4] * 8])
def test_95_of_100_intervals_hold_the_truth(counts: list[int]) -> None:
    """900 studies: the share that covers 0 has a standard error of 0.7 %. Plain percentiles cover 90 %."""
    generator = np.random.default_rng(7)
    studies = [clustered(counts, generator) for _ in range(900)]
    intervals = [paired_interval(*study, seed=n) for n, study in enumerate(studies)]
    covered = np.mean([interval.low <= 0 <= interval.high for interval in intervals])
    assert 0.93 <= covered <= 0.97, covered


def test_clips_of_one_source_count_as_one() -> None:
    """The same differences are worth less when they come from few sources."""
    difference_S, few = clustered([5] * 6, np.random.default_rng(0))
    apart = paired_interval(difference_S, [str(n) for n in range(30)])
    together = paired_interval(difference_S, few)
    assert together.mean == pytest.approx(apart.mean, rel=1e-12)
    assert together.high - together.low > 1.5 * (apart.high - apart.low)
    nothing = paired_interval(np.zeros(6), list("abcdef"))
    assert (nothing.mean, nothing.low, nothing.high) == (0.0, 0.0, 0.0)
    with pytest.raises(AssertionError):
        paired_interval(np.ones(6), list("aabbcc"))


def test_every_source_comes_before_any_comes_twice() -> None:
    sources = ["a"] * 10 + ["b"] + ["c"] * 3
    assert spread_over_sources(sources, 3) == [0, 10, 11]
    assert spread_over_sources(sources, 5) == [0, 1, 10, 11, 12]
    assert spread_over_sources(sources, 99) == list(range(14))
    assert spread_over_sources([str(n) for n in range(101)], 5) == [0, 25, 50, 75, 100]
    for count in range(1, 15):
        taken = Counter(sources[row] for row in spread_over_sources(sources, count))
        assert sum(taken.values()) == count
        assert all(taken[name] >= min(sources.count(name), max(taken.values()) - 1) for name in set(sources))


def test_heldout_set_is_of_heldout_clips_of_all_sources(tmp_path: Path) -> None:
    case = write_case(tmp_path, heldout=[0, 0, 0, 0, 1, 2, 3], training=5)
    manifest, config = Manifest.read(case.shards), case.config()
    some = heldout_set(config, manifest, max_samples=4, levels=8)
    assert some is not None
    assert sorted(one.source for one in some.samples) == [f"film/shot-{n:03d}" for n in range(4)]
    assert some.levels == tuple((np.arange(8) + 0.5) / 8)
    assert (some.caption_kind, some.layout.tokens_per_pack) == ("descriptive", 48)
    everything = heldout_set(config, manifest, max_samples=100, levels=2)
    assert everything is not None
    assert [one.key for one in everything.samples] == manifest.select("heldout").keys()
    assert (
        heldout_set(config, write_shards(tmp_path / "x", codec="c", heldout=[], training=3), max_samples=4, levels=8)
        is None
    )
    with pytest.raises(ValueError, match="max_samples=0 must be at least 1"):
        heldout_set(config, manifest, max_samples=0, levels=8)
    with pytest.raises(ValueError, match="levels=0 must be at least 1"):
        heldout_set(config, manifest, max_samples=4, levels=0)


def test_trained_clips_are_taken_evenly_from_all(tmp_path: Path) -> None:
    case = write_case(tmp_path, heldout=[0, 1], training=20)
    manifest, config = Manifest.read(case.shards), case.config()
    training = manifest.select("train").keys()
    every = trained_set(config, manifest, max_samples=50, levels=2)
    assert [one.key for one in every.samples] == training
    some = trained_set(config, manifest, max_samples=5, levels=2)
    places = [training.index(one.key) for one in some.samples]
    assert places == [round(place) for place in np.linspace(0, 19, 5)]
    assert {len(one.text) for one in some.samples} == {2}


def test_losses_are_told_by_source(tmp_path: Path) -> None:
    case = write_case(tmp_path, heldout=[0, 0, 1, 2], training=2)
    clips = heldout_set(case.config(), Manifest.read(case.shards), max_samples=9, levels=2)
    assert clips is not None
    told = clips.by_source(np.arange(4.0))
    expected: dict[str, list[float]] = {}
    for number, one in enumerate(clips.samples):
        expected.setdefault(one.source, []).append(float(number))
    assert told == expected and sorted(map(len, told.values())) == [1, 1, 2]
