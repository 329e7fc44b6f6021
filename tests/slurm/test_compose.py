"""A config composed once, as `slurm/train.sbatch` does."""

import sys
from pathlib import Path

import pytest
import yaml
from hydra import compose
from omegaconf import OmegaConf

from slurm import compose as command
from trainer.compose import EXIT_USER_ERROR, saved_config, to_dataclass
from trainer.config import TrainConfig

ROOT = Path(__file__).parents[2]
MODULES = sorted(
    f"{package}.{path.stem}"
    for package in ("trainer", "scaling")
    for path in (ROOT / "conf").glob("*.yaml")
    if (ROOT / package / path.name).with_suffix(".py").is_file()
)


@pytest.fixture
def composed(monkeypatch, tmp_path):
    """The file that `slurm.compose` writes."""

    def call(*words):
        path = tmp_path / "job.yaml"
        monkeypatch.setattr(sys, "argv", ["slurm.compose", str(path), *words])
        command.main()
        return path

    return call


@pytest.mark.parametrize("prompt", ["a rabbit, big and grey's; $HOME", "Ü", "a\nb", "012", "1e5", "on"])
def test_what_is_written_is_the_run_that_the_words_mean(composed, prompt):
    words = ("experiment=demo", "schedule.lr=1e-3", f'samples.prompts=["{prompt}"]')
    path = composed("trainer.train", *words)
    assert "hydra" not in yaml.safe_load(path.read_text(encoding="utf-8"))
    with command.configs():
        wanted = to_dataclass(TrainConfig, compose("train", list(words)))
    assert to_dataclass(TrainConfig, saved_config([str(path)])) == wanted
    assert wanted.samples.prompts == (prompt,)


def test_what_one_setting_takes_from_another_is_filled_in_once(composed):
    path = composed("trainer.train", "experiment=demo", "name=x-${run.steps}", r"wandb.notes='costs \${run.steps} $'")
    filled = to_dataclass(TrainConfig, saved_config([str(path)]))
    assert (filled.name, filled.wandb.notes) == (f"x-{filled.run.steps}", "costs ${run.steps} $")


@pytest.mark.parametrize("module", MODULES)
def test_every_command_with_a_config_has_one_that_can_be_saved(composed, module):
    """What must still be given stays so, for the command to ask for."""
    path = composed(module)
    with command.configs():
        plain = compose(command.config_name(module))
    assert OmegaConf.missing_keys(saved_config([str(path)])) == OmegaConf.missing_keys(plain)


def test_within_a_command_of_hydras_its_own_configs_are_found():
    with command.configs(), command.configs():
        assert compose("train").run.steps


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("trainer.train", "run.stepz=4"), "run.stepz is in no config: did you mean run.steps?"),
        (("trainer.train", "name=${nosuch}"), "config: Interpolation key 'nosuch' not found, full_key: name"),
        (("slurm.jobs", "status"), "module=slurm.jobs is no command with a config of its own, such as trainer.train"),
        ((), "name a file and a module: python -m slurm.compose FILE trainer.train OVERRIDE..."),
    ],
)
def test_mistakes_are_one_sentence(composed, caplog, tmp_path, words, sentence):
    with pytest.raises(SystemExit) as end:
        composed(*words)
    assert end.value.code == EXIT_USER_ERROR
    assert len(caplog.messages) == 1 and caplog.messages[0].startswith(f"error: {sentence}")
    assert "\n" not in caplog.messages[0] and not list(tmp_path.iterdir())
