"""Learning-rate schedules: end points, monotony, refusals."""

import pytest

from trainer.schedule import ScheduleConfig, learning_rate


def test_warmup_reaches_the_rate_and_cosine_the_floor() -> None:
    config = ScheduleConfig(lr=2.0, kind="cosine", warmup_steps=4, final_ratio=0.1)
    rates = [learning_rate(config, step, 100) for step in range(101)]
    assert rates[:4] == [0.5, 1.0, 1.5, 2.0]
    assert rates[4] == 2.0 and rates[100] == pytest.approx(0.2)
    assert rates[52] == pytest.approx(1.1)
    assert all(a >= b for a, b in zip(rates[4:], rates[5:], strict=False))


def test_constant_stays() -> None:
    config = ScheduleConfig(lr=1.0, kind="constant", warmup_steps=2)
    assert [learning_rate(config, step, 5) for step in range(5)] == [0.5, 1, 1, 1, 1]


@pytest.mark.parametrize("wrong", [{"lr": 0.0}, {"lr": 1.0, "warmup_steps": -1}])
def test_nonsense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"schedule\."):
        ScheduleConfig(**wrong)  # type: ignore[arg-type]
