"""From a composed Hydra config to frozen dataclasses, and from a user's mistake to one sentence."""

import difflib
import functools
import inspect
import logging
import os
import re
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, is_dataclass
from types import UnionType
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

import dacite
import yaml
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from parallel.dims import ParallelDims
from parallel.launch import Launch

T = TypeVar("T")
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
_PATIENCE_S = 20.0
TRACEBACK_VARIABLE = "TESSERA_TRACEBACK"
SAVED_CONFIG = "--config"
"""`python -m trainer.train --config FILE` takes a config that was composed before, and composes nothing."""


def to_dataclass(kind: type[T], config: DictConfig | dict[str, Any]) -> T:
    """Fill dataclass `kind` from a config; unknown keys and wrong types raise ValueError naming the key."""
    try:
        if isinstance(config, DictConfig) and (missing := sorted(OmegaConf.missing_keys(config))):
            raise ValueError(f"config: {', '.join(missing)} must be given, such as {missing[0]}=...")
        plain: Any = OmegaConf.to_container(config, resolve=True) if isinstance(config, DictConfig) else config
    except OmegaConfBaseException as error:
        raise ValueError(f"config: {_one_line(error)}") from error
    # A list becomes a tuple here and not by dacite's `cast`, which makes one of a string too, letter by letter.
    values = {key: _lists_to_tuples(value) for key, value in plain.items() if key != "hydra"}
    _refuse_unknown(kind, values)
    try:
        return dacite.from_dict(kind, values, dacite.Config(type_hooks={float: _to_float, dict[str, float]: _to_dict}))
    except dacite.WrongTypeError as error:
        given = functools.reduce(lambda group, key: group[key], str(error.field_path).split("."), values)
        raise ValueError(
            f"config: {error.field_path}={_in_yaml(given)} must be {in_words(error.field_type)}"
        ) from error
    except dacite.DaciteError as error:
        raise ValueError(f"config: {error}") from error


def _refuse_unknown(kind: type, values: dict[str, Any], prefix: str = "") -> None:
    hints = get_type_hints(kind)
    for key, value in values.items():
        if key not in hints:
            raise ValueError(f"config: {prefix}{key} is no setting: {_nearest(key, list(hints), prefix)}")
        group = next((part for part in (hints[key], *get_args(hints[key])) if is_dataclass(part)), None)
        if isinstance(group, type) and isinstance(value, dict):
            _refuse_unknown(group, value, f"{prefix}{key}.")


def _nearest(wrong: str, known: list[str], prefix: str) -> str:
    near = difflib.get_close_matches(wrong, known, n=1)
    return f"did you mean {prefix}{near[0]}?" if near else "there are " + ", ".join(prefix + name for name in known)


def _to_float(value: Any) -> Any:
    """YAML writes 1 where a float is meant; anything else is left for dacite to refuse."""
    return float(value) if type(value) is int else value


def _to_dict(value: Any) -> Any:
    """In `conf/` an empty one is null: Hydra lets an override replace that, but add no key to `{}`."""
    return {} if value is None else value


def _lists_to_tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lists_to_tuples(item) for key, item in value.items()}
    if isinstance(value, list):
        return tuple(_lists_to_tuples(item) for item in value)
    return value


def _in_yaml(value: Any) -> str:
    return yaml.safe_dump(_tuples_to_lists(value), default_flow_style=True, width=1000).removesuffix("...\n").strip()


def in_words(kind: Any) -> str:
    """What a value of this type looks like to a user."""
    parts = get_args(kind)
    match get_origin(kind):
        case origin if origin in (Union, UnionType):
            return " or ".join(in_words(part) for part in parts)
        case origin if origin is Literal:
            return "one of " + ", ".join(map(str, parts))
        case origin if origin is tuple and parts[-1] is Ellipsis:
            return f"a list in brackets, each item {in_words(parts[0])}"
        case origin if origin is dict:
            return f"a group in braces, each value {in_words(parts[1])}"
        case origin if origin is tuple:
            return f"a list of {len(parts)} in brackets, each item {in_words(parts[0])}"
    if is_dataclass(kind):
        return "a group of settings"
    plain = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "null"}
    plain[Any] = "anything"
    return plain.get(kind, str(kind))


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
    """Turn a user's mistake into one sentence on rank 0 and exit code 2, and Ctrl-C into exit code 130.

    Below `@hydra.main` it is for what we refuse, above it for what Hydra does: a key that is in no config, an option
    that no group has. The traceback is one environment variable away, since a ValueError can also be ours.
    """

    takes_config = bool(inspect.signature(main).parameters)

    @functools.wraps(main)
    def guarded(*args: Any, **kwargs: Any) -> None:
        if not {"--info", "-i"} & {*sys.argv}:  # then Hydra prints, and would do so twice
            logging.basicConfig(level=logging.INFO, format="%(message)s")
        os.environ["HYDRA_FULL_ERROR"] = "1"  # let its errors through, to be said here
        try:
            if not args and takes_config and sys.argv[1:2] == [SAVED_CONFIG]:
                args = (saved_config(sys.argv[2:]),)  # which Hydra hands on as it is
            main(*args, **kwargs)
        except KeyboardInterrupt:
            _leave("stopped before there was anything to save; the same command starts again", EXIT_INTERRUPTED)
        except (ValueError, OSError, HydraException) as error:
            if os.environ.get(TRACEBACK_VARIABLE):
                raise
            sentence = _refused_by_hydra(error) if isinstance(error, HydraException) else str(error)
            _leave(f"error: {sentence}  [{TRACEBACK_VARIABLE}=1 shows where]", EXIT_USER_ERROR)

    return guarded


