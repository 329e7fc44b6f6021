import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from model.quality import psnr, resample_with, ssim


def videos(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    reference = torch.rand(2, 3, 4, 24, 33, generator=generator) * 2 - 1
    return (reference + 0.3 * torch.randn(reference.shape, generator=generator)).clamp(-1, 1), reference


def reference_ssim(x: np.ndarray, y: np.ndarray) -> float:
    """One channel in [0, 1], as scikit-image's `structural_similarity(gaussian_weights=True, sigma=1.5,
    use_sample_covariance=False, data_range=1)` computes it: scipy's Gaussian filter, truncated at 3.5 sigma, reflected
    at borders that are then cropped."""

    def filtered(image: np.ndarray) -> np.ndarray:
        return gaussian_filter(image, sigma=1.5, truncate=3.5)

    ux, uy = filtered(x), filtered(y)
    vx, vy, vxy = filtered(x * x) - ux * ux, filtered(y * y) - uy * uy, filtered(x * y) - ux * uy
    c1, c2 = 0.01**2, 0.03**2
    s = ((2 * ux * uy + c1) * (2 * vxy + c2)) / ((ux**2 + uy**2 + c1) * (vx + vy + c2))
    return float(s[5:-5, 5:-5].mean())


def test_ssim_matches_the_reference_formula():
    video, reference = videos()
    for clip in range(2):
        x, y = ((v[clip].double().numpy().reshape(-1, 24, 33) + 1) / 2 for v in (video, reference))
        expected = np.mean([reference_ssim(a, b) for a, b in zip(x, y)])
        assert abs(float(ssim(video, reference)[clip]) - expected) <= 1e-12
    assert ssim(reference, reference).tolist() == pytest.approx([1, 1])


def test_psnr_is_that_of_eight_bit_images():
    video, reference = videos()
    for clip in range(2):
        x, y = ((v[clip].double() + 1) * 127.5 for v in (video, reference))
        expected = 10 * math.log10(255**2 / float((x - y).square().mean()))
        assert float(psnr(video, reference)[clip]) == pytest.approx(expected, abs=1e-9)


def test_values_outside_the_range_are_clamped_first():
    video, reference = videos()
    beyond = torch.where(video >= 1, video + 5, video)
    assert torch.equal(psnr(beyond, reference), psnr(video, reference))
    assert torch.equal(ssim(beyond, reference), ssim(video, reference))


def test_small_frames_are_refused():
    with pytest.raises(ValueError, match="at least 11 x 11"):
        ssim(torch.zeros(1, 3, 1, 8, 8), torch.zeros(1, 3, 1, 8, 8))


def test_resampling_uses_the_values_it_may():
    torch.manual_seed(0)
    video = torch.rand(1, 3, 16, 32, 32) * 2 - 1
    with torch.no_grad():
        same = resample_with(video, values=video.numel(), time_factor=1)
        torch.testing.assert_close(same, video, atol=1e-6, rtol=0)
        slow = video.mean(2, keepdim=True).expand(-1, -1, 16, -1, -1)
        torch.testing.assert_close(resample_with(slow, values=3 * 4 * 32 * 32, time_factor=4), slow, atol=1e-6, rtol=0)
        fewer = [float(psnr(resample_with(video, values=n, time_factor=2), video)) for n in (100, 1000, 10000)]
    assert fewer == sorted(fewer)
