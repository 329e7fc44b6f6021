"""Sheets along the run: at the steps that are due, and the same pixels for the same weights and seed."""

import numpy as np
import pytest
from PIL import Image

from tests.trainer.run_case import STEPS, overrides
from trainer.media import LABEL_WIDTH, MARGIN
from trainer.metrics import read_metrics

HALF = STEPS // 2
PROMPTS = "samples.prompts=['a rabbit, grey','a tree']"


def sheets(folder):
    """Pixels of each sheet right of its labels and its title, which name the seed and the step."""
    paths = sorted((folder / "samples").glob("*.png"))
    return {path.name: np.asarray(Image.open(path).convert("RGB"))[:, MARGIN + LABEL_WIDTH :] for path in paths}


def words(name, layout="single", **changes):
    settings = {"run__sample_every": HALF, "schedule__lr": 0.02} | changes
    return [*overrides(folder=name, **settings), PROMPTS, f"parallel={layout}"]


@pytest.fixture(scope="module")
def straight(commands, inputs):
    ended = commands.run(words("sampled"), cwd=inputs).ok()
    assert f"step {HALF}: samples in sampled/samples/step_{HALF:08d}.png" in ended.err
    return sheets(inputs / "sampled")


def test_there_is_a_sheet_for_each_due_step_and_it_follows_the_weights(straight):
    assert list(straight) == [f"step_{step:08d}.png" for step in (0, HALF, STEPS)]
    first, middle, last = straight.values()
    assert first.shape == middle.shape == last.shape
    assert (first != middle).any() and (middle != last).any()


def test_a_run_that_was_stopped_draws_the_same_pixels(commands, inputs, straight):
    stopped = commands.run(words("sampled_halves"), cwd=inputs, event={"step": 7, "signal": "SIGTERM"})
    assert stopped.code == 75, stopped.err
    commands.run(words("sampled_halves"), cwd=inputs).ok()
    again = sheets(inputs / "sampled_halves")
    assert again.keys() == straight.keys()
    assert all((again[name] == straight[name]).all() for name in straight)


def test_another_layout_draws_the_same_picture(commands, inputs, straight):
    commands.run(words("sampled_tp2", "tp2"), cwd=inputs, ranks=2).ok()
    for name, sheet in sheets(inputs / "sampled_tp2").items():
        assert np.abs(sheet.astype(int) - straight[name]).max() <= 1, name


def test_another_seed_draws_another_picture(commands, inputs, straight):
    changes = {"run__steps": 1, "run__sample_every": 5, "samples__seed": 3}
    commands.run(words("sampled_other", **changes), cwd=inputs).ok()
    name = "step_00000000.png"
    assert (sheets(inputs / "sampled_other")[name] != straight[name]).any()


def test_prompts_for_another_text_encoder_than_the_shards_are_refused(commands, inputs):
    sentence = commands.run([*words("sampled_wrongly"), "text.max_tokens=64"], cwd=inputs).refused()
    assert "latents holds captions of another text encoder" in sentence


def test_sheets_and_held_out_loss_are_those_of_the_average(commands, inputs):
    """An average that forgets nothing stays at the first weights, however far the run goes."""
    changes = {"run__ema_half_life_fraction": 1e9, "run__evaluate_every": HALF}
    commands.run(words("sampled_average", **changes), cwd=inputs).ok()
    first, *later = sheets(inputs / "sampled_average").values()
    assert all((sheet == first).all() for sheet in later)
    losses = [row["heldout/loss"] for row in read_metrics(inputs / "sampled_average") if "heldout/loss" in row]
    assert len(losses) == 3
    assert losses[1:] == pytest.approx(losses[:1] * 2, rel=1e-6)
