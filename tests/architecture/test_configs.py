"""Every shipped YAML composes into the dataclass of its command, alone and as an option of its group."""

import ast
import importlib
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from trainer.compose import to_dataclass
from trainer.config import LoopConfig, TrainConfig, differences

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"
PACKAGES = ("trainer", "slurm", "scaling")


def entry_points() -> dict[str, tuple[str, str]]:
    """Root config -> (module, name of its dataclass), as `@hydra.main` (or `compose`) and `to_dataclass` say there."""
    found = {}
    for path in sorted(path for package in PACKAGES for path in (ROOT / package).glob("*.py")):
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        roots = [
            word.value.value
            for call in calls
            if ast.unparse(call.func) == "hydra.main"
            for word in call.keywords
            if word.arg == "config_name"
        ]
        composed = [call.args[0] for call in calls if ast.unparse(call.func) == "compose"]
        roots += [name.value for name in composed if isinstance(name, ast.Constant)]
        kinds = [ast.unparse(call.args[0]) for call in calls if ast.unparse(call.func) == "to_dataclass"]
        kinds = [kind for kind in kinds if kind.endswith("Config")]
        if roots:
            assert (len(roots), len(kinds)) == (1, 1), f"{path} must call hydra.main and to_dataclass once each"
            found[roots[0]] = (f"{path.parent.name}.{path.stem}", kinds[0])
    return found


def groups(root: str) -> list[str]:
    """Groups in the defaults list of a root config, those without a default (`experiment: null`) too."""
    defaults = yaml.safe_load((CONF / f"{root}.yaml").read_text()).get("defaults", [])
    names = [next(iter(entry)) for entry in defaults if isinstance(entry, dict)]
    return [name.split("@")[0] for name in names if not name.startswith("override ")]


def cases() -> list[tuple[str, str]]:
    """(root config, override) pairs; the empty override is the root alone."""
    pairs = []
    for root in sorted(path.stem for path in CONF.glob("*.yaml")):
        pairs.append((root, ""))
        for group in groups(root):
            pairs += [(root, f"{group}={path.stem}") for path in sorted((CONF / group).glob("*.yaml"))]
    return pairs


def composed(root: str, override: str) -> DictConfig:
    """What the command gets, with the values that only a user can give filled in."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(root, [override] if override else [])
    for key in sorted(OmegaConf.missing_keys(config)):
        OmegaConf.update(config, key, "given-by-the-user")
    return config


@pytest.mark.parametrize(("root", "override"), cases())
def test_config_composes_into_its_dataclass(root, override):
    module, kind = entry_points()[root]
    to_dataclass(getattr(importlib.import_module(module), kind), composed(root, override))


@pytest.mark.parametrize("root", sorted({root for root, _ in cases()}))
def test_no_key_of_a_command_is_also_a_group_it_does_not_use(root):
    """Hydra would take `codec=PATH` for the choice of an option of the group `codec`, and refuse it."""
    keys = yaml.safe_load((CONF / f"{root}.yaml").read_text()).keys()
    folders = {path.name for path in CONF.iterdir() if path.is_dir()}
    assert keys & folders <= set(groups(root))


@pytest.mark.parametrize(
    "setting",
    ["steps=0", "log_every=-1", "checkpoint_every=-5", "evaluate_every=-1", "sample_every=-1"]
    + ["check_replicas_every=-1", "threads_per_rank=0", "ema_half_life_fraction=0"],
)
def test_a_run_that_cannot_be_is_refused(setting):
    name, value = setting.split("=")
    with pytest.raises(ValueError, match=f"run.{name}={value} must be"):
        LoopConfig(**{"steps": 1, name: int(value)})
    never = dict.fromkeys(
        ("log_every", "checkpoint_every", "evaluate_every", "sample_every", "check_replicas_every"), 0
    )
    LoopConfig(steps=1, threads_per_rank=None, **never)


def train_config(override: str) -> TrainConfig:
    return to_dataclass(TrainConfig, composed("train", override))


NUMBERS = ["run.steps=7", "run.ema_half_life_fraction=0.5", "schedule.lr=0.5", "seed=3", "data.position_fps=24.0"]


@pytest.mark.parametrize("override", [*NUMBERS, "text.pad_to=512"])
def test_what_changes_the_numbers_defines_a_run(override):
    changed = differences(train_config("").defining(), train_config(override).defining())
    assert [line.split(":")[0] for line in changed] == [override.split("=")[0]]


@pytest.mark.parametrize(
    "override",
    [
        "run.log_every=7",
        "run.check_replicas_every=7",
        "parallel.deterministic=true",
        "run.threads_per_rank=2",
        "data.prefetch_steps=1",
        "data.prefetch_bytes=1000",
        "data.workers=0",
        "data.read_timeout_s=7",
        "data.online.cache=else",
        "parallel=tp2_pp2",
        "folder=else",
    ],
)
def test_what_leaves_the_numbers_alone_does_not(override):
    assert train_config("") != train_config(override)
    assert not differences(train_config("").defining(), train_config(override).defining())


def test_no_yaml_is_left_out():
    covered = {CONF / f"{root}.yaml" for root, _ in cases()}
    covered |= {CONF / group / f"{option}.yaml" for _, pair in cases() if pair for group, option in [pair.split("=")]}
    assert set(CONF.rglob("*.yaml")) == covered


def test_experiments_and_sweeps_begin_with_the_command_that_runs_them():
    files = [path for group in ("experiment", "debug", "sweep") for path in (CONF / group).glob("*.yaml")]
    heads = {path: path.read_text().split("\n")[:2] for path in files}
    wrong = [path for path, (package, _) in heads.items() if package != "# @package _global_"]
    assert not wrong, "Hydra takes a package from the first line only"
    assert not [
        path for path, (_, line) in heads.items() if not (line.startswith("# python ") and f"={path.stem}" in line)
    ]


def test_no_yaml_names_code():
    assert not [path for path in CONF.rglob("*.yaml") if "_target_" in path.read_text()]
