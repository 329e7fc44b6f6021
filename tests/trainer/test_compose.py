"""Configs: what YAML says fills a dataclass exactly, or fails in one sentence."""

from dataclasses import dataclass, field
from typing import Literal

import pytest

from trainer.compose import EXIT_USER_ERROR, to_dataclass, to_yaml, user_errors


@dataclass(frozen=True, kw_only=True)
class Inner:
    size: tuple[int, int]
    rate: float


@dataclass(frozen=True, kw_only=True)
class Outer:
    inner: Inner
    name: str | None = None


def test_fills_tuples_and_whole_floats_and_writes_itself_back() -> None:
    config = to_dataclass(Outer, {"inner": {"size": [1, 2], "rate": 1}, "hydra": {"x": 1}})
    assert config == Outer(inner=Inner(size=(1, 2), rate=1.0))
    import yaml

    assert to_dataclass(Outer, yaml.safe_load(to_yaml(config))) == config


@pytest.mark.parametrize(
    ("plain", "message"),
    [
        ({"inner": {"size": [1, 2], "rate": 1, "speed": 2}}, "speed"),
        ({"inner": {"size": [1, 2], "rate": "fast"}}, "inner.rate"),
        ({"inner": {"size": [1, 2]}}, "inner.rate"),
        ({"inner": {"size": [1, "b"], "rate": 1.0}}, "inner.size"),
    ],
)
def test_mistakes_name_the_key(plain: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_dataclass(Outer, plain)


def test_user_errors_become_one_sentence(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TESSERA_TRACEBACK", raising=False)

    @user_errors
    def main() -> None:
        raise ValueError("steps=0 must be at least 1")

    with pytest.raises(SystemExit) as exit_info:
        main()
    assert exit_info.value.code == EXIT_USER_ERROR
    assert caplog.messages[-1].startswith("error: steps=0 must be at least 1")
    for name, value in {"RANK": 3, "WORLD_SIZE": 4, "LOCAL_RANK": 3}.items():
        monkeypatch.setenv(name, str(value))
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    with pytest.raises(SystemExit):
        main()
    assert waits == [20.0], "rank 0 speaks first, and the launcher ends this one"
    assert caplog.messages[-1].startswith("rank 3: error: steps=0 must be at least 1")
    monkeypatch.delenv("RANK")
    for name, value in {"SLURM_PROCID": 2, "SLURM_STEP_NUM_TASKS": 4, "SLURM_LOCALID": 0}.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(SystemExit):
        main()
    assert caplog.messages[-1].startswith("rank 2: error: "), "srun without torchrun has one rank 0 too"


@dataclass(frozen=True, kw_only=True)
class Lists:
    words: tuple[str, ...] = ()
    pair: tuple[int, float] | None = None
    either: str | tuple[str, ...] = ""
    mode: Literal["on", "off"] = "on"
    shares: dict[str, float] = field(default_factory=dict)


@pytest.mark.parametrize(
    ("plain", "message"),
    [
        ({"words": "a rabbit"}, r"words=a rabbit must be a list in brackets, each item a text$"),
        ({"words": [1]}, r"words=\[1\] must be a list in brackets"),
        ({"pair": "12"}, r"pair='12' must be a list of 2 in brackets, each item a whole number or null$"),
        ({"pair": [1, 2, 3]}, r"pair=\[1, 2, 3\] must be a list of 2"),
        ({"mode": "maybe"}, r"mode=maybe must be one of on, off$"),
        ({"word": ["a"]}, r"word is no setting: did you mean words\?$"),
        ({"zzz": 1}, r"zzz is no setting: there are words, pair, either, mode, shares$"),
        ({"shares": {"a": "b"}}, r"shares={a: b} must be a group in braces, each value a number$"),
    ],
)
def test_a_wrong_value_is_told_with_what_would_be_right(plain: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_dataclass(Lists, plain)


def test_a_string_is_a_list_of_its_letters_nowhere() -> None:
    given = {"words": ["a rabbit"], "pair": [1, 2], "either": "a rabbit"}
    assert to_dataclass(Lists, given) == Lists(words=("a rabbit",), pair=(1, 2.0), either="a rabbit")
    assert to_dataclass(Lists, {"either": ["a", "b"]}).either == ("a", "b")


def test_nothing_is_an_empty_group_of_numbers() -> None:
    assert to_dataclass(Lists, {"shares": None}).shares == {}
    assert to_dataclass(Lists, {"shares": {"a": 1, "b": 0.5}}).shares == {"a": 1.0, "b": 0.5}
