"""Sampling many requests through packs, against a field whose flow is known.

Shapes: L tokens of a pack, P values of a patch, C x T x H x W a latent, n x E a text embedding.
"""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from diffusion.guidance import Guidance
from diffusion.noise import draw_noise
from diffusion.sampler import KnownFrames
from diffusion.timesteps import FlowConfig
from model.packed import PackedInputs, patchify
from trainer.batch import PackLayout
from trainer.sampling import SamplerConfig, SampleRequest, latent_size, sample_videos

PATCH = (1, 2, 2)
SPREAD = 0.3
NULL_MEAN = -0.5
NULL_TEXT = torch.full((2, 4), NULL_MEAN)


class GaussianField:
    """Exact velocity of data N(mean, SPREAD^2) per value; the mean is written in the text. Keeps what it was given."""

    def __init__(self) -> None:
        self.calls: list[list[PackedInputs]] = []

    def __call__(self, packs: list[PackedInputs]) -> list[Tensor]:
        self.calls.append(packs)
        return [self.velocity(pack) for pack in packs]

    def velocity(self, pack: PackedInputs) -> Tensor:
        means = torch.stack([text[0, 0] for text in pack.text_KE.split(pack.text_lengths)])
        mean_L1 = means.repeat_interleave(torch.tensor(pack.segment_lengths))[:, None]
        t = pack.time_R[pack.row_L][:, None]
        gain = (t - (1 - t) * SPREAD**2) / ((1 - t) ** 2 * SPREAD**2 + t**2)
        return gain * (pack.patch_LP - (1 - t) * mean_L1) - mean_L1

    def segments(self) -> list[list[tuple[float, Tensor, Tensor, Tensor]]]:
        """For each call its segments but padding: (first text value, patches, level and condition of each token)."""
        found = []
        for packs in self.calls:
            found.append([])
            for pack in packs:
                per_token = (pack.patch_LP, pack.time_R[pack.row_L], pack.is_condition_R[pack.row_L])
                texts = pack.text_KE.split(pack.text_lengths)
                parts = zip(texts, *(x.split(pack.segment_lengths) for x in per_token), strict=True)
                found[-1] += [(float(text[0, 0]), *part) for text, *part in parts if text.any()]
        return found


def request(
    mean: float, shape: tuple[int, int, int, int] = (2, 3, 4, 4), seed: int = 0, **given: object
) -> SampleRequest:
    return SampleRequest(text_nE=torch.full((3, 4), mean), latent_shape=shape, seed=seed, **given)  # type: ignore[arg-type]


