import json

import pytest

from data.balance import PackCost
from data.curriculum import StageConfig
from data.mixture import MixConfig
from data.pack import Position
from data.plan import PlanConfig, logged_position, position_row, step_of_run
from tests.data.latent_set import sample, write_latents


@pytest.fixture
def config(tmp_path):
    write_latents(tmp_path / "set", [sample(i, heldout_every=7) for i in range(50)])
    write_latents(tmp_path / "more", [sample(i) for i in range(100, 120)])
    return PlanConfig(
        folders={str(tmp_path / "set"): 1.0, str(tmp_path / "more"): 0.5},
        seed=4,
        tokens_per_pack=100,
        packs_per_step=2,
        window=20,
        limit_samples=None,
        mix=MixConfig(weights={"image": 0.5}),
        curriculum=(StageConfig(until_step=3, mix=MixConfig(max_tokens=30)),),
        cost=PackCost(linear=1.0, quadratic=1e-3),
    )


@pytest.fixture
def run(config, tmp_path):
    """A run folder after 10 steps, every third logged; its steps from a plan that went through them."""
    folder, position, rows, steps = tmp_path / "run", Position(), [], {}
    folder.mkdir()
    shards = config.open_shards()
    config.write(folder, shards=shards.hash)
    plan = config.open(shards)
    for step in range(1, 13):
        packs, after = plan.step(position, config.packs_per_step)
        steps[step] = (packs, position)
        if step <= 10 and step % 3 == 0:
            rows.append({"step": step, "loss": 1.0, "position": position_row(after)})
        position = after
    rows.append({"step": 10, "heldout/loss": 1.0})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 11, "po')
    return folder, steps


def test_a_run_folder_tells_its_plan(config, run):
    assert PlanConfig.read(run[0])[0] == config


def test_any_step_is_looked_up_past_and_to_come(run):
    folder, steps = run
    for step, (packs, position) in steps.items():
        _, _, found, start = step_of_run(folder, step)
        assert (found, start) == (packs, position)


def test_the_search_begins_at_the_last_logged_position(run):
    folder, steps = run
    assert [logged_position(folder, before=step).step for step in (1, 3, 4, 7, 10, 100)] == [0, 0, 3, 6, 9, 9]
    assert logged_position(folder, before=7) == steps[7][1]


def test_packs_per_step_may_have_changed_on_the_way(config, run):
    """The logged positions say where each step began."""
    folder, steps = run
    start = steps[7][1]
    wider = PlanConfig(**{**vars(config), "packs_per_step": 4})
    wider.write(folder, shards=config.open_shards().hash)
    _, _, packs, found = step_of_run(folder, 7)
    assert found == start and len(packs) == 4


def test_steps_before_a_changed_plan_are_still_those_that_were_trained_on(config, run):
    """Resumed at step 7 with other settings: each step is looked up in the plan that it was made of."""
    folder, steps = run
    shards, start = config.open_shards(), steps[7][1]
    changed = PlanConfig(**{**vars(config), "packs_per_step": 4, "tokens_per_pack": 120, "curriculum": ()})
    at_seven = Position(step=start.step, tokens=start.tokens)
    changed.write(folder, shards=shards.hash, start=at_seven)
    (folder / "metrics.jsonl").write_text("")
    for step in range(1, 7):
        _, said, packs, position = step_of_run(folder, step)
        assert (said, packs, position) == (config, *steps[step])
    plan, position = changed.open(shards), at_seven
    for step in range(7, 10):
        packs, after = plan.step(position, 4)
        assert step_of_run(folder, step)[1:] == (changed, packs, position)
        position = after


def test_a_plan_is_kept_once_and_as_long_as_its_steps_stand(config, run):
    folder, steps = run
    plan_file, shards = folder / "data_plan.json", config.open_shards().hash
    before = plan_file.read_bytes()
    config.write(folder, shards=shards, start=steps[7][1])
    assert plan_file.read_bytes() == before, "resumed as it was"
    wider = PlanConfig(**{**vars(config), "packs_per_step": 4})
    wider.write(folder, shards=shards, start=steps[9][1])
    assert [PlanConfig.read(folder, step=step)[0] for step in (8, 9)] == [config, wider]
    config.write(folder, shards=shards, start=steps[5][1])
    assert plan_file.read_bytes() == before, "resumed from a checkpoint before the change"


def test_a_plan_of_an_older_run_is_that_of_all_steps(config, run):
    folder, steps = run
    [plan] = json.loads((folder / "data_plan.json").read_text())
    del plan["start"]
    (folder / "data_plan.json").write_text(json.dumps(plan))
    assert step_of_run(folder, 2)[2:] == steps[2]


def test_steps_of_another_order_are_not_told_as_if_they_were_of_this_one(config, run):
    folder, steps = run
    [plan] = json.loads((folder / "data_plan.json").read_text())
    del plan["order"]  # as it was before orders had a number
    (folder / "data_plan.json").write_text(json.dumps([plan]))
    with pytest.raises(
        ValueError, match="step 2 of .* was planned by order 1 of samples, and this version knows order"
    ):
        step_of_run(folder, 2)
    config.write(folder, shards=config.open_shards().hash, start=steps[5][1])
    assert step_of_run(folder, 7)[2:] == steps[7], "resumed under this order"
    with pytest.raises(ValueError, match="order 1"):
        step_of_run(folder, 2)


def test_what_cannot_be_looked_up_is_told(config, run, tmp_path):
    folder, _ = run
    with pytest.raises(ValueError, match="--step 0 must be at least 1"):
        step_of_run(folder, 0)
    with pytest.raises(ValueError, match="has no data_plan.json: is it the folder of a training run"):
        step_of_run(tmp_path, 1)
    config.write(folder, shards="0" * 64)
    with pytest.raises(ValueError, match=r"holds other shards \(\w{12}\) than the run was trained on \(000000000000\)"):
        step_of_run(folder, 1)
    (folder / "data_plan.json").unlink()
    config.write(folder, shards="0" * 64, start=Position(step=6))
    with pytest.raises(ValueError, match="data_plan.json was made anew at step 7: it tells none before"):
        step_of_run(folder, 6)
    (folder / "data_plan.json").write_text("{")
    with pytest.raises(ValueError, match="data_plan.json cannot be read"):
        step_of_run(folder, 1)
