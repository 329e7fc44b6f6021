"""Activations move as far at any width with muP, and farther at wider ones without."""

import pytest
from PIL import Image

from model.dit import DiTConfig
from scaling.coordinate_check import CoordinateCheckConfig, draw, measure, power

MODEL = DiTConfig(num_blocks=2, num_heads=4, head_dim=16, ffn_dim=256, text_dim=24, time_freq_dim=64)
CONFIG = CoordinateCheckConfig(model=MODEL, widths=(64, 128, 256, 512), steps=5, lr=1e-3, seeds=1, tokens=32)
FLAT = 0.2
GROW = {"modulation", "query", "mlp_in", "mlp_out", "head"}


@pytest.fixture(scope="module")
def found():
    return {mup: measure(CONFIG, mup=mup) for mup in (False, True)}


def test_with_mup_coordinates_are_flat_and_without_they_are_not(found):
    powers = {mup: {place: power(CONFIG.widths, values) for place, values in found[mup].items()} for mup in found}
    assert max(map(abs, powers[True].values())) < FLAT, powers
    assert {place for place, slope in powers[False].items() if slope > 2.5 * FLAT} >= GROW, powers


def test_at_the_base_width_both_are_one(found):
    assert {place: values[0] for place, values in found[True].items()} == {
        place: values[0] for place, values in found[False].items()
    }


def test_the_picture_has_both(found, tmp_path):
    draw(CONFIG, {"standard": found[False], "muP": found[True]}, tmp_path / "picture.png")
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.size[0] > 1000 and len(set(picture.convert("L").tobytes())) > 50


@pytest.mark.parametrize("wrong", [{"widths": (64,)}, {"widths": (64, 100)}, {"steps": 0}, {"lr": 0.0}])
def test_checks_that_cannot_be_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        CoordinateCheckConfig(**{"model": MODEL} | wrong)
