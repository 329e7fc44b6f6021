"""Keyed draws: a pure function of the key, and proper noise over keys."""

import math

import pytest
import torch
from scipy import stats

from diffusion.noise import draw_noise, keyed_generator


def test_the_same_key_gives_the_same_noise_whatever_was_drawn_before() -> None:
    first = draw_noise((2, 3, 4), 7, 0, "clip/1", "noise")
    torch.manual_seed(1)
    torch.randn(100)
    draw_noise((50,), 7, 0, "clip/2", "noise")
    assert torch.equal(first, draw_noise((2, 3, 4), 7, 0, "clip/1", "noise"))
    assert first.dtype == torch.float32


@pytest.mark.parametrize(
    "other", [(8, 0, "clip", "noise"), (7, 1, "clip", "noise"), (7, 0, "clap", "noise"), (7, 0, "clip", "time")]
)
def test_every_part_of_the_key_matters(other: tuple[int | str, ...]) -> None:
    assert not torch.equal(draw_noise((8,), 7, 0, "clip", "noise"), draw_noise((8,), *other))


def test_keys_that_read_alike_are_different() -> None:
    keys: list[tuple[int | str, ...]] = [(1, 23), (12, 3), ("1", 23), (1, "2", 3), ("a", "bc"), ("ab", "c"), ("a,bc",)]
    draws = {tuple(torch.rand(4, generator=keyed_generator(*key)).tolist()) for key in keys}
    assert len(draws) == len(keys)


def test_first_draws_over_neighbouring_keys_are_independent_normals() -> None:
    values = torch.stack([draw_noise((2,), 0, 0, f"sample-{n}", "noise") for n in range(4000)]).double()
    assert stats.kstest(values[:, 0].numpy(), "norm").pvalue > 1e-3
    lag_one = torch.corrcoef(torch.stack([values[:-1, 0], values[1:, 0]]))[0, 1]
    within = torch.corrcoef(values.T)[0, 1]
    assert max(abs(lag_one), abs(within)) < 4 / math.sqrt(4000)
