import errno
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.codec import CodecConfig, VideoCodec, codec_identity, config_of, load_codec, save_codec
from model.codec_patch import PatchCodecConfig
from model.codec_wan import WanCodecConfig
from tests.model.small_codecs import CONFIGS, small_codec


@pytest.fixture(params=CONFIGS)
def codec(request) -> VideoCodec:
    return small_codec(request.param)


def test_images_and_clips_go_through_and_keep_their_size(codec):
    for frames in (1, 5, 9):
        video = torch.rand(2, 3, frames, 16, 24) * 2 - 1
        latent = codec.to_latent(video)
        assert latent.shape == (2, codec.latent_channels, 1 + frames // 4, 2, 3)
        assert codec.latent_grid((frames, 16, 24)) == latent.shape[2:]
        assert codec.to_video(latent).shape == video.shape


def test_exactly_one_codec_is_configured():
    with pytest.raises(ValueError, match="neither"):
        CodecConfig()
    with pytest.raises(ValueError, match="both"):
        CodecConfig(patch=PatchCodecConfig(), wan=WanCodecConfig())


def test_a_saved_codec_comes_back_bit_equal(codec, tmp_path):
    save_codec(codec, tmp_path / "codec")
    loaded = load_codec(tmp_path / "codec")
    assert config_of(loaded) == config_of(codec)
    assert not loaded.training
    state = codec.state_dict()
    assert loaded.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())


def test_saving_leaves_other_files_alone(codec, tmp_path):
    (tmp_path / "metrics.jsonl").write_text("{}")
    save_codec(codec, tmp_path)
    save_codec(codec, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl", "config.json", "model.safetensors"}


def test_identity_follows_weights_and_config(codec, tmp_path):
    save_codec(codec, tmp_path / "a")
    save_codec(codec, tmp_path / "b")
    assert codec_identity(tmp_path / "a") == codec_identity(tmp_path / "b")
    codec.latent_mean_C[0] += 1
    save_codec(codec, tmp_path / "b")
    assert codec_identity(tmp_path / "a") != codec_identity(tmp_path / "b")


def test_damage_is_refused_in_one_sentence(codec, tmp_path):
    with pytest.raises(ValueError, match="not a codec folder"):
        load_codec(tmp_path)
    save_codec(codec, tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    tensors = load_file(weights)
    name = next(iter(tensors))
    save_file({**tensors, name: tensors[name] + 1}, weights)
    with pytest.raises(ValueError, match="sha256"):
        load_codec(tmp_path)
    described = json.loads(config.read_text())
    for change in ({"format": 99}, {"patch": None, "wan": None}, {"wan": {"depth": 3}, "patch": None}):
        config.write_text(json.dumps({**described, **change}))
        with pytest.raises(ValueError, match="does not describe a codec"):
            load_codec(tmp_path)
    config.write_text("{")
    with pytest.raises(ValueError, match="does not describe a codec"):
        codec_identity(tmp_path)


def test_a_full_disk_leaves_the_earlier_codec_intact(codec, tmp_path, monkeypatch):
    save_codec(codec, tmp_path)
    identity = codec_identity(tmp_path)
    codec.latent_mean_C[0] += 1

    def full(self, *_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    for method in ("write_bytes", "write_text"):
        with monkeypatch.context() as patched:
            patched.setattr(Path, method, full)
            with pytest.raises(OSError, match=r"was not written.*No space left.*free space"):
                save_codec(codec, tmp_path)
        assert codec_identity(tmp_path) == identity
        load_codec(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
