"""The `wan` codec against diffusers' chunked `AutoencoderKLWan`, in float64."""

from typing import Any

import pytest
import torch
from diffusers.models.autoencoders import autoencoder_kl_wan as reference
from torch import Tensor, nn

from model.codec_wan import WanCodec, WanCodecConfig
from model.wan_codec_weights import from_diffusers

FORMS: dict[str, dict[str, Any]] = {
    "wan21": {"base_dim": 4, "z_dim": 3},
    "wan21_other_widths": {
        "base_dim": 6,
        "decoder_base_dim": 4,
        "z_dim": 2,
        "temperal_downsample": [True, False, True],
    },
    "wan22": {
        "base_dim": 4,
        "decoder_base_dim": 6,
        "z_dim": 4,
        "is_residual": True,
        "patch_size": 2,
        "in_channels": 12,
        "out_channels": 12,
        "scale_factor_spatial": 16,
    },
}
SIZES = [(1, 16, 32), (5, 32, 16), (17, 16, 48), (33, 32, 16)]


def make_reference(form: str) -> reference.AutoencoderKLWan:
    settings = FORMS[form]
    channels = settings["z_dim"]
    generator = torch.Generator().manual_seed(7)
    statistics = {
        "latents_mean": torch.randn(channels, generator=generator).tolist(),
        "latents_std": (0.5 + torch.rand(channels, generator=generator)).tolist(),
    }
    torch.manual_seed(3)
    theirs = reference.AutoencoderKLWan(
        **{"dim_mult": [1, 2, 4, 4], "num_res_blocks": 1, **settings}, **statistics
    ).double()
    for name, parameter in theirs.named_parameters():
        if name.endswith("gamma"):
            nn.init.uniform_(parameter, 0.5, 1.5)
        elif name.endswith("bias"):
            nn.init.normal_(parameter, std=0.1)
    return theirs


def make_pair(form: str) -> tuple[reference.AutoencoderKLWan, WanCodec]:
    theirs = make_reference(form)
    return theirs, from_diffusers(dict(theirs.config), theirs.state_dict())


@pytest.fixture
def _exact_upsampling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their up-sampling goes through float32; here it stays in float64."""
    monkeypatch.setattr(reference.WanUpsample, "forward", nn.Upsample.forward)


def unclamped_decode(theirs: reference.AutoencoderKLWan, z: Tensor) -> Tensor:
    """Their chunked decoding; their clamp sits inside the same function, so it is made a no-op meanwhile."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(reference.torch, "clamp", lambda x, **_: x)
        return theirs.decode(z).sample


def on_lattice(form: str, size: tuple[int, int, int]) -> tuple[int, int, int]:
    """Twice the pixels for 2.2, whose spatial stride is 16."""
    frames, height, width = size
    return (frames, 2 * height, 2 * width) if form == "wan22" else size


