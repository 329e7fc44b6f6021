import numpy as np
import pytest

from data.epoch import EpochOrder, Stretches, keyed_permutation


def stretches(counts, *, bucket=None, weight=None):
    counts = np.asarray(counts)
    return Stretches(
        first=np.cumsum(counts) - counts,
        count=counts,
        bucket=np.zeros(len(counts), np.int64) if bucket is None else np.asarray(bucket),
        weight=np.ones(len(counts)) if weight is None else np.asarray(weight, dtype=np.float64),
    )


def order(what, *, window=50, seed=0, identity="m"):
    return EpochOrder(what, seed=seed, identity=identity, window=window)


def epoch_rows(plan, epoch):
    return np.concatenate([plan.draw(epoch, w)[0] for w in range(plan.num_windows(epoch))])


COUNTS = [30, 1, 8, 17, 30, 30, 2, 11, 30, 30, 5, 30]
UNEVEN, ROWS = stretches(COUNTS), sum(COUNTS)


@pytest.mark.parametrize("window", [1, 7, 50, 224, 10_000])
def test_an_epoch_holds_each_row_once(window):
    plan = order(UNEVEN, window=window)
    for epoch in range(3):
        assert sorted(epoch_rows(plan, epoch).tolist()) == list(range(ROWS))


def test_windows_hold_at_least_their_samples_except_the_last():
    plan = order(UNEVEN, window=50)
    sizes = [len(plan.draw(0, w)[0]) for w in range(plan.num_windows(0))]
    assert all(50 <= size < 50 + 8 for size in sizes[:-1])


def test_any_window_can_be_asked_for_first():
    plan = order(UNEVEN)
    forwards = [plan.draw(e, w)[0].tolist() for e in range(2) for w in range(plan.num_windows(e))]
    again = order(UNEVEN)
    backwards = [again.draw(e, w)[0].tolist() for e in (1, 0) for w in reversed(range(again.num_windows(e)))]
    assert forwards == backwards[::-1]


def test_seed_manifest_and_epoch_each_change_the_order():
    one = epoch_rows(order(UNEVEN), 0).tolist()
    assert one == epoch_rows(order(UNEVEN), 0).tolist()
    assert one != epoch_rows(order(UNEVEN), 1).tolist()
    assert one != epoch_rows(order(UNEVEN, seed=1), 0).tolist()
    assert one != epoch_rows(order(UNEVEN, identity="n"), 0).tolist()


def test_each_epoch_puts_other_pieces_together():
    plan = order(stretches([8] * 15), window=30)
    windows = [{frozenset(plan.draw(epoch, w)[0] // 8) for w in range(4)} for epoch in range(3)]
    assert windows[0] != windows[1] != windows[2] != windows[0]


def test_pieces_are_neighbours_and_whole():
    plan = order(stretches([1000, 24]), window=512)
    for window in range(plan.num_windows(0)):
        rows = np.sort(plan.draw(0, window)[0])
        runs = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1)
        assert all(len(run) % 16 == 0 or 999 in run or 1023 in run for run in runs), "pieces of 512 / 32 rows"


def test_windows_are_fair_samples_of_all_buckets():
    counts, bucket = [640] * 10, [0] * 5 + [1] * 3 + [2] * 2
    plan = order(stretches(counts, bucket=bucket), window=640)
    of_row = np.repeat(bucket, counts)
    for window in range(plan.num_windows(0)):
        shares = np.bincount(of_row[plan.draw(0, window)[0]], minlength=3) / 640
        assert np.abs(shares - [0.5, 0.3, 0.2]).max() < 0.1


@pytest.mark.parametrize("weight", [0.25, 0.7, 1.0, 2.5, 3.0])
def test_rows_come_as_often_as_their_weight_says(weight):
    plan = order(stretches([40, 30], weight=[weight, 1.0]), window=20)
    counts = np.zeros((8, 70), dtype=int)
    for epoch in range(8):
        counts[epoch] = np.bincount(epoch_rows(plan, epoch), minlength=70)
    assert (counts[:, 40:] == 1).all()
    assert set(np.unique(counts[:, :40])) <= {int(np.floor(weight)), int(np.ceil(weight))}
    after = counts[:, :40].cumsum(0)
    assert (np.abs(after - weight * np.arange(1, 9)[:, None]) < 1).all(), "never one off, after any epoch"
    assert abs(counts[0, :40].mean() - weight) < 0.35


def test_visits_count_how_often_a_row_came():
    plan = order(stretches([40, 30], weight=[2.5, 1.0]), window=20)
    seen = {}
    for epoch in range(4):
        for window in range(plan.num_windows(epoch)):
            rows, visits = plan.draw(epoch, window)
            for row, visit in zip(rows.tolist(), visits.tolist(), strict=True):
                seen.setdefault(row, []).append(visit)
    assert all(sorted(visits) == list(range(len(visits))) for visits in seen.values())
    assert all(seen[row] == [0, 1, 2, 3] for row in range(40, 70)), "of weight 1: the epoch"


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
