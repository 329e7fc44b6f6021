from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from data.lattice import ClipConfig
from model.codec import CodecConfig
from model.codec_wan import WanCodecConfig
from tests.trainer.codec_case import make_config
from trainer.codec_config import CodecLossConfig, CodecOptimConfig, CodecRunConfig
from trainer.compose import to_dataclass, to_yaml

CONFIG = make_config(Path("clips"), Path("codec"))


def test_what_does_not_belong_together_is_refused():
    with pytest.raises(ValueError, match="perceptual.*needs both"):
        CodecLossConfig(perceptual=0.1)
    with pytest.raises(ValueError, match="latent_noise=-1"):
        CodecLossConfig(latent_noise=-1.0)
    with pytest.raises(ValueError, match="clip.strides"):
        replace(CONFIG, clip=ClipConfig(fps=8.0, max_frames=9, strides=(4, 16, 16)))
    with pytest.raises(ValueError, match="has no variance"):
        replace(CONFIG, loss=CodecLossConfig(kl=1e-4))
    with pytest.raises(ValueError, match="variance of its own"):
        replace(CONFIG, codec=CodecConfig(wan=WanCodecConfig()))
    with pytest.raises(ValueError, match="steps=0"):
        CodecRunConfig(steps=0)
    with pytest.raises(ValueError, match="clip_norm=0"):
        CodecOptimConfig(clip_norm=0.0)


def test_defining_settings_are_flat_and_leave_out_places():
    settings = CONFIG.defining()
    assert settings["codec.patch.strides"] == [4, 8, 8]
    assert settings["run.steps"] == 4
    assert settings == replace(CONFIG, folder="elsewhere", clips="moved").defining()
    assert settings != replace(CONFIG, seed=2).defining()


def test_yaml_reads_back_as_it_was():
    assert to_dataclass(type(CONFIG), yaml.safe_load(to_yaml(CONFIG))) == CONFIG
