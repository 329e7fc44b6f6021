"""A config composed once, as `slurm/train.sbatch` does."""

import sys

import pytest
import yaml
from hydra import compose
from omegaconf import OmegaConf

from slurm import compose as command
from trainer.compose import EXIT_USER_ERROR, saved_config, to_dataclass
from trainer.config import TrainConfig


def composed(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["slurm.compose", *words])
    command.main()
    return capsys.readouterr().out


def test_what_is_written_is_the_run_that_the_words_mean(monkeypatch, capsys, tmp_path):
    prompt = "a rabbit, big and grey's; $HOME"
    words = ("experiment=demo", "schedule.lr=1e-3", f'samples.prompts=["{prompt}"]')
    path = tmp_path / "job.yaml"
    path.write_text(composed(monkeypatch, capsys, "trainer.train", *words))
    assert "${" not in path.read_text() and "hydra" not in yaml.safe_load(path.read_text())
    with command.configs():
        wanted = to_dataclass(TrainConfig, compose("train", list(words)))
    assert to_dataclass(TrainConfig, saved_config([str(path)])) == wanted
    assert wanted.samples.prompts == (prompt,)


def test_what_must_still_be_given_is_refused_by_the_command(monkeypatch, capsys):
    config = OmegaConf.create(composed(monkeypatch, capsys, "trainer.encode"))
    assert "clips" in OmegaConf.missing_keys(config)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("trainer.train", "run.stepz=4"), "run.stepz is in no config: did you mean run.steps?"),
        (("slurm.jobs", "status"), "module=slurm.jobs is no command with a config of its own, such as trainer.train"),
        ((), "name a module: python -m slurm.compose trainer.train OVERRIDE..."),
    ],
)
def test_mistakes_are_one_sentence(monkeypatch, capsys, caplog, words, sentence):
    with pytest.raises(SystemExit) as end:
        composed(monkeypatch, capsys, *words)
    assert end.value.code == EXIT_USER_ERROR
    assert len(caplog.messages) == 1 and caplog.messages[0].startswith(f"error: {sentence}")
    assert capsys.readouterr().out == ""
