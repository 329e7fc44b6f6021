import pytest

from data.lattice import ClipConfig, cut_windows, fit_frame


def config(**changes):
    return ClipConfig(**{"fps": 8.0, "max_frames": 17, "min_frames": 5} | changes)


SIZES = [(720, 1280), (1080, 1920), (1920, 1080), (272, 640), (576, 768), (144, 176), (405, 720), (50, 86), (16, 16)]


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize(
    "limits", [{}, {"max_area": 7168}, {"max_tokens": 140}, {"max_area": 90_000, "max_tokens": 900}]
)
def test_a_frame_lands_on_the_lattice_unstretched_and_within_limits(height, width, limits):
    settings = config(**limits)
    fit = fit_frame(height, width, frames=17, config=settings)
    assert fit.height % 16 == 0 and fit.width % 16 == 0
    assert fit.height <= height and fit.width <= width
    assert fit.height <= fit.scaled_height and fit.width <= fit.scaled_width
    # One side is covered exactly, the other cropped by less than a lattice cell: nothing is stretched.
    assert fit.scaled_height == fit.height or fit.scaled_width == fit.width
    assert max(fit.scaled_height - fit.height, fit.scaled_width - fit.width) < 16
    assert abs(fit.scaled_height / height - fit.scaled_width / width) * max(height, width) <= max(height, width) / 16
    assert fit.height * fit.width <= limits.get("max_area", height * width)
    assert settings.tokens(17, fit.height, fit.width) <= limits.get("max_tokens", 10**9)


def test_a_frame_on_the_lattice_is_left_as_it_is():
    fit = fit_frame(144, 176, frames=9, config=config())
    assert (fit.height, fit.width, fit.scaled_height, fit.scaled_width) == (144, 176, 144, 176)


def test_a_limit_costs_no_more_than_it_must():
    fit = fit_frame(720, 1280, frames=17, config=config(max_area=64 * 112))
    assert (fit.height, fit.width) == (64, 112)


def test_a_frame_below_one_cell_is_refused_with_its_size():
    with pytest.raises(ValueError, match="too small: 40 x 15"):
        fit_frame(15, 40, frames=1, config=config())


def test_windows_are_consecutive_and_short_tails_are_dropped():
    assert cut_windows(40, config()) == [(0, 17), (17, 17), (34, 5)]
    assert cut_windows(38, config()) == [(0, 17), (17, 17)]
    assert cut_windows(16, config()) == [(0, 13)]
    assert cut_windows(4, config()) == []
    assert cut_windows(1, config(), is_image=True) == [(0, 1)]


def test_tokens_count_latent_frames_and_patches():
    assert config().tokens(17, 64, 112) == 5 * 4 * 7
    assert config().tokens(1, 16, 16) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_frames": 16}, "max_frames=16 must be 1 [+] 4k: take 13 or 17"),
        ({"min_frames": 21}, "min_frames=21 must not be above clip.max_frames=17"),
        ({"fps": 0.0}, "fps=0.0 must be above 0"),
        ({"max_area": 255}, "max_area=255 must be at least 256"),
        ({"patch_size": (2, 2, 2)}, "must be 1 in time"),
    ],
)
def test_impossible_settings_are_refused_with_their_value(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)