def saved_config(words: list[str]) -> DictConfig:
    """The config in a file, such as `slurm.submit` leaves in a run folder, with the settings `KEY=VALUE` after it."""
    if not words:
        raise ValueError(f"{SAVED_CONFIG} needs a file: {SAVED_CONFIG} runs/NAME/submit.yaml")
    try:
        config = OmegaConf.merge(OmegaConf.load(words[0]), OmegaConf.from_dotlist(words[1:]))
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise ValueError(f"{' '.join(words)}: {_one_line(error)}") from error
    assert isinstance(config, DictConfig), "settings merge into nothing else"
    return config


def to_saved_config(config: Any) -> str:
    """A composed config, or a dataclass, as YAML that `saved_config` reads: with nothing left to fill in but `???`."""
    try:
        if isinstance(config, DictConfig):
            plain = OmegaConf.to_container(config, resolve=True)
        else:
            plain = _tuples_to_lists(asdict(config))
    except OmegaConfBaseException as error:
        raise ValueError(f"config: {_one_line(error)}") from error
    return OmegaConf.to_yaml(OmegaConf.create(_literal(plain)))


def _literal(value: Any) -> Any:
    """With every `${` escaped: in what is filled in already, it is text."""
    if isinstance(value, dict):
        return {key: _literal(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_literal(item) for item in value]
    # Backslashes before it would be taken for escapes too.
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


def _leave(sentence: str, code: int) -> NoReturn:
    """Say it and exit.

    Rank 0 speaks for all. The others wait for it: a launcher that sees any rank end kills the rest, and the sentence
    with them. One that is left alive has a reason of its own, such as a node without the shards.
    """
    rank = Launch.named().rank
    if rank != 0:
        time.sleep(_PATIENCE_S)
        sentence = f"rank {rank}: {sentence}"
    logging.getLogger(__name__).error(sentence)
    sys.exit(code)


def _refused_by_hydra(error: HydraException) -> str:
    """One sentence with the nearest thing that would have been right."""
    cause = error.__cause__
    if isinstance(error, MissingConfigException) and error.options and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.rpartition("/")
        return f"{group}={option} is not there: take one of {', '.join(error.options)}"
    if isinstance(cause, ConfigKeyError | ConfigAttributeError) and isinstance(cause.parent_node, DictConfig):
        key, known = str(cause.key), [str(key) for key in cause.parent_node if key != "hydra"]
        group = str(cause.full_key).removesuffix(key)
        if not known:
            return f"{cause.full_key} is in no config, as {group[:-1]} is empty: write '{group[:-1]}={{{key}: ...}}'"
        advice = _nearest(key, known, group)
        return f"{cause.full_key} is in no config: {advice}" + (
            "" if advice.endswith("?") else f", and +{cause.full_key}=... sets one that is only a default in the code"
        )
    return f"{_one_line(error)}: write KEY=VALUE, quoted where the shell would take it apart"


def _one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines()]
    return ", ".join(line for line in lines if line and not line.startswith("See https"))


def parse_layout(text: str) -> ParallelDims:
    """`tensor=2 pipeline=2` as dims; ValueError for settings that `parallel` does not have."""
    try:
        values = OmegaConf.to_container(OmegaConf.from_dotlist(text.split()))
    except OmegaConfBaseException as error:
        raise ValueError(f"{text!r} is no list of settings such as 'tensor=2 pipeline=2'") from error
    assert isinstance(values, dict)
    return to_dataclass(ParallelDims, {str(name): value for name, value in values.items()})
