import pytest
import torch
from torch.distributions import Normal, kl_divergence

from diffusion.noise import keyed_generator
from model.codec import CodecConfig, Posterior, build_codec
from model.codec_patch import PatchCodecConfig
from model.codec_wan import WanCodecConfig
from trainer.codec_config import CodecLossConfig
from trainer.codec_loss import codec_loss, draw_latent, latent_terms

PATCH = CodecConfig(patch=PatchCodecConfig(latent_channels=4, width=8, encoder_blocks=1, decoder_blocks=1))
WAN = CodecConfig(wan=WanCodecConfig(latent_channels=3, encoder_width=4, decoder_width=4, blocks_per_level=1))


def video() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.rand(2, 3, 5, 16, 24) * 2 - 1


def test_divergence_is_that_of_torch_distributions():
    torch.manual_seed(0)
    mean, log_variance = torch.randn(2, 3, 2, 2, 2), torch.randn(2, 3, 2, 2, 2)
    terms = latent_terms(Posterior(mean_BCthw=mean, log_variance_BCthw=log_variance))
    expected = kl_divergence(Normal(mean, torch.exp(0.5 * log_variance)), Normal(0.0, 1.0)).mean()
    torch.testing.assert_close(terms["kl"], expected)


def test_latents_are_drawn_with_the_deviation_they_say():
    torch.manual_seed(0)
    noise = torch.randn(1, 2, 1, 200, 200)
    point = Posterior(mean_BCthw=torch.full_like(noise, 3.0), log_variance_BCthw=None)
    wide = Posterior(mean_BCthw=point.mean_BCthw, log_variance_BCthw=torch.full_like(noise, 4.0).log())
    for posterior, deviation in ((point, 0.5), (wide, 2.0)):
        drawn = draw_latent(posterior, noise, latent_noise=0.5)
        assert float(drawn.std()) == pytest.approx(deviation, rel=0.01)
        assert float(drawn.mean()) == pytest.approx(3.0, abs=0.02)


def test_terms_add_up():
    torch.manual_seed(0)
    codec, clip = build_codec(PATCH), video()
    config = CodecLossConfig(reconstruction="l1", latent_penalty=0.5)
    loss = codec_loss(codec, clip, config, generator=keyed_generator(0))
    decoded, z = codec.decode(codec.encode(clip)), codec.encode(clip)
    torch.testing.assert_close(loss.terms["mse"], (decoded - clip).square().mean())
    torch.testing.assert_close(loss.total, (decoded - clip).abs().mean() + 0.5 * z.square().mean())
    assert not any(term.requires_grad for term in loss.terms.values())


def test_the_perceptual_term_is_added():
    class Features(torch.nn.Module):
        def forward(self, image, reference):
            assert image.shape == reference.shape == (10, 3, 16, 24)
            return (image - reference).mean()

    torch.manual_seed(0)
    codec, clip = build_codec(PATCH), video()
    config = CodecLossConfig(perceptual=2.0, features="somewhere")
    with_it = codec_loss(codec, clip, config, generator=keyed_generator(0), features=Features())  # type: ignore[arg-type]
    without = codec_loss(codec, clip, config, generator=keyed_generator(0))
    difference = (codec.decode(codec.encode(clip)) - clip).mean()
    torch.testing.assert_close(with_it.total - without.total, 2 * difference)


@pytest.mark.parametrize("config", [PATCH, WAN], ids=["patch", "wan"])
def test_noise_is_that_of_the_generator_and_gradients_reach_everything(config):
    torch.manual_seed(0)
    codec, clip = build_codec(config), video()
    settings = CodecLossConfig(latent_noise=0.1, latent_penalty=0.1) if config is PATCH else CodecLossConfig(kl=0.1)
    first, again, other = (
        codec_loss(codec, clip, settings, generator=keyed_generator(seed)).total for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    first.backward()
    assert all(parameter.grad is not None for parameter in codec.parameters())
