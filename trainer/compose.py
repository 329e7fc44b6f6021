"""From a composed Hydra config to frozen dataclasses, and from a user's mistake to one sentence."""

import functools
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, fields, is_dataclass
from typing import Any, TypeVar

import dacite
import yaml
from omegaconf import DictConfig, OmegaConf

T = TypeVar("T")
EXIT_USER_ERROR = 2
TRACEBACK_VARIABLE = "TESSERA_TRACEBACK"


def to_dataclass(kind: type[T], config: DictConfig | dict[str, Any]) -> T:
    """Fill dataclass `kind` from a config; unknown keys and wrong types raise ValueError naming the key."""
    if isinstance(config, DictConfig) and (missing := sorted(OmegaConf.missing_keys(config))):
        raise ValueError(f"config: {', '.join(missing)} must be given, such as {missing[0]}=...")
    plain = OmegaConf.to_container(config, resolve=True) if isinstance(config, DictConfig) else config
    rules = dacite.Config(strict=True, cast=[tuple], type_hooks={float: _to_float})
    try:
        return dacite.from_dict(kind, _without_hydra(plain), rules)
    except dacite.UnexpectedDataError as error:
        known = ", ".join(field.name for field in fields(kind))  # type: ignore[arg-type]
        raise ValueError(f"config: {error}; keys of {kind.__name__}: {known}") from error
    except dacite.DaciteError as error:
        raise ValueError(f"config: {error}") from error


def _without_hydra(plain: Any) -> dict[str, Any]:
    return {key: value for key, value in plain.items() if key != "hydra"}


def _to_float(value: Any) -> Any:
    """YAML writes 1 where a float is meant; anything else is left for dacite to refuse."""
    return float(value) if type(value) is int else value


def to_yaml(config: Any) -> str:
    """A dataclass as YAML that `to_dataclass` reads back."""
    assert is_dataclass(config) and not isinstance(config, type)
    return yaml.safe_dump(_tuples_to_lists(asdict(config)), sort_keys=False)


def _tuples_to_lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _tuples_to_lists(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_tuples_to_lists(item) for item in value]
    return value


def user_errors(main: Callable[..., None]) -> Callable[..., None]:
    """Turn ValueError and OSError into one sentence on rank 0 and exit code 2.

    The traceback is one environment variable away, since a ValueError can also be ours.
    """

    @functools.wraps(main)
    def guarded(*args: Any, **kwargs: Any) -> None:
        logging.basicConfig(level=logging.INFO, format="%(message)s")
        try:
            main(*args, **kwargs)
        except (ValueError, OSError) as error:
            if os.environ.get(TRACEBACK_VARIABLE):
                raise
            if os.environ.get("RANK", "0") == "0":
                print(f"error: {error}  [{TRACEBACK_VARIABLE}=1 shows where]", file=sys.stderr)
            sys.exit(EXIT_USER_ERROR)

    return guarded
