import pytest
import torch
from torch import Tensor

from model.codec_patch import PatchCodec, PatchCodecConfig, from_patches, to_patches

SMALL = PatchCodecConfig(latent_channels=6, width=12, encoder_blocks=2, decoder_blocks=2)


def textured_clip(frames: int = 9, height: int = 32, width: int = 48, seed: int = 0) -> Tensor:
    """Random clips that are smooth enough for PCA to mean something, float64 in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(2, 3, 1 + frames // 4, height // 4, width // 4, generator=generator, dtype=torch.float64)
    smooth = torch.nn.functional.interpolate(coarse, size=(frames, height, width), mode="trilinear")
    return (smooth + 0.05 * torch.randn(smooth.shape, generator=generator, dtype=torch.float64)).clamp(-1, 1)


def fitted(config: PatchCodecConfig = SMALL) -> PatchCodec:
    torch.manual_seed(0)
    codec = PatchCodec(config).double()
    codec.fit_shortcuts(textured_clip(seed=seed) for seed in range(4))
    return codec


def trained(codec: PatchCodec) -> PatchCodec:
    """With heads that are not zero any more."""
    for head in (codec.head_in, codec.head_out):
        for parameter in head.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    return codec


def test_patches_are_cut_and_joined_without_loss():
    video = textured_clip()
    patches = to_patches(video, (4, 8, 8))
    assert patches.first.shape == (2, 1, 4, 6, 192)
    assert patches.rest.shape == (2, 2, 4, 6, 768)
    assert torch.equal(from_patches(patches, (4, 8, 8)), video)
    block = video[1, :, 5:9, 8:16, 40:48]
    assert torch.equal(patches.rest[1, 1, 1, 5], block.permute(1, 2, 3, 0).reshape(-1))


def test_a_fitted_untrained_codec_is_the_pca_codec():
    clips = [textured_clip(seed=seed) for seed in range(4)]
    codec = fitted()
    patch_NP = torch.cat([to_patches(clip, (4, 8, 8)).rest.reshape(-1, 768) for clip in clips])
    mean_P = patch_NP.mean(0)
    _, _, v_KP = torch.linalg.svd(patch_NP - mean_P, full_matrices=False)
    expected = (patch_NP - mean_P) @ v_KP[:6].T @ v_KP[:6] + mean_P
    with torch.no_grad():
        decoded = [codec.decode(codec.encode(clip)) for clip in clips]
    actual = torch.cat([to_patches(clip, (4, 8, 8)).rest.reshape(-1, 768) for clip in decoded])
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-9)


def test_fitted_latents_are_white():
    codec = fitted()
    z = torch.cat([codec.encode(textured_clip(seed=seed)) for seed in range(4)]).detach()
    for part in (z[:, :, :1], z[:, :, 1:]):
        values = part.transpose(0, 1).flatten(1)
        covariance = torch.cov(values, correction=0)
        torch.testing.assert_close(covariance, torch.eye(6, dtype=torch.float64), rtol=0, atol=1e-8)
        torch.testing.assert_close(values.mean(1), torch.zeros(6, dtype=torch.float64), rtol=0, atol=1e-8)


def test_frames_are_unaffected_by_later_ones():
    codec = trained(fitted())
    video = textured_clip(frames=17)
    changed = video.clone()
    changed[:, :, 9:] = -changed[:, :, 9:]
    with torch.no_grad():
        z, z_changed = codec.encode(video), codec.encode(changed)
        torch.testing.assert_close(z[:, :, :3], z_changed[:, :, :3], rtol=0, atol=1e-13)
        assert (z[:, :, 3:] - z_changed[:, :, 3:]).abs().max() > 0.1
        decoded, decoded_changed = codec.decode(z), codec.decode(z_changed)
        torch.testing.assert_close(decoded[:, :, :9], decoded_changed[:, :, :9], rtol=0, atol=1e-13)
        assert (decoded[:, :, 9:] - decoded_changed[:, :, 9:]).abs().max() > 0.1


def test_earlier_frames_and_neighbours_do_matter():
    codec = trained(fitted())
    video = textured_clip(frames=9)
    early, corner = video.clone(), video.clone()
    early[:, :, :1] *= -1
    corner[:, :, :, :8, :8] *= -1
    with torch.no_grad():
        z = codec.encode(video)
        assert (codec.encode(early) - z)[:, :, 1].abs().max() > 1e-6
        assert (codec.encode(corner) - z)[:, :, :, 0, 1].abs().max() > 1e-6


def test_a_clip_starts_with_its_image():
    codec = trained(fitted())
    video = textured_clip(frames=5)
    with torch.no_grad():
        z = codec.encode(video)
        torch.testing.assert_close(codec.encode(video[:, :, :1]), z[:, :, :1], rtol=0, atol=1e-13)
        image = codec.decode(z[:, :, :1])
        torch.testing.assert_close(image, codec.decode(z)[:, :, :1], rtol=0, atol=1e-13)


def test_every_parameter_is_trained():
    codec = trained(fitted())
    video = textured_clip()
    (codec.decode(codec.encode(video)) - video).square().mean().backward()
    assert not [name for name, p in codec.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]


def test_flat_clips_fit_without_infinities():
    codec = PatchCodec(SMALL)
    codec.fit_shortcuts([torch.zeros(4, 3, 5, 16, 16)])
    decoded = codec.decode(codec.encode(torch.zeros(1, 3, 5, 16, 16)))
    torch.testing.assert_close(decoded, torch.zeros(1, 3, 5, 16, 16), atol=1e-4, rtol=0)


def test_too_few_patches_are_refused():
    with pytest.raises(ValueError, match="6 principal components need more than 4 vectors"):
        PatchCodec(SMALL).fit_shortcuts([torch.zeros(1, 3, 5, 16, 16)])


def test_bad_configs_are_refused():
    with pytest.raises(ValueError, match="193 must lie between"):
        PatchCodecConfig(latent_channels=193)
    with pytest.raises(ValueError, match="positive"):
        PatchCodecConfig(width=0)
