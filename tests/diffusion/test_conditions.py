"""Condition masks and noise levels of training samples."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from scipy import stats

from diffusion.conditions import FrameLevels, draw_condition_mask, draw_noise_levels, drop_caption, pick, prefix_mask
from diffusion.noise import keyed_generator
from diffusion.timesteps import FlowConfig

DRAWS = 3000


def prefix_lengths(config: FlowConfig, num_frames: int) -> list[int]:
    lengths = []
    for n in range(DRAWS):
        mask_T = draw_condition_mask(config, num_frames, keyed_generator(n))
        lengths.append(int(mask_T.sum()))
        assert torch.equal(mask_T, prefix_mask(lengths[-1], num_frames))
    return lengths


def assert_frequencies(counts: list[int], expected: list[float]) -> None:
    assert stats.chisquare(counts, [DRAWS * share / sum(expected) for share in expected]).pvalue > 1e-3


def test_kinds_come_as_often_as_the_mix_says() -> None:
    lengths = Counter(prefix_lengths(FlowConfig(condition_mix=(3.0, 2.0, 5.0), condition_max_fraction=1.0), 5))
    # A prefix is 1 to 4 of 5 frames, so a quarter of the prefixes are of one frame.
    assert_frequencies([lengths[n] for n in range(5)], [3.0, 2.0 + 1.25, 1.25, 1.25, 1.25])


@pytest.mark.parametrize(("fraction", "longest"), [(0.5, 4), (0.2, 1), (0.0, 1), (1.0, 8)])
def test_a_prefix_is_at_most_its_share_and_leaves_a_frame(fraction: float, longest: int) -> None:
    config = FlowConfig(condition_mix=(0.0, 0.0, 1.0), condition_max_fraction=fraction)
    lengths = Counter(prefix_lengths(config, 9))
    assert set(lengths) == set(range(1, longest + 1))
    assert len(lengths) == 1 or stats.chisquare([lengths[n] for n in sorted(lengths)]).pvalue > 1e-3


def test_an_image_is_never_conditioned_and_two_frames_keep_one() -> None:
    config = FlowConfig(condition_mix=(0.0, 1.0, 1.0), condition_max_fraction=1.0)
    assert set(prefix_lengths(config, 1)) == {0}
    assert set(prefix_lengths(config, 2)) == {1}


def test_conditions_are_clean_and_the_other_frames_share_one_level() -> None:
    config = FlowConfig(condition_mix=(0.0, 0.0, 1.0))
    levels = draw_noise_levels(config, num_frames=6, num_tokens=64, generator=keyed_generator(0))
    assert levels.is_condition_T.any()
    assert not levels.is_condition_T.all()
    assert (levels.time_T[levels.is_condition_T] == 0).all()
    assert len(levels.time_T[~levels.is_condition_T].unique()) == 1
    assert levels.time_T.dtype == torch.float32


def test_slight_condition_noise_is_uniform_below_its_bound() -> None:
    config = FlowConfig(condition_mix=(0.0, 1.0, 0.0), condition_noise_max=0.2)
    slight = [
        float(draw_noise_levels(config, num_frames=3, num_tokens=64, generator=keyed_generator(n)).time_T[0])
        for n in range(DRAWS)
    ]
    assert stats.kstest([level / 0.2 for level in slight], "uniform").pvalue > 1e-3


def test_another_mix_leaves_the_noise_levels_as_they_were() -> None:
    plain, conditioned = FlowConfig(condition_mix=(1.0, 0.0, 0.0)), FlowConfig(condition_mix=(0.0, 0.0, 1.0))
    for n in range(20):
        a, b = (
            draw_noise_levels(config, num_frames=7, num_tokens=64, generator=keyed_generator(n))
            for config in (plain, replace(conditioned, condition_noise_max=0.3))
        )
        assert a.time_T[-1] == b.time_T[-1]
        assert not a.is_condition_T.any()


def test_captions_are_dropped_as_often_as_configured() -> None:
    config = FlowConfig(caption_dropout=0.15)
    dropped = sum(drop_caption(config, keyed_generator(n, "caption")) for n in range(DRAWS))
    assert stats.binomtest(dropped, DRAWS, 0.15).pvalue > 1e-3
    for certain in (0.0, 1.0):
        assert drop_caption(FlowConfig(caption_dropout=certain), keyed_generator(0)) is bool(certain)


def test_pick_never_takes_a_weight_of_nothing() -> None:
    assert [pick((0.0, 1.0, 0.0), draw) for draw in (0.0, 0.5, 1 - 2**-53)] == [1, 1, 1]
    assert [pick((1.0, 3.0), draw) for draw in (0.0, 0.249, 0.251, 0.999)] == [0, 0, 1, 1]


def test_same_level_but_for_clean_conditions() -> None:
    levels = FrameLevels.same(0.7, 3, is_condition_T=torch.tensor([False, True, False]))
    torch.testing.assert_close(levels.time_T, torch.tensor([0.7, 0.0, 0.7]))
