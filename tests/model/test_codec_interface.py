import pytest
import torch

from model.codec import VideoCodec
from tests.model.small_codecs import CONFIGS, small_codec


@pytest.fixture(params=CONFIGS)
def codec(request) -> VideoCodec:
    return small_codec(request.param)


def test_normalised_latents_are_the_raw_ones_shifted_and_scaled(codec):
    video = torch.rand(1, 3, 5, 16, 16) * 2 - 1
    z, latent = codec.encode(video), codec.to_latent(video)
    for channel in range(codec.latent_channels):
        expected = (z[:, channel] - codec.latent_mean_C[channel]) / codec.latent_scale_C[channel]
        torch.testing.assert_close(latent[:, channel], expected)
    torch.testing.assert_close(codec.to_video(latent), codec.decode(z), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("frames", [0, 2, 3, 4, 6, 16, 18])
def test_lengths_off_the_lattice_are_refused(codec, frames):
    with pytest.raises(ValueError, match=rf"{frames} frames.*1 \+ 4k"):
        codec.encode(torch.zeros(1, 3, frames, 16, 16))


def test_the_way_out_names_both_neighbours(codec):
    with pytest.raises(ValueError, match="cut it to 13 or give 17"):
        codec.latent_grid((16, 16, 16))


def test_bad_shapes_are_refused(codec):
    with pytest.raises(ValueError, match="20 x 16 pixels"):
        codec.encode(torch.zeros(1, 3, 5, 20, 16))
    with pytest.raises(ValueError, match=r"\[B, 3, T, H, W\] is needed"):
        codec.encode(torch.zeros(1, 5, 3, 16, 16))


def test_bad_statistics_are_refused(codec):
    ones = torch.ones(codec.latent_channels)
    with pytest.raises(ValueError, match="positive"):
        codec.set_latent_statistics(mean_C=ones, scale_C=ones * 0)
    with pytest.raises(ValueError, match="one of each per channel"):
        codec.set_latent_statistics(mean_C=ones[:1], scale_C=ones)
