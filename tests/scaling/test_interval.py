import numpy as np
import pytest

from scaling.interval import Interval, bias_corrected, percentiles, pooled_percentiles

DRAWS = np.random.default_rng(0).normal(5.0, 2.0, 20000)


def test_unbiased_normal_draws_give_the_normal_interval():
    for found in (bias_corrected(5.0, DRAWS), percentiles(5.0, DRAWS)):
        assert abs(found.low - (5 - 1.96 * 2)) < 0.12
        assert abs(found.high - (5 + 1.96 * 2)) < 0.12


def test_draws_that_lie_above_their_value_are_moved_down_twice():
    """Efron: where draws are normal and off by b, the interval is that of draws off by -b."""
    found = bias_corrected(4.0, DRAWS)
    assert abs(found.low - (3 - 1.96 * 2)) < 0.25
    assert abs(found.high - (3 + 1.96 * 2)) < 0.25


def test_ends_are_the_draws_of_their_rank_among_all():
    draws = np.arange(1.0, 400.0)  # 399 draws: the ends are the 10th from below and from above
    assert percentiles(200.0, draws) == Interval(value=200.0, low=10.0, high=390.0)
    assert bias_corrected(200.0, draws).low in (9.0, 10.0, 11.0)


def test_lost_draws_count_half_beyond_each_end():
    draws = np.arange(1.0, 400.0)
    draws[100:108] = np.nan  # rank 10 - 8 / 2
    assert percentiles(200.0, draws) == Interval(value=200.0, low=6.0, high=394.0)
    whole, with_lost = (bias_corrected(5.0, np.append(DRAWS, extra)) for extra in ([], [np.nan, np.inf] * 200))
    assert with_lost.low < whole.low
    assert with_lost.high > whole.high


def test_too_few_draws_or_too_many_lost_ones_carry_no_interval():
    assert percentiles(20.0, np.arange(1.0, 40.0)) == Interval(value=20.0, low=1.0, high=39.0)
    for find in (percentiles, bias_corrected):
        with pytest.raises(ValueError, match="38 redrawn fits of which 0 are lost carry no 95 % interval: redraw more"):
            find(20.0, np.arange(38.0))
        with pytest.raises(ValueError, match="399 redrawn fits of which 20 are lost"):
            find(20.0, np.append(np.arange(379.0), [np.nan] * 20))


def test_pooled_draws_hold_a_new_draw_at_least_as_often_as_they_say():
    """Few draws: an end from all values as if they were independent would cover too little."""
    alone = pooled_percentiles(20.0, np.arange(1.0, 40.0)[:, None])
    assert (alone.low, alone.high) == pytest.approx((1.0, 39.0))
    rng, inside = np.random.default_rng(1), 0
    for _ in range(2000):
        found = pooled_percentiles(0.0, rng.standard_normal((59, 1)) + 0.3 * rng.standard_normal((59, 16)))
        inside += found.low <= rng.standard_normal() + 0.3 * rng.standard_normal() <= found.high
    assert 0.935 < inside / 2000 < 0.98  # three standard errors below 95 %; all taken as independent, 93.9 % of these


def test_an_interval_reads_as_value_and_ends():
    assert f"{Interval(value=0.5139, low=0.48, high=0.5532):.3g}" == "0.514 (0.48 to 0.553)"
    assert Interval(value=0.0, low=-1.0, high=1.0).exp() == Interval(value=1.0, low=np.exp(-1), high=np.exp(1))
