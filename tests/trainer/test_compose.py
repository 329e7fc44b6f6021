"""Configs: what YAML says fills a dataclass exactly, or fails in one sentence."""

from dataclasses import dataclass

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


def test_user_errors_become_one_sentence(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TESSERA_TRACEBACK", raising=False)

    @user_errors
    def main() -> None:
        raise ValueError("steps=0 must be at least 1")

    with pytest.raises(SystemExit) as exit_info:
        main()
    assert exit_info.value.code == EXIT_USER_ERROR
    assert capsys.readouterr().err.startswith("error: steps=0 must be at least 1")
    monkeypatch.setenv("RANK", "3")
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().err == ""
