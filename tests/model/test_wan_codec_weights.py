import pytest
import torch
from diffusers import AutoencoderKLWan

from model.codec_wan import WanCodec, WanCodecConfig
from model.wan_codec_weights import from_diffusers, read_diffusers, to_diffusers, write_diffusers

SMALL = WanCodecConfig(latent_channels=3, encoder_width=4, decoder_width=6, blocks_per_level=1)
SMALL_22 = WanCodecConfig(
    latent_channels=4, encoder_width=4, decoder_width=6, blocks_per_level=1, residual=True, pixel_patch=2
)


def make_codec(config: WanCodecConfig) -> WanCodec:
    torch.manual_seed(0)
    codec = WanCodec(config)
    channels = config.latent_channels
    codec.set_latent_statistics(mean_C=torch.randn(channels), scale_C=torch.rand(channels) + 0.5)
    return codec


@pytest.mark.parametrize("config", [SMALL, SMALL_22], ids=["wan21", "wan22"])
def test_diffusers_reads_what_we_write_and_we_read_what_it_writes(config, tmp_path):
    codec = make_codec(config)
    write_diffusers(codec, tmp_path / "ours")
    theirs = AutoencoderKLWan.from_pretrained(tmp_path / "ours")
    video = torch.rand(1, 3, 5, 32, 32) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(theirs.encode(video).latent_dist.mean, codec.encode(video), atol=1e-5, rtol=1e-4)

    theirs.save_pretrained(tmp_path / "theirs")
    back = read_diffusers(tmp_path / "theirs")
    assert back.config == config
    state = codec.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in back.state_dict().items())


def test_statistics_are_those_pipelines_use(tmp_path):
    codec = make_codec(SMALL)
    write_diffusers(codec, tmp_path)
    theirs = AutoencoderKLWan.from_pretrained(tmp_path)
    video = torch.rand(1, 3, 1, 16, 16) * 2 - 1
    with torch.no_grad():
        z = theirs.encode(video).latent_dist.mean
        mean, std = (
            torch.tensor(v).view(1, -1, 1, 1, 1) for v in (theirs.config.latents_mean, theirs.config.latents_std)
        )
        torch.testing.assert_close(codec.to_latent(video), (z - mean) / std, atol=1e-5, rtol=1e-4)


def test_what_does_not_fit_is_refused(tmp_path):
    config, state = to_diffusers(make_codec(SMALL))
    with pytest.raises(ValueError, match="attn_scales"):
        from_diffusers({**config, "attn_scales": [0.5]}, state)
    with pytest.raises(ValueError, match="not RGB"):
        from_diffusers({**config, "in_channels": 4}, state)
    with pytest.raises(ValueError, match="conv_in.weight"):
        from_diffusers({**config, "base_dim": 8}, state)
    with pytest.raises(ValueError, match="surplus"):
        from_diffusers(config, {**state, "surplus": torch.zeros(1)})
    with pytest.raises(ValueError, match="config.json is missing"):
        read_diffusers(tmp_path)
