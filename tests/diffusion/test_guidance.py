"""Classifier-free guidance."""

import pytest
import torch

from diffusion.guidance import Guidance


def test_scale_one_is_the_text_and_scale_zero_is_without() -> None:
    text, null = torch.randn(2, 3, 4).double().unbind()
    torch.testing.assert_close(Guidance(scale=1.0).combine(text, null), text)
    assert torch.equal(Guidance(scale=0.0).combine(text, null), null)


def test_guidance_is_the_velocity_of_the_sharpened_law() -> None:
    """For p(x) p(text | x)^g of Gaussians with unit noise the score is linear in g: the scores combine the same way."""
    x, mean_null, mean_text = torch.tensor([0.3, -1.0, 2.0]).double()
    score = lambda mean: mean - x  # noqa: E731
    guided = Guidance(scale=3.5).combine(score(mean_text), score(mean_null))
    torch.testing.assert_close(guided, score(mean_null + 3.5 * (mean_text - mean_null)))


def test_the_null_pass_is_needed_only_where_it_changes_something() -> None:
    guidance = Guidance(scale=4.0, interval=(0.2, 0.8))
    assert [guidance.needs_null(time) for time in (0.1, 0.2, 0.5, 0.8, 0.9)] == [False, True, True, True, False]
    assert not Guidance(scale=1.0).needs_null(0.5)
    assert Guidance(scale=0.0).needs_null(0.5)


@pytest.mark.parametrize("settings", [{"interval": (0.8, 0.2)}, {"interval": (0.0, 1.2)}, {"scale": -1.0}])
def test_impossible_guidance_is_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="guidance"):
        Guidance(**settings)  # type: ignore[arg-type]