def random_video(size: tuple[int, int, int], batch: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(sum(size))
    return torch.rand(batch, 3, *size, generator=generator, dtype=torch.float64) * 2 - 1


def random_latent(codec: WanCodec, video: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(11)
    grid = codec.latent_grid(tuple(video.shape[2:]))
    return torch.randn(video.shape[0], codec.latent_channels, *grid, generator=generator, dtype=torch.float64)


def largest_difference(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference, relative to the largest value of the reference (which must not be all zeros)."""
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_encode_matches_their_chunks(form: str, size: tuple[int, int, int]):
    theirs, ours = make_pair(form)
    video = random_video(on_lattice(form, size), batch=2)
    with torch.no_grad():
        expected = theirs.encode(video).latent_dist
        posterior = ours.posterior(video)
    assert largest_difference(posterior.mean_BCthw, expected.mean) <= 1e-9
    assert posterior.log_variance_BCthw is not None
    assert largest_difference(posterior.log_variance_BCthw, expected.logvar) <= 1e-9


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_decode_matches_their_chunks(form: str, size: tuple[int, int, int]):
    theirs, ours = make_pair(form)
    z = random_latent(ours, random_video(on_lattice(form, size), batch=2))
    with torch.no_grad():
        video = ours.decode(z)
        assert largest_difference(video.clamp(-1, 1), theirs.decode(z).sample) <= 1e-6


@pytest.mark.usefixtures("_exact_upsampling")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_decode_matches_closely_without_their_float32_cast(form: str, size: tuple[int, int, int]):
    theirs, ours = make_pair(form)
    z = random_latent(ours, random_video(on_lattice(form, size)))
    with torch.no_grad():
        assert largest_difference(ours.decode(z), unclamped_decode(theirs, z)) <= 1e-9


@pytest.mark.usefixtures("_exact_upsampling")
@pytest.mark.parametrize("form", FORMS)
def test_gradients_match(form: str):
    theirs, ours = make_pair(form)
    video = random_video(on_lattice(form, (9, 16, 32)))
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(video.shape, generator=generator, dtype=torch.float64)

    (unclamped_decode(theirs, theirs.encode(video).latent_dist.mean) * weight).sum().backward()
    (ours.decode(ours.encode(video)) * weight).sum().backward()

    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        gradient = expected[name].grad
        assert gradient is not None and parameter.grad is not None
        difference = (parameter.grad - gradient).norm() / gradient.norm().clamp_min(1e-30)
        assert difference <= 1e-9, name


@pytest.mark.parametrize("form", FORMS)
def test_frames_are_unaffected_by_later_ones(form: str):
    _, ours = make_pair(form)
    video = random_video(on_lattice(form, (13, 16, 16)))
    changed = video.clone()
    changed[:, :, 5:] = -changed[:, :, 5:]
    with torch.no_grad():
        z, z_changed = ours.encode(video), ours.encode(changed)
        torch.testing.assert_close(z[:, :, :2], z_changed[:, :, :2], rtol=0, atol=1e-13)
        assert (z[:, :, 2] - z_changed[:, :, 2]).abs().max() > 1e-6
        decoded, decoded_changed = ours.decode(z), ours.decode(z_changed)
        torch.testing.assert_close(decoded[:, :, :5], decoded_changed[:, :, :5], rtol=0, atol=1e-13)
        assert (decoded[:, :, 5] - decoded_changed[:, :, 5]).abs().max() > 1e-6


def test_published_sizes_have_the_published_names_and_shapes():
    published = {
        "wan21": ({}, WanCodecConfig()),
        "wan22": (
            {
                "base_dim": 160,
                "decoder_base_dim": 256,
                "z_dim": 48,
                "is_residual": True,
                "patch_size": 2,
                "in_channels": 12,
                "out_channels": 12,
                "latents_mean": [0.0] * 48,
                "latents_std": [1.0] * 48,
            },
            WanCodecConfig(latent_channels=48, encoder_width=160, decoder_width=256, residual=True, pixel_patch=2),
        ),
    }
    for settings, config in published.values():
        with torch.device("meta"):
            expected = reference.AutoencoderKLWan(**settings).state_dict()
            ours = WanCodec(config).state_dict()
        del ours["latent_mean_C"], ours["latent_scale_C"]
        assert {name: t.shape for name, t in ours.items()} == {name: t.shape for name, t in expected.items()}


def test_lengths_off_the_lattice_are_refused():
    _, ours = make_pair("wan21")
    for frames in (2, 4, 6, 16):
        with pytest.raises(ValueError, match=f"{frames} frames"):
            ours.encode(random_video((frames, 16, 16)))
    with pytest.raises(ValueError, match="12 x 16 pixels"):
        ours.encode(random_video((5, 12, 16)))


def test_bad_configs_are_refused():
    with pytest.raises(ValueError, match="2 entries"):
        WanCodecConfig(time_downsample=(True, True))
    with pytest.raises(ValueError, match="positive"):
        WanCodecConfig(encoder_width=0)