def make(
    field: GaussianField, requests: list[SampleRequest], guidance: Guidance, steps: int = 10, **layout: float
) -> list[Tensor]:
    return sample_videos(
        field,
        requests,
        sampler=SamplerConfig(steps=steps, guidance=guidance),
        flow=FlowConfig(base_tokens=4),
        null_text=NULL_TEXT,
        layout=PackLayout(tokens_per_pack=32, patch_size=PATCH, **layout),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_samples_are_those_of_the_guided_mean(scale: float) -> None:
    requests = [request(1.0), request(2.0, (2, 1, 6, 4), seed=1), request(0.2, (2, 4, 4, 8), seed=2)]
    for asked, sample in zip(requests, make(GaussianField(), requests, Guidance(scale=scale), 100), strict=True):
        mean = NULL_MEAN + scale * (float(asked.text_nE[0, 0]) - NULL_MEAN)
        expected = mean + SPREAD * draw_noise(asked.latent_shape, "sample", asked.seed)
        torch.testing.assert_close(sample, expected, atol=0.1, rtol=0)


def test_a_request_does_not_depend_on_its_company() -> None:
    requests = [request(1.0), request(2.0, (2, 1, 6, 4), seed=1), request(0.2, (2, 4, 4, 8), seed=2)]
    together = make(GaussianField(), requests, Guidance(scale=3.0))
    for asked, sample in zip(requests, together, strict=True):
        (alone,) = make(GaussianField(), [asked], Guidance(scale=3.0))
        torch.testing.assert_close(alone, sample, atol=1e-6, rtol=1e-6)
    assert make(GaussianField(), [], Guidance()) == []


def test_the_seed_decides_the_noise() -> None:
    a, b, c = make(GaussianField(), [request(1.0), request(1.0), request(1.0, seed=1)], Guidance(scale=1.0))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_packs_have_one_length_and_both_passes_share_them() -> None:
    field = GaussianField()
    make(field, [request(1.0), request(2.0)], Guidance(scale=3.0), steps=5)
    assert len(field.calls) == 5
    assert {pack.num_tokens for packs in field.calls for pack in packs} == {32}
    # Four passes of 12 tokens, two to a pack.
    assert [len(packs) for packs in field.calls] == [2] * 5
    assert all(sorted(mean for mean, *_ in call) == [NULL_MEAN, NULL_MEAN, 1.0, 2.0] for call in field.segments())


def test_the_null_pass_runs_only_inside_the_guidance_interval() -> None:
    field = GaussianField()
    make(field, [request(1.0)], Guidance(scale=3.0, interval=(0.3, 0.8)), steps=12)
    passes = {float(call[0][2].max()): len(call) for call in field.segments()}
    assert set(passes.values()) == {1, 2}
    assert all((count == 2) == (0.3 <= level <= 0.8) for level, count in passes.items())
    unguided = GaussianField()
    make(unguided, [request(1.0)], Guidance(scale=1.0), steps=12)
    assert {len(call) for call in unguided.segments()} == {1}


def test_a_given_image_is_clean_in_both_passes_and_in_the_video() -> None:
    image = torch.randn(2, 1, 4, 4)
    field = GaussianField()
    known = KnownFrames.prefix(image, 3)
    with_image, without = make(field, [request(1.0, known=known), request(1.0)], Guidance(scale=3.0), steps=8)
    assert torch.equal(with_image[:, :1], image)
    torch.testing.assert_close(with_image[:, 1:], without[:, 1:])
    for call in field.segments():
        assert len(call) == 4
        conditioned = [(patches, levels, flags) for _, patches, levels, flags in call if flags.any()]
        assert len(conditioned) == 2
        for patches, levels, flags in conditioned:
            assert torch.equal(patches[flags], patchify(image, PATCH))
            assert flags.sum() == 4
            assert (levels[flags] == 0).all()
            assert (levels[~flags] > 0).all()


def test_both_passes_lie_at_the_rate_asked_for_with_padded_texts() -> None:
    field = GaussianField()
    asked = [request(1.0, fps=16.0), request(2.0, fps=32.0)]
    make(field, asked, Guidance(scale=3.0), steps=3, position_fps=32.0, pad_text_to=7)
    for packs in field.calls:
        steps = []
        for pack in packs:
            assert pack.position_L3.dtype == torch.float64
            assert pack.text_lengths == (7, 7, 1)
            places = pack.position_L3.split(pack.segment_lengths)[:-1]
            steps += [float(place_L3[-1, 0]) / 2 for place_L3 in places]
        assert steps == [2.0, 1.0, 2.0, 1.0]
    plain, at_rate = (
        make(GaussianField(), [request(1.0, fps=8.0)], Guidance(scale=3.0), **layout)[0]
        for layout in ({}, {"position_fps": 8.0, "pad_text_to": 7})
    )
    assert torch.equal(plain, at_rate)


def test_video_to_video_starts_from_the_source_at_its_strength() -> None:
    source = torch.randn(2, 3, 4, 4)
    field = GaussianField()
    make(field, [request(1.0, source_CTHW=source, strength=0.4)], Guidance(scale=1.0), steps=6)
    levels = [float(call[0][2][0]) for call in field.segments()]
    assert levels[0] == pytest.approx(0.4)
    assert all(after < before for before, after in pairwise(levels))
    expected = 0.6 * source + 0.4 * draw_noise((2, 3, 4, 4), "sample", 0)
    torch.testing.assert_close(field.segments()[0][0][1], patchify(expected, PATCH))
    full, pure = make(field, [request(1.0, source_CTHW=source), request(1.0)], Guidance(scale=1.0))
    torch.testing.assert_close(full, pure)


def test_little_strength_keeps_the_source() -> None:
    source = 1.0 + SPREAD * torch.randn(2, 3, 4, 4)
    results = make(
        GaussianField(),
        [request(1.0, source_CTHW=source, strength=strength) for strength in (0.05, 0.5, 0.95)],
        Guidance(scale=1.0),
        steps=50,
    )
    distances = [float((result - source).norm()) for result in results]
    assert distances == sorted(distances)
    assert distances[0] < 0.3 * float((source - 1.0).norm())


def test_sizes_on_the_lattice_become_latent_grids() -> None:
    assert latent_size((17, 64, 112), strides=(4, 8, 8), patch_size=PATCH) == (5, 8, 14)
    assert latent_size((1, 16, 16), strides=(4, 8, 8), patch_size=PATCH) == (1, 2, 2)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((16, 64, 112), r"frames=16 is not 1 \+ 4k: take 13 or 17"),
        ((17, 60, 112), "height=60 is not a multiple of 16: take 48 or 64"),
        ((17, 64, 8), "width=8 is not a multiple of 16: take 16"),
        ((0, 64, 112), r"frames=0 is not 1 \+ 4k: take 1"),
        ((2, 64, 100), "take 1 or 5; width=100 is not a multiple of 16: take 96 or 112"),
    ],
)
def test_sizes_off_the_lattice_are_refused_with_the_nearest(size: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        latent_size(size, strides=(4, 8, 8), patch_size=PATCH)


def test_requests_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"strength=0\.0"):
        request(1.0, strength=0.0)
    with pytest.raises(ValueError, match="source latent"):
        request(1.0, source_CTHW=torch.zeros(2, 1, 4, 4))
    with pytest.raises(ValueError, match="known latent"):
        request(1.0, known=KnownFrames.prefix(torch.zeros(2, 1, 4, 4), 5))
    with pytest.raises(ValueError, match="64 tokens does not fit tokens_per_pack=32"):
        make(GaussianField(), [request(1.0, (2, 4, 8, 8))], Guidance())
