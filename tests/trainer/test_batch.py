"""Packs of samples: what the model is given and what it is trained on.

Shapes: L tokens of a pack, C x T x H x W a latent, n x E a text embedding.
"""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from scipy import stats
from torch import Tensor

from data.loader import Sample
from diffusion.conditions import FrameLevels
from diffusion.timesteps import FlowConfig
from model.packed import patch_positions, patchify
from trainer.batch import (
    EvaluationItem,
    Microbatch,
    PackLayout,
    PackRecipe,
    Segment,
    build_evaluation_microbatch,
    build_microbatch,
    count_tokens,
    fill_packs,
    pack_segments,
    unpack_predictions,
)

PATCH = (1, 2, 2)
NULL_TEXT = torch.full((2, 4), -1.0)
GRIDS = [(3, 4, 6), (1, 4, 4), (5, 2, 4), (2, 6, 2)]
CONDITIONED = FlowConfig(condition_mix=(0.0, 0.0, 1.0), caption_dropout=0.0)


def make_sample(number: int) -> Sample:
    generator = torch.Generator().manual_seed(number)
    latent_CTHW = torch.randn(2, *GRIDS[number % len(GRIDS)], generator=generator)
    text = {
        "short": torch.full((1 + number % 3, 4), float(number)),
        "descriptive": torch.full((4, 4), number + 0.5),
    }
    return Sample(
        key=f"clip/{number}",
        index=number,
        latent_shape=tuple(latent_CTHW.shape),
        latent_CTHW=latent_CTHW,
        text=text,
        captions={kind: f"{kind} caption {number}" for kind in text},
        source=f"film {number}",
        video_tokens=count_tokens(latent_CTHW.shape, PATCH),
        bucket="video",
        fps=8.0 * (1 + number % 3),
    )


def recipe(
    flow: FlowConfig = CONDITIONED, *, tokens: int = 64, patches: bool = True, targets: bool = True, **layout: float
) -> PackRecipe:
    laid_out = PackLayout(tokens_per_pack=tokens, patch_size=PATCH, **layout)  # type: ignore[arg-type]
    return PackRecipe(flow=flow, seed=3, layout=laid_out, null_text=NULL_TEXT, patches=patches, targets=targets)


def build(
    samples: list[Sample], flow: FlowConfig = CONDITIONED, *, epoch: int = 0, tokens: int = 64, **layout: float
) -> Microbatch:
    return build_microbatch(samples, recipe(flow, tokens=tokens, **layout), visits=[epoch] * len(samples))


def parts(batch: Microbatch) -> dict[str, tuple[Tensor, ...]]:
    """Everything a sample contributes, by key: patches, positions, targets, weights, levels, conditions, text."""
    inputs = batch.inputs
    per_token = (
        inputs.patch_LP,
        inputs.position_L3,
        batch.target_LP,
        batch.weight_L,
        inputs.time_R[inputs.row_L],
        inputs.is_condition_R[inputs.row_L],
    )
    split = [tensor.split(inputs.segment_lengths) for tensor in per_token]
    texts = inputs.text_KE.split(inputs.text_lengths)
    return {key: (*(tensor[n] for tensor in split), texts[n]) for n, key in enumerate(batch.keys)}


