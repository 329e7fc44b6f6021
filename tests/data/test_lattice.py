import itertools
import random

import pytest

from data.lattice import ClipConfig, cut_windows, fit_frame, stream_windows


def config(**changes):
    return ClipConfig(**{"fps": 8.0, "max_frames": 17, "min_frames": 5} | changes)


CAMERAS = [(720, 1280), (1080, 1920), (2160, 3840), (816, 1920), (272, 640), (576, 768), (576, 720), (480, 854)]
CAMERAS += [(144, 176), (240, 426), (360, 640), (405, 720), (1080, 1080), (1350, 1080), (50, 86), (16, 16)]
DRAWN = random.Random(0)
ODD = [(DRAWN.randint(16, 1200), DRAWN.randint(16, 1200)) for _ in range(400)]
SIZES = sorted({pair for size in CAMERAS + ODD for pair in (size, size[::-1])})
LIMITS = [{}, {"max_area": 7168}, {"max_tokens": 140}, {"max_area": 90_000, "max_tokens": 900}, {"max_tokens": 9000}]


@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("cell", [16, 32])
def test_every_size_lands_on_the_lattice_unstretched_uncut_and_within_limits(limits, cell):
    settings = config(strides=(4, cell // 2, cell // 2), **limits)
    refused = []
    for (height, width), frames in itertools.product(SIZES, (1, 5, 17)):
        if min(height, width) < cell:
            continue
        try:
            fit = fit_frame(height, width, frames=frames, config=settings)
        except ValueError:
            refused.append((height, width, frames))
            continue
        where = (height, width, frames, fit)
        assert fit.height % cell == 0 and fit.width % cell == 0, where
        assert fit.height <= fit.scaled_height <= height and fit.width <= fit.scaled_width <= width, where
        # Scaled by one factor up to rounding: each side is within a pixel of the other's factor.
        assert abs(fit.scaled_height - height * fit.scaled_width / width) < 1 or (
            abs(fit.scaled_width - width * fit.scaled_height / height) < 1
        ), where
        assert max(fit.scaled_height - fit.height, fit.scaled_width - fit.width) < cell, where
        assert fit.height * fit.width <= limits.get("max_area", 10**9), where
        assert settings.tokens(frames, fit.height, fit.width) <= limits.get("max_tokens", 10**9), where
        whole = (height // cell * cell, width // cell * cell)
        within = whole[0] * whole[1] <= limits.get("max_area", 10**9)
        within &= settings.tokens(frames, *whole) <= limits.get("max_tokens", 10**9)
        assert ((fit.scaled_height, fit.scaled_width) == (height, width)) == within, where
    # What is refused is a strip: longer than the limit allows where it is a single cell wide.
    for height, width, frames in refused:
        cells = min(
            limits.get("max_area", 10**9) // cell**2, limits.get("max_tokens", 10**9) // (1 + (frames - 1) // 4)
        )
        assert max(height, width) / min(height, width) > cells / 3, (height, width, frames, cells)
    assert len(refused) < len(SIZES) * 3 / 10


def test_a_limit_takes_little_more_than_it_must():
    """What a coarse lattice leaves of small limits goes to the picture, and large limits are used."""
    for height, width in CAMERAS:
        for area, share in ((20_000, 0.7), (100_000, 0.85), (300_000, 0.92)):
            if height * width <= area:
                continue
            fit = fit_frame(height, width, frames=17, config=config(max_area=area))
            assert fit.height * fit.width > share * area


def test_the_comparison_mode_crops_the_largest_square():
    for height, width in [(720, 1280), (1280, 720), (405, 720), (20, 90), (256, 256)]:
        fit = fit_frame(height, width, frames=17, config=config(square=64))
        assert (fit.height, fit.width, min(fit.scaled_height, fit.scaled_width)) == (64, 64, 64)
        assert max(fit.scaled_height, fit.scaled_width) == round(64 * max(height, width) / min(height, width))


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


@pytest.mark.parametrize(("longest", "shortest"), [(17, 5), (9, 9), (1, 1), (13, 1)])
def test_a_stream_is_cut_into_the_same_windows(longest, shortest):
    settings = config(max_frames=longest, min_frames=shortest)
    for count, is_image in itertools.product(range(70), (False, True)):
        windows = list(stream_windows(range(count), settings, is_image=is_image))
        assert [(w.first, len(w.frames)) for w in windows] == cut_windows(count, settings, is_image=is_image)
        assert all(w.frames == list(range(w.first, w.first + len(w.frames))) for w in windows)
        assert [w.is_only for w in windows] == [len(windows) == 1] * len(windows)


def test_a_stream_is_held_by_a_window_and_a_little():
    settings, taken, given = config(), 0, 0

    def frames():
        nonlocal taken
        for number in range(1000):
            taken += 1
            yield number

    for window in stream_windows(frames(), settings):
        assert taken - given <= settings.max_frames + settings.min_frames
        given += len(window.frames)
    assert given == 999 - 999 % 17 + 13 and taken == 1000


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
        ({"max_tokens": 4}, "max_tokens=4 must be at least 5, which clip.max_frames=17 frames of 16 x 16 pixels take"),
        ({"square": 40}, "square=40 must be a multiple of 16: take 32 or 48"),
        ({"square": 64, "max_tokens": 79}, "max_tokens=79 must be at least 80, which .* 64 x 64 pixels take"),
        ({"patch_size": (2, 2, 2)}, "must be 1 in time"),
    ],
)
def test_impossible_settings_are_refused_with_their_value(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)
