import numpy as np
import pytest

from data.order import EpochOrder, keyed_permutation


def order(shard_of_row, *, window=50, seed=0, identity="m"):
    return EpochOrder(np.asarray(shard_of_row), seed=seed, identity=identity, window=window)


def epoch_rows(plan, epoch):
    return np.concatenate([plan.rows(epoch, w) for w in range(plan.num_windows(epoch))])


UNEVEN = np.repeat(np.arange(12), [30, 1, 8, 17, 30, 30, 2, 11, 30, 30, 5, 30])


@pytest.mark.parametrize("window", [1, 7, 50, 224, 10_000])
def test_an_epoch_holds_each_row_once(window):
    plan = order(UNEVEN, window=window)
    for epoch in range(3):
        assert sorted(epoch_rows(plan, epoch).tolist()) == list(range(len(UNEVEN)))


def test_rows_need_not_be_sorted_by_shard():
    scattered = np.random.default_rng(0).permutation(UNEVEN)
    plan = order(scattered)
    assert sorted(epoch_rows(plan, 0).tolist()) == list(range(len(UNEVEN)))
    for window in range(plan.num_windows(0)):
        shards = set(scattered[plan.rows(0, window)])
        # Whole shards: every row of a shard is in the window that has one of them.
        assert sum(np.isin(scattered, list(shards))) == len(plan.rows(0, window))


def test_windows_hold_at_least_their_samples_except_the_last():
    plan = order(UNEVEN, window=50)
    sizes = [len(plan.rows(0, w)) for w in range(plan.num_windows(0))]
    assert all(50 <= size < 50 + 30 for size in sizes[:-1])


def test_any_window_can_be_asked_for_first():
    plan = order(UNEVEN)
    forwards = [plan.rows(e, w).tolist() for e in range(2) for w in range(plan.num_windows(e))]
    again = order(UNEVEN)
    backwards = [again.rows(e, w).tolist() for e in (1, 0) for w in reversed(range(again.num_windows(e)))]
    assert forwards == backwards[::-1]


def test_seed_manifest_and_epoch_each_change_the_order():
    one = epoch_rows(order(UNEVEN), 0).tolist()
    assert one == epoch_rows(order(UNEVEN), 0).tolist()
    assert one != epoch_rows(order(UNEVEN), 1).tolist()
    assert one != epoch_rows(order(UNEVEN, seed=1), 0).tolist()
    assert one != epoch_rows(order(UNEVEN, identity="n"), 0).tolist()


def test_each_epoch_puts_other_shards_together():
    plan = order(np.repeat(np.arange(12), 10), window=30)
    windows = [{frozenset(plan.rows(epoch, w) // 10) for w in range(4)} for epoch in range(3)]
    assert windows[0] != windows[1] != windows[2] != windows[0]


def test_permutations_are_written_down():
    # A change here would change the data order of every saved run.
    assert keyed_permutation(8, "samples", 0, "m", 0, 0).tolist() == [6, 4, 2, 3, 7, 0, 1, 5]
    assert sorted(keyed_permutation(1000, 1).tolist()) == list(range(1000))
    assert keyed_permutation(8, 1).tolist() != keyed_permutation(8, "1").tolist()


def test_positions_are_uniform():
    where = np.stack([np.argsort(keyed_permutation(10, "u", trial)) for trial in range(4000)])
    counts = np.stack([np.bincount(where[:, item], minlength=10) for item in range(10)])
    # chi-squared with 90 degrees of freedom: mean 90, deviation 13.4.
    assert ((counts - 400) ** 2 / 400).sum() < 90 + 5 * 13.4
