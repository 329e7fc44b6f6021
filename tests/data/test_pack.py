import hashlib
import json

import numpy as np
import pytest

from data.mixture import DataSet
from data.pack import ORDER_VERSION, PackPlan, Position, best_fit
from tests.data.latent_set import sample, write_latents


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return write_latents(
        tmp_path_factory.mktemp("pack") / "set", [sample(i, heldout_every=9) for i in range(70)]
    ).select("train")


def plan(manifest, **changes):
    return PackPlan(DataSet.of(manifest), **{"seed": 0, "tokens_per_pack": 100, "window": 20} | changes)


def rows_of(packs):
    return [row for pack in packs for row in pack.rows]


def stream(data_plan, packs, *, per_step=1, start=None):
    """The first `packs` packs from a position on."""
    position, out = start or Position(), []
    while len(out) < packs:
        step, position = data_plan.step(position, per_step)
        out += step
    return out[:packs]


@pytest.mark.parametrize("budget", [80, 100, 333])
def test_packs_keep_the_budget_and_hold_each_sample_once_an_epoch(manifest, budget):
    data_plan = plan(manifest, tokens_per_pack=budget)
    for epoch in range(2):
        count = data_plan.packs_in_epoch(epoch)
        before = sum(data_plan.packs_in_epoch(e) for e in range(epoch))
        packs = stream(data_plan, before + count)[before:]
        assert {pack.epoch for pack in packs} == {epoch}
        assert sorted(rows_of(packs)) == manifest.row_numbers.tolist()
        assert all(0 < pack.video_tokens <= budget for pack in packs)
        assert all(pack.video_tokens == manifest.column("video_tokens", pack.rows).sum() for pack in packs)


@pytest.mark.parametrize("per_step", [2, 3, 4, 8, 50])
def test_the_stream_does_not_depend_on_packs_per_step(manifest, per_step):
    """But for the order inside a step, which evens out work."""
    whole, order = stream(plan(manifest), 100), lambda pack: (pack.epoch, pack.rows)
    mine = stream(plan(manifest), 100, per_step=per_step)
    for start in range(0, 100 - per_step + 1, per_step):
        step = slice(start, start + per_step)
        assert sorted(mine[step], key=order) == sorted(whole[step], key=order)


def test_any_position_resumes_the_stream(manifest):
    whole = stream(plan(manifest), 60, per_step=4)
    position = Position()
    for done in range(0, 40, 4):
        fresh = plan(manifest)
        assert stream(fresh, 8, per_step=4, start=position) == whole[done : done + 8]
        _, position = fresh.step(position, 4)


def test_a_step_runs_over_the_end_of_an_epoch(manifest):
    data_plan = plan(manifest)
    left = data_plan.packs_in_epoch(0) - 1
    _, position = data_plan.step(Position(), left)
    packs, after = data_plan.step(position, 4)
    assert sorted(pack.epoch for pack in packs) == [0, 1, 1, 1]
    other = data_plan.step(Position(epoch=1), 3)[1]
    assert (after.epoch, after.pack) == (other.epoch, other.pack)
    assert (after.step, after.tokens - position.tokens) == (2, sum(pack.video_tokens for pack in packs))


def test_seed_budget_and_window_each_change_the_plan(manifest):
    one = stream(plan(manifest), 10)
    for changes in ({"seed": 1}, {"tokens_per_pack": 101}, {"window": 21}):
        assert stream(plan(manifest, **changes), 10) != one


def test_a_sample_above_the_budget_is_named(manifest):
    with pytest.raises(
        ValueError, match=r"sample film/clip\d+ has 80 tokens, above data.tokens_per_pack=64 [(]so have \d+ of 62"
    ):
        plan(manifest, tokens_per_pack=64)


def test_an_empty_split_is_refused(manifest):
    with pytest.raises(ValueError, match="has no sample in this split"):
        plan(manifest.head(0))


@pytest.mark.parametrize("position", [Position(pack=15), Position(pack=40 << 20)])
def test_a_position_of_another_plan_is_refused(manifest, position):
    with pytest.raises(ValueError, match="not a position of this data plan"):
        plan(manifest).step(position, 1)


def test_best_fit_takes_the_fullest_pack_with_room():
    assert best_fit(np.array([6, 5, 3, 4, 1, 5]), 10) == [[0, 3], [1, 5], [2, 4]]


def test_best_fit_equals_the_plain_loop():
    generator = np.random.default_rng(0)
    for _ in range(20):
        sizes, budget = generator.integers(1, 60, size=200), int(generator.integers(60, 200))
        packs = []
        for item in sorted(range(200), key=lambda i: -sizes[i]):
            homes = [p for p in packs if sizes[p].sum() + sizes[item] <= budget]
            if homes:
                fullest = max(sizes[p].sum() for p in homes)
                next(p for p in homes if sizes[p].sum() == fullest).append(item)
            else:
                packs.append([item])
        found = best_fit(sizes, budget)
        assert sorted(i for pack in found for i in pack) == list(range(200))
        assert sorted(sizes[p].sum() for p in found) == sorted(sizes[p].sum() for p in packs)


def test_the_order_is_written_down(manifest):
    """Where this changes, ORDER_VERSION must too: a run saved before would go on in another order."""
    named = [manifest.keys(list(pack.rows)) for pack in stream(plan(manifest), 12, per_step=4)]
    digest = hashlib.sha256(json.dumps(named).encode()).hexdigest()[:16]
    assert (ORDER_VERSION, digest) == (2, "3bb51790e8324cd4")
