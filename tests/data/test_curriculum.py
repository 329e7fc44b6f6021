import pytest

from data.curriculum import Curriculum, StageConfig
from data.mixture import DataSet, MixConfig
from data.pack import PackPlan, Position
from tests.data.latent_set import sample, write_latents

SMALL = MixConfig(max_tokens=20)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return DataSet.of(write_latents(tmp_path_factory.mktemp("curriculum") / "set", [sample(i) for i in range(40)]))


def curriculum(data, *stages):
    mixes = [*(stage.mix for stage in stages), MixConfig()]
    return Curriculum([PackPlan(data, seed=0, tokens_per_pack=100, window=20, mix=mix) for mix in mixes], stages)


def walk(plan, steps, position=None):
    """(rows, position after) of each step."""
    position, out = position or Position(), []
    for _ in range(steps):
        packs, position = plan.step(position, 2)
        out.append(([pack.rows for pack in packs], position))
    return out


def test_a_stage_ends_at_its_step(data):
    plan = curriculum(data, StageConfig(until_step=3, mix=SMALL))
    steps = walk(plan, 5)
    assert [after.stage for _, after in steps] == [0, 0, 1, 1, 1]
    assert (steps[2][1].epoch, steps[2][1].pack, steps[2][1].step) == (0, 0, 3)
    small = data.column("video_tokens", [row for rows, _ in steps[:3] for pack in rows for row in pack])
    assert small.max() <= 20
    whole = walk(Curriculum([plan.plans[1]]), 2)
    assert [rows for rows, _ in steps[3:]] == [rows for rows, _ in whole], "the next stage starts at its beginning"


def test_a_stage_ends_at_its_tokens(data):
    plan = curriculum(data, StageConfig(until_tokens=500, mix=SMALL))
    for _, after in walk(plan, 8):
        assert after.stage == (after.tokens >= 500)


def test_stages_follow_one_another_and_may_be_passed_over(data):
    plan = curriculum(data, StageConfig(until_step=2, mix=SMALL), StageConfig(until_step=2), StageConfig(until_step=4))
    assert [after.stage for _, after in walk(plan, 5)] == [0, 2, 2, 3, 3]


def test_any_position_goes_on_as_before(data):
    plan = curriculum(data, StageConfig(until_step=3, mix=SMALL), StageConfig(until_tokens=900))
    whole = walk(plan, 12)
    for number in range(11):
        fresh = curriculum(data, StageConfig(until_step=3, mix=SMALL), StageConfig(until_tokens=900))
        assert walk(fresh, 11 - number, whole[number][1]) == whole[number + 1 :]


def test_what_makes_no_curriculum_is_refused(data):
    with pytest.raises(ValueError, match="needs until_step or until_tokens: when does it end"):
        StageConfig()
    with pytest.raises(ValueError, match="mix.weights.image=inf must be 0 or more, and finite"):
        StageConfig(until_step=1, mix=MixConfig(weights={"image": float("inf")}))
    with pytest.raises(ValueError, match="not a position of this data plan: was it saved with another curriculum"):
        curriculum(data).step(Position(stage=1), 1)
