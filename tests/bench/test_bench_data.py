"""The planning part of the data benchmark: its numbers are possible, and each way trains on what it says."""

import itertools
import re
import sys

import numpy as np
import pytest

from bench import data as bench
from bench import mixture
from bench.plan import ours, time_plan
from bench.planning import model_config, scores
from bench.sampling import Setting, bucket_batches, padded_batches, score, token_packs
from data.balance import PackCost

SMALL = Setting(ranks=4, packs_per_rank=2, window=256, steps=3)


def test_mixture_is_the_one_that_is_said():
    sizes = mixture.draw(50_000)
    images = sizes.grid_n3[:, 0] == 1
    assert set(np.unique(sizes.tokens_n[images])) == {256, 1024, 2304, 4096}
    assert sizes.tokens_n.max() == mixture.LARGEST
    assert sizes.tokens_n.mean() == pytest.approx(6900, rel=0.02)
    assert images.mean() == pytest.approx(0.3, abs=0.01)
    np.testing.assert_array_equal(mixture.draw(50_000).grid_n3, sizes.grid_n3)


def test_scores_are_possible_and_packs_fill_better_than_padding():
    result = scores("wan_1_3b", SMALL)
    assert list(result) == ["Tessera", "token packs alone", "fixed batch a bucket", "pad to longest of 8"]
    for name, one in result.items():
        for values in (one.fill, one.balance, one.speed):
            assert len(values) == SMALL.steps and all(0 < value <= 1 for value in values), name
        # A rank's sum spreads less than its microbatches, and what is lost by padding is lost besides.
        assert all(1 / balance <= largest for balance, largest in zip(one.balance, one.microbatch, strict=True)), name
        assert all(speed <= balance + 1e-9 for speed, balance in zip(one.speed, one.balance, strict=True)), name
    assert np.mean(result["Tessera"].fill) > 0.9 > 0.5 > max(result["pad to longest of 8"].fill)


def test_every_way_keeps_its_budget_and_uses_no_sample_twice():
    tokens_n = mixture.draw(12_000).tokens_n
    rng = np.random.default_rng(0)
    setting = {"ranks": 4, "packs_per_rank": 2, "budget": 32_760, "window": 256, "steps": 3}
    ways = {
        "ours": ours(tokens_n, **setting, cost=PackCost(linear=1.0, quadratic=1e-5)),
        "packs": token_packs(tokens_n, SMALL, rng),
        "buckets": bucket_batches(tokens_n, SMALL, rng),
        "padded": padded_batches(tokens_n, SMALL, rng),
    }
    for name, steps in ways.items():
        assert [[len(rank) for rank in step] for step in steps] == [[2] * 4] * 3, name
        microbatches = [rows for rank in itertools.chain(*steps) for rows in rank]
        used = np.concatenate(microbatches)
        assert len(np.unique(used)) == len(used), name
        if name == "padded":
            assert {len(rows) for rows in microbatches} == {8}
        else:
            assert max(tokens_n[rows].sum() for rows in microbatches) <= SMALL.budget, name
        if name == "buckets":
            assert all(len(np.unique(tokens_n[rows])) == 1 for rows in microbatches)


def test_score_of_equal_ranks_is_one_and_padding_is_paid_for():
    config = model_config("wan_1_3b")
    tokens_n, text_n = np.array([100, 100, 100, 50]), np.full(4, 7)
    even = score([[[np.array([0])], [np.array([1])]]], tokens_n, text_n, config, padded_to=100)
    assert even.fill == even.balance == even.microbatch == even.speed == [1.0]
    padded = score([[[np.array([0, 1])], [np.array([2, 3])]]], tokens_n, text_n, config, padded_to=0)
    assert padded.fill == [350 / 400]
    assert padded.balance == [1.0]
    assert 0.8 < padded.speed[0] < 350 / 400 + 0.01


def test_planning_of_a_simulated_set_is_timed():
    timed = time_plan(3000, packs_per_step=8, budget=mixture.LARGEST, window=256, steps=3)
    assert timed.start_s > 0 and len(timed.step_s) == 3 and min(timed.step_s) > 0


def test_it_prints_a_row_for_each_way_of_sharing_out(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench.data", "--planning", "--steps", "1", "--rows", "20000"])
    assert bench.main() == 0
    printed = capsys.readouterr().out
    rows = re.findall(r"^  ([A-Za-z][\w ]*?) +[01]\.\d{3} \(", printed, flags=re.MULTILINE)
    assert rows == 2 * ["Tessera", "token packs alone", "fixed batch a bucket", "pad to longest of 8"]
    assert re.search(r"^ +20,000 rows +[\d.]+ ms a step", printed, flags=re.MULTILINE)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--rows", "100", "0"], "at least 1 step of at least 1 row is planned"),
        (["--steps", "0"], "at least 1 step of at least 1 row is planned"),
        (["--rounds", "1"], "at least 2 rounds are measured"),
        (
            ["--only", "webdataset", "dali"],
            "--only dali is in the name of no loader: they are read(); Tessera, 1 worker;",
        ),
    ],
)
def test_what_measures_nothing_is_refused_before_anything_is_measured(monkeypatch, capsys, words, sentence):
    monkeypatch.setattr(sys, "argv", ["data", *words])
    with pytest.raises(SystemExit, match="^2$"):
        bench.main()
    told = capsys.readouterr()
    assert sentence in told.err and not told.out
