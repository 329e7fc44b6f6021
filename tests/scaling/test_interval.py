import numpy as np

from scaling.interval import Interval, bias_corrected, percentiles

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


def test_draws_that_are_not_finite_are_left_out():
    assert bias_corrected(5.0, np.append(DRAWS, [np.nan, np.inf])) == bias_corrected(5.0, DRAWS)


def test_an_interval_reads_as_value_and_ends():
    assert f"{Interval(value=0.5139, low=0.48, high=0.5532):.3g}" == "0.514 (0.48 to 0.553)"
    assert Interval(value=0.0, low=-1.0, high=1.0).exp() == Interval(value=1.0, low=np.exp(-1), high=np.exp(1))