def assert_same(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> None:
    assert len(a) == len(b)
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_a_sample_is_the_same_in_every_pack_and_place() -> None:
    samples = [make_sample(n) for n in range(4)]
    together = parts(build(samples))
    shuffled = parts(build([samples[2], samples[0], samples[3], samples[1]], tokens=100))
    for n, sample in enumerate(samples):
        alone = parts(build([sample], tokens=18 + n))[sample.key]
        assert_same(together[sample.key], alone)
        assert_same(together[sample.key], shuffled[sample.key])


def test_another_epoch_or_seed_draws_anew() -> None:
    sample = make_sample(0)
    first, next_epoch = (parts(build([sample], epoch=epoch))[sample.key] for epoch in (0, 1))
    assert not torch.equal(first[0], next_epoch[0])
    assert not torch.equal(first[4], next_epoch[4])


def test_tokens_lie_on_the_path_to_their_target() -> None:
    """x_t - t v = x_0 for every token, whatever its level."""
    samples = [make_sample(n) for n in range(4)]
    flow = replace(CONDITIONED, condition_noise_max=0.3)
    for sample, (patch, _, target, _, time, _, _) in zip(samples, parts(build(samples, flow)).values(), strict=True):
        x0 = patchify(sample.latent_CTHW, PATCH)
        torch.testing.assert_close(patch - time[:, None] * target, x0, atol=1e-5, rtol=1e-5)
        noise = target + x0
        assert stats.kstest(noise.flatten().numpy(), "norm").pvalue > 1e-4


def test_conditions_are_clean_and_carry_no_loss_and_the_rest_does() -> None:
    for sample, (patch, position, _, weight, time, is_condition, _) in zip(
        [make_sample(n) for n in range(4)], parts(build([make_sample(n) for n in range(4)])).values(), strict=True
    ):
        assert torch.equal(weight, (~is_condition).float())
        assert torch.equal(patch[is_condition], patchify(sample.latent_CTHW, PATCH)[is_condition])
        assert (time[is_condition] == 0).all()
        assert (time[~is_condition] > 0).all()
        frames = set(position[is_condition][:, 0].tolist())
        assert frames == set(range(len(frames)))
        assert bool(frames) == (sample.latent_CTHW.shape[1] > 1)


def test_one_row_a_sample_and_level_and_one_for_padding() -> None:
    samples = [make_sample(n) for n in range(4)]
    inputs = build(samples).inputs
    rows = [set(part.tolist()) for part in inputs.row_L.split(inputs.segment_lengths)]
    assert [len(part) for part in rows] == [2, 1, 2, 2, 1]
    assert sorted(row for part in rows for row in part) == list(range(len(inputs.time_R)))
    assert inputs.row_L.dtype == torch.int64
    assert inputs.time_R.dtype == torch.float32


def test_padding_is_zero_and_carries_no_loss() -> None:
    batch = build([make_sample(0), make_sample(1)], tokens=30)
    assert batch.inputs.segment_lengths == (18, 4, 8)
    assert batch.inputs.text_lengths[-1] == 1
    for tensor in (batch.inputs.patch_LP, batch.target_LP, batch.weight_L):
        assert not tensor[-8:].any()
    assert not batch.inputs.text_KE[-1].any()
    assert len(batch.keys) == 2


def test_a_full_pack_has_no_padding_and_an_overfull_one_is_refused() -> None:
    samples = [make_sample(0), make_sample(1)]
    assert build(samples, tokens=22).inputs.segment_lengths == (18, 4)
    with pytest.raises(ValueError, match="22 tokens, above tokens_per_pack=21"):
        build(samples, tokens=21)


def test_captions_of_both_kinds_and_none_come_as_often_as_configured() -> None:
    sample, flow = make_sample(1), replace(CONDITIONED, caption_dropout=0.2)
    seen = Counter(
        {-1.0: "null", 1.0: "short", 1.5: "descriptive"}[
            float(parts(build([sample], flow, epoch=epoch))[sample.key][-1][0, 0])
        ]
        for epoch in range(600)
    )
    assert stats.chisquare([seen["null"], seen["short"], seen["descriptive"]], [120, 240, 240]).pvalue > 1e-3


def fields_of(batch: Microbatch) -> dict[str, object]:
    """Every field of a microbatch and of its inputs, by name."""
    fields = vars(batch.inputs) | vars(batch)
    del fields["inputs"]
    return fields


@pytest.mark.parametrize(("patches", "targets"), [(True, False), (False, False), (False, True), (True, True)])
@pytest.mark.parametrize("tokens", [64, 38])
def test_a_stage_has_the_parts_it_reads_of_the_whole_microbatch_bit_for_bit(
    patches: bool, targets: bool, tokens: int
) -> None:
    """First, middle and last stage, and a whole model; with padding and without."""
    samples = [make_sample(n) for n in range(4)]
    flow = replace(CONDITIONED, caption_dropout=0.3, condition_noise_max=0.3)
    stage = [sample if patches or targets else replace(sample, latent_CTHW=None) for sample in samples]
    for epoch in range(3):
        whole = fields_of(build(samples, flow, epoch=epoch, tokens=tokens))
        parts = recipe(flow, tokens=tokens, patches=patches, targets=targets)
        part = fields_of(build_microbatch(stage, parts, visits=[epoch] * len(stage)))
        whole["patch_LP"] = whole["patch_LP"] if patches else None
        whole["target_LP"] = whole["target_LP"] if targets else None
        assert part.keys() == whole.keys() >= {"row_L", "weight_L", "time_R", "text_KE", "segment_lengths"}
        for name, value in whole.items():
            same = torch.equal(value, part[name]) if isinstance(value, Tensor) else value == part[name]
            assert same, name


def test_noise_is_drawn_only_where_something_is_made_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.batch.draw_noise", lambda *_: pytest.fail("noise was drawn"))
    assert build_microbatch([make_sample(0)], recipe(patches=False, targets=False), visits=[0]).weight_L.any()


def test_what_is_made_of_latents_needs_them() -> None:
    with pytest.raises(AssertionError, match="clip/0 was read without its latent"):
        build([replace(make_sample(0), latent_CTHW=None)])


def evaluation(
    items: list[EvaluationItem], caption_kind: str | None = "short", tokens: int = 64, **layout: float
) -> Microbatch:
    laid_out = PackLayout(tokens_per_pack=tokens, patch_size=PATCH, **layout)  # type: ignore[arg-type]
    return build_evaluation_microbatch(items, laid_out, seed=0, null_text=NULL_TEXT, caption_kind=caption_kind)


def test_positions_are_whole_unless_a_rate_is_set() -> None:
    samples = [make_sample(n) for n in range(4)]
    inputs = build(samples).inputs
    assert inputs.position_L3.dtype == torch.int64
    expected = [patch_positions((t, h // 2, w // 2)) for t, h, w in GRIDS]
    assert torch.equal(inputs.position_L3[:38], torch.cat(expected))
    assert not inputs.position_L3[38:].any()


@pytest.mark.parametrize("position_fps", [8.0, 24.0, 30000 / 1001])
def test_temporal_positions_follow_the_rate_of_each_sample(position_fps: float) -> None:
    samples = [make_sample(n) for n in range(4)]
    whole = build(samples)
    for patches in (True, False):
        scaled = build_microbatch(
            samples, recipe(position_fps=position_fps, patches=patches), visits=[0] * len(samples)
        )
        assert scaled.inputs.position_L3.dtype == torch.float64
        places = zip(*(b.inputs.position_L3.split(b.inputs.segment_lengths) for b in (scaled, whole)), strict=True)
        for sample, (place_L3, index_L3) in zip(samples, places, strict=False):
            assert torch.equal(place_L3[:, 1:], index_L3[:, 1:].double())
            expected_L = index_L3[:, 0].double() * position_fps / sample.fps
            torch.testing.assert_close(place_L3[:, 0], expected_L, rtol=1e-15, atol=0)
            if sample.fps == position_fps:
                assert torch.equal(place_L3, index_L3.double())
        assert not scaled.inputs.position_L3[38:].any()
        ours, theirs = fields_of(scaled), fields_of(whole)
        for name in theirs.keys() - {"position_L3"} - (set() if patches else {"patch_LP"}):
            same = (
                torch.equal(ours[name], theirs[name]) if isinstance(ours[name], Tensor) else ours[name] == theirs[name]
            )
            assert same, name


def test_evaluation_follows_the_rate_too() -> None:
    sample = make_sample(2)
    item = EvaluationItem(sample=sample, level=0.3, text_from=make_sample(1))
    place_L3 = evaluation([item], position_fps=12.0).inputs.position_L3
    assert torch.equal(place_L3[:10, 0], torch.arange(5).repeat_interleave(2).double() * 0.5)


def test_a_segment_without_a_rate_has_no_place_at_a_rate() -> None:
    layout = PackLayout(tokens_per_pack=18, patch_size=PATCH, position_fps=12.0)
    with pytest.raises(AssertionError, match="need the sample's rate"):
        pack_segments([as_segment(make_sample(0))], layout)


def test_texts_are_padded_in_the_pack_and_only_there() -> None:
    """Zeros up to the number asked for, null texts and captions alike; the segment of padding keeps its one token."""
    samples = [make_sample(n) for n in range(4)]
    flow = replace(CONDITIONED, caption_dropout=0.4)
    for epoch in range(4):
        plain, padded = build(samples, flow, epoch=epoch), build(samples, flow, epoch=epoch, pad_text_to=6)
        assert padded.inputs.text_lengths == (6, 6, 6, 6, 1)
        for key, (*rest, text_nE) in parts(padded).items():
            *plain_rest, valid_nE = parts(plain)[key]
            assert_same(tuple(rest), tuple(plain_rest))
            assert torch.equal(text_nE[: len(valid_nE)], valid_nE) and not text_nE[len(valid_nE) :].any()
    item = EvaluationItem(sample=samples[0], level=0.3, text_from=samples[1])
    for kind in ("short", None):
        assert evaluation([item], kind, pad_text_to=6).inputs.text_lengths == (6, 1)


def test_evaluation_meets_the_same_noise_with_another_caption() -> None:
    a, b = make_sample(0), make_sample(2)
    own = evaluation(
        [EvaluationItem(sample=a, level=0.3, text_from=a), EvaluationItem(sample=b, level=0.3, text_from=b)]
    )
    other = evaluation([EvaluationItem(sample=a, level=0.3, text_from=b)], tokens=20)
    ours, theirs = parts(own)[a.key], parts(other)[a.key]
    assert_same(ours[:-1], theirs[:-1])
    assert torch.equal(ours[-1], a.text["short"])
    assert torch.equal(theirs[-1], b.text["short"])
    none = evaluation([EvaluationItem(sample=a, level=0.3, text_from=a)], caption_kind=None)
    assert torch.equal(parts(none)[a.key][-1], NULL_TEXT)


def test_evaluation_levels_are_fixed_unconditioned_and_have_noise_of_their_own() -> None:
    sample = make_sample(0)
    low, high = (
        parts(evaluation([EvaluationItem(sample=sample, level=level, text_from=sample)]))[sample.key]
        for level in (0.25, 0.75)
    )
    for level, (patch, _, target, weight, time, _, _) in ((0.25, low), (0.75, high)):
        assert weight.all()
        assert (time == level).all()
        x0 = patchify(sample.latent_CTHW, PATCH)
        torch.testing.assert_close(patch - level * target, x0, atol=1e-5, rtol=1e-5)
    assert not torch.equal(low[2], high[2])


def test_a_missing_caption_kind_is_named() -> None:
    sample = make_sample(0)
    with pytest.raises(ValueError, match="clip/0 has no caption of kind 'long'; it has descriptive, short"):
        evaluation([EvaluationItem(sample=sample, level=0.5, text_from=sample)], caption_kind="long")


def test_predictions_come_back_as_latents() -> None:
    samples = [make_sample(n) for n in range(3)]
    batch = build(samples, tokens=50)
    segments = [as_segment(sample) for sample in samples]
    back = unpack_predictions(
        batch.inputs.patch_LP - batch.inputs.time_R[batch.inputs.row_L, None] * batch.target_LP, segments, PATCH
    )
    for sample, latent_CTHW in zip(samples, back, strict=True):
        torch.testing.assert_close(latent_CTHW, sample.latent_CTHW, atol=1e-5, rtol=1e-5)


def as_segment(sample: Sample) -> Segment:
    levels = FrameLevels.same(0.5, sample.latent_CTHW.shape[1])
    return Segment(x_CTHW=sample.latent_CTHW, levels=levels, text_nE=NULL_TEXT)


def test_packs_are_filled_in_order_within_the_budget() -> None:
    tokens = [5, 3, 4, 8, 1, 1, 6]
    packs = fill_packs(tokens, 8)
    assert [index for pack in packs for index in pack] == list(range(len(tokens)))
    assert all(sum(tokens[n] for n in pack) <= 8 for pack in packs)
    assert packs == [[0, 1], [2], [3], [4, 5, 6]]
    assert fill_packs([], 8) == []
    with pytest.raises(ValueError, match="9 tokens does not fit tokens_per_pack=8"):
        fill_packs([9], 8)


def test_a_latent_that_does_not_divide_into_patches_is_refused() -> None:
    odd = replace(make_sample(0), latent_shape=(2, 1, 3, 4), latent_CTHW=torch.zeros(2, 1, 3, 4))
    with pytest.raises(ValueError, match="3 x 4 does not divide"):
        build([odd])
