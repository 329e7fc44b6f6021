"""Configs: what YAML says fills a dataclass exactly, or fails in one sentence."""

from dataclasses import dataclass, field
from typing import Literal

import hydra
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


@pytest.fixture
def command(monkeypatch, caplog):
    """A command that takes `model`, `steps` and `prompts`; calling it with words returns what it got."""
    got = []

    @user_errors
    @hydra.main(config_path=None, version_base="1.3")
    @user_errors
    def main(config):
        got.append(config)

    def call(*words):
        got.clear()
        caplog.clear()
        monkeypatch.setattr("sys.argv", ["command", *words])
        try:
            main()
        except SystemExit as end:
            return end.code, caplog.messages
        return 0, got[0]

    return call


def test_a_config_that_was_composed_before_is_taken_as_it_is(command, tmp_path):
    saved = tmp_path / "submit.yaml"
    saved.write_text("name: a\nsizes: {steps: 3, lr: 1.0e-3}\nprompts: [x, 'a $HOME']\n")
    assert command("--config", str(saved)) == (
        0,
        {"name": "a", "sizes": {"steps": 3, "lr": 1e-3}, "prompts": ["x", "a $HOME"]},
    )
    assert command("--config", str(saved), "sizes.steps=4", "more=true")[1] == {
        "name": "a",
        "sizes": {"steps": 4, "lr": 1e-3},
        "prompts": ["x", "a $HOME"],
        "more": True,
    }


def test_a_saved_config_that_cannot_be_read_is_told(command, tmp_path):
    (tmp_path / "list.yaml").write_text("[1, 2]")
    (tmp_path / "torn.yaml").write_text("a: [1, 2")
    for words, sentence in (
        ([], "--config needs a file: --config runs/NAME/submit.yaml"),
        ([str(tmp_path / "none.yaml")], "No such file or directory"),
        ([str(tmp_path / "list.yaml")], "list.yaml: Cannot merge DictConfig with ListConfig"),
        ([str(tmp_path / "torn.yaml")], "torn.yaml: while parsing a flow sequence"),
    ):
        code, messages = command("--config", *words)
        assert code == EXIT_USER_ERROR
        assert len(messages) == 1 and sentence in messages[0]


def test_nothing_is_an_empty_group_of_numbers() -> None:
    assert to_dataclass(Lists, {"shares": None}).shares == {}
    assert to_dataclass(Lists, {"shares": {"a": 1, "b": 0.5}}).shares == {"a": 1.0, "b": 0.5}
