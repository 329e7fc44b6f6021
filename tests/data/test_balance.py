import numpy as np
import pytest

from data.balance import PackCost, balanced_order, imbalance


def costs(number, seed=0):
    """A third of the packs cost up to twice as much as the others."""
    draw = np.random.default_rng(seed)
    return np.where(draw.random(number) < 0.3, draw.uniform(1.2, 2.2, number), draw.uniform(0.9, 1.1, number))


@pytest.mark.parametrize("number", [1, 2, 7, 12, 64, 256])
def test_an_order_holds_each_pack_once(number):
    assert sorted(balanced_order(costs(number))) == list(range(number))


@pytest.mark.parametrize("ranks", [2, 4, 8, 16, 32, 64])
def test_equal_parts_cost_about_the_same_for_any_number_of_ranks(ranks):
    for seed in range(5):
        work = costs(256, seed)
        ordered, each = work[balanced_order(work)], 256 // ranks
        # The most expensive pack has company, if only the cheapest.
        least = work.max() + np.sort(work)[: each - 1].sum()
        assert imbalance(ordered, ranks) < 1.03 * max(1.0, least / (work.mean() * each))
        assert imbalance(ordered, ranks) < imbalance(work, ranks)


@pytest.mark.parametrize(("number", "ranks"), [(24, 3), (24, 2), (24, 8), (30, 5), (30, 10)])
def test_numbers_that_are_no_power_of_two(number, ranks):
    work = costs(number)
    assert imbalance(work[balanced_order(work)], ranks) <= imbalance(np.sort(work), ranks)
    assert imbalance(work[balanced_order(work)], ranks) < 1.2


def test_the_order_is_a_pure_function():
    work = costs(64)
    assert balanced_order(work) == balanced_order(work.tolist())


def test_equal_costs_are_no_work():
    assert imbalance([2.0] * 8, 4) == 1.0
    assert sorted(balanced_order([2.0] * 8)) == list(range(8))


def test_imbalance_is_the_worst_over_the_mean():
    assert imbalance([1, 1, 3, 1], 2) == pytest.approx(4 / 3)


def test_cost_is_linear_in_tokens_and_in_their_squares():
    cost = PackCost(linear=2.0, quadratic=0.5, text=3.0)
    assert cost.of_samples(np.array([4, 6]), np.array([1, 2])).tolist() == [2 * 4 + 0.5 * 16 + 3, 2 * 6 + 0.5 * 36 + 6]


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["linear", "quadratic", "text"])
def test_coefficients_are_finite(name, value):
    with pytest.raises(ValueError, match=rf"finite coefficients of 0 or more, not {name}={value}"):
        PackCost(**{name: value})


def test_a_pack_costs_something():
    with pytest.raises(ValueError, match="coefficients above 0, linear or quadratic or both, not .*linear=0"):
        PackCost(linear=0.0, text=1.0)


def test_costs_of_large_models_are_no_int32():
    cost = PackCost(linear=23_908_843_520, quadratic=819_200, text=4_288_675_840)
    tokens = np.array([32_760], dtype=np.int32)
    assert cost.of_samples(tokens, tokens)[0] == pytest.approx(32_760 * (28_197_519_360 + 819_200 * 32_760))


def test_cost_is_read_from_a_file(tmp_path):
    path = tmp_path / "cost.json"
    path.write_text('{"linear": 1, "quadratic": 2e-5, "text": 0, "r2": 0.99}')
    assert PackCost.read(path) == PackCost(linear=1.0, quadratic=2e-5, text=0.0)
    path.write_text('{"linear": 1, "quadratic": NaN, "text": 0}')
    with pytest.raises(ValueError, match=r"cost.json cannot be read .* not quadratic=nan"):
        PackCost.read(path)
    path.write_text('{"linear": 1}')
    with pytest.raises(ValueError, match=r"data.cost=.*cost.json cannot be read .*: make it with trainer.pack_cost"):
        PackCost.read(path)
