from dataclasses import replace

import pytest
import torch

from model.text import TextConfig
from tests.trainer.codec_case import make_config, write_clips
from trainer.device import choose_device
from trainer.encode import EncodeConfig
from trainer.encode import run as run_encode
from trainer.evaluate import EvaluateConfig
from trainer.evaluate import run as run_evaluate
from trainer.sample import SampleConfig
from trainer.sample import run as run_sample
from trainer.train_vae import run as run_train_vae


def test_auto_is_the_gpu_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == choose_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda")
    assert choose_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(ValueError, match=r"device=cuda:2, but this machine has 2 GPUs .*: take auto or cpu"):
        choose_device("cuda:2")


@pytest.mark.parametrize("name", ["foo", "meta", ""])
def test_what_is_no_device_is_refused(name):
    with pytest.raises(ValueError, match=f"device={name} is not known here: take auto, cpu, cuda or cuda:N"):
        choose_device(name)


def test_every_command_says_the_same_of_a_missing_gpu(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = make_config(write_clips(tmp_path / "clips"), tmp_path / "codec")
    settings = {"clips": config.clips, "codec": "none", "folder": str(tmp_path / "latents"), "clip": config.clip}
    for command in (
        lambda: run_train_vae(replace(config, run=replace(config.run, device="cuda"))),
        lambda: run_encode(EncodeConfig(**settings, text=TextConfig(), device="cuda")),
        lambda: run_sample(SampleConfig(run="none", prompts="a", device="cuda")),
    ):
        with pytest.raises(ValueError, match="device=cuda, but this machine has 0 GPUs"):
            command()
    assert not (tmp_path / "codec").exists()


def test_commands_of_one_process_refuse_a_launcher(monkeypatch, tmp_path):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    config = make_config(tmp_path, tmp_path / "codec")
    settings = {"clips": config.clips, "codec": "none", "folder": str(tmp_path / "latents"), "clip": config.clip}
    for name, command in {
        "train_vae": lambda: run_train_vae(config),
        "encode": lambda: run_encode(EncodeConfig(**settings, text=TextConfig())),
        "sample": lambda: run_sample(SampleConfig(run="none", prompts="a")),
        "evaluate": lambda: run_evaluate(EvaluateConfig(run="none")),
    }.items():
        with pytest.raises(ValueError, match=f"trainer.{name} is for one process, but 2 were started: start it with"):
            command()
    assert not list(tmp_path.iterdir())
