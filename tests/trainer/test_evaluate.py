"""`python -m trainer.evaluate` on a small run whose captions decide what the clips are."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from data.loader import Sample
from data.manifest import Manifest
from data.sample_reader import read_sample
from diffusion.conditions import FrameLevels
from diffusion.noise import draw_noise
from model.dit import VideoDiT
from model.packed import patchify
from tests.trainer.evaluation_case import (
    MODEL,
    RunCase,
    new_dit,
    save_run,
    sign,
    train_dit,
    write_case,
    write_codec,
    write_shards,
)
from trainer.batch import PackLayout, Segment, pack_segments
from trainer.compose import user_errors
from trainer.evaluate import EvaluateConfig, open_heldout, run
from trainer.inference import load_for_inference

ROOT = Path(__file__).parents[2]
HELDOUT = [source for source in range(10) for _ in range(2)]
TRAINED, STEPS = 60, 60


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> RunCase:
    """Step 0 has initial weights, the last one has learned to read."""
    case = write_case(tmp_path_factory.mktemp("case"), heldout=HELDOUT, training=24)
    save_run(case, 0, ema=new_dit())
    save_run(case, TRAINED, ema=train_dit(case, steps=STEPS))
    return case


def command(*overrides: str) -> subprocess.CompletedProcess[str]:
    full = (sys.executable, "-m", "trainer.evaluate", "threads=1", *overrides)
    return subprocess.run(full, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)


def evaluate(case: RunCase, **settings: object) -> dict:
    run(EvaluateConfig(**{"run": str(case.run), "threads": 1, **settings}))  # type: ignore[arg-type]
    return json.loads((case.run / "captions.json").read_text())


def loss_by_hand(dit: VideoDiT, sample: Sample, level: float, caption: float) -> float:
    """The model alone on one clip, at one level, told `caption`."""
    noise_CTHW = draw_noise(tuple(sample.latent_CTHW.shape), 0, "eval", sample.key, f"{level:.6f}")
    segment = Segment(
        x_CTHW=(1 - level) * sample.latent_CTHW + level * noise_CTHW,
        levels=FrameLevels.same(level, sample.latent_CTHW.shape[1]),
        text_nE=torch.full_like(sample.text["descriptive"], caption),
    )
    pack = pack_segments([segment], PackLayout(tokens_per_pack=sample.video_tokens, patch_size=MODEL.patch_size))
    target_LP = patchify(noise_CTHW - sample.latent_CTHW, MODEL.patch_size)
    with torch.no_grad():
        return float((dit(pack) - target_LP).square().mean())


def test_the_command_writes_the_right_numbers_and_text_matters(case: RunCase) -> None:
    done = command(f"run={case.run}", "levels=4", "permutations=1")
    assert done.returncode == 0, done.stderr
    report = json.loads((case.run / "captions.json").read_text())
    assert sorted(path.name for path in case.run.iterdir()) == ["captions.json", "checkpoints"]

    dit, levels = train_dit(case, steps=STEPS), (0.125, 0.375, 0.625, 0.875)
    manifest = Manifest.read(case.shards).select("heldout")
    samples = [read_sample(manifest, row) for row in range(len(manifest))]
    signs = [sign(int(sample.source[-3:])) for sample in samples]
    own_SV, other_SV = (
        np.array(
            [
                [loss_by_hand(dit, sample, level, which * told) for level in levels]
                for sample, told in zip(samples, signs, strict=True)
            ]
        )
        for which in (1.0, -1.0)
    )
    zero = np.mean([np.mean([zero_by_hand(sample, level) for level in levels]) for sample in samples])
    assert (report["step"], report["samples"], report["sources"]) == (TRAINED, 20, 10)
    assert report["heldout_loss"] == pytest.approx(own_SV.mean(), rel=1e-5)
    assert report["ratio_to_zero"] == pytest.approx(own_SV.mean() / zero, rel=1e-5)
    assert report["by_level"] == pytest.approx(
        {f"{level}": value for level, value in zip(levels, own_SV.mean(0), strict=True)}, abs=2e-5
    )
    # Ten sources in a row are shifted by five, so everyone is told the opposite.
    assert report["mean"] == pytest.approx((other_SV - own_SV).mean(), rel=1e-4)
    assert 0 < report["low"] < report["mean"] < report["high"]
    assert report["heldout_loss"] < 0.7 * zero
    assert f"step {TRAINED}: held-out loss {report['heldout_loss']:.4f}" in done.stderr
    assert f"raises it by {report['mean']:+.4f} (95 % interval {report['low']:+.4f}" in done.stderr


def zero_by_hand(sample: Sample, level: float) -> float:
    noise_CTHW = draw_noise(tuple(sample.latent_CTHW.shape), 0, "eval", sample.key, f"{level:.6f}")
    return float((noise_CTHW - sample.latent_CTHW).square().mean())


def test_a_model_that_knows_nothing_scores_as_zero_does(case: RunCase) -> None:
    """Its gates are closed: it predicts zero whatever the caption."""
    report = evaluate(case, step=0, levels=5)
    assert (report["step"], report["ratio_to_zero"]) == (0, 1.0)
    assert (report["mean"], report["low"], report["high"]) == pytest.approx((0.0, 0.0, 0.0), abs=1e-12)
    assert list(report["by_level"]) == ["0.1", "0.3", "0.5", "0.7", "0.9"]


def test_fewer_clips_are_of_more_sources_and_weights_can_be_chosen(case: RunCase, tmp_path: Path) -> None:
    report = evaluate(case, max_samples=8, levels=2)
    assert (report["samples"], report["sources"]) == (8, 8)
    raw = replace(case, root=tmp_path)
    write_shards(raw.shards, codec=write_codec(raw.codec), heldout=HELDOUT)
    save_run(raw, 1, ema=new_dit(), master=new_dit(scale=0.2))
    assert evaluate(raw, levels=2)["ratio_to_zero"] == 1.0
    assert evaluate(raw, levels=2, use_ema=False)["ratio_to_zero"] != 1.0


@pytest.mark.parametrize(
    ("override", "sentence"),
    [("levels=4", "no checkpoint in no/such/run/checkpoints; train first"), ("level=4", "levels")],
)
def test_a_users_mistake_is_one_sentence_and_exit_code_2(override: str, sentence: str) -> None:
    done = command("run=no/such/run", override)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert sentence in done.stderr


def fails(case: RunCase, caplog: pytest.LogCaptureFixture, **settings: object) -> str:
    """The sentence, from the wrapper that the command has."""
    with pytest.raises(SystemExit) as exit_info:
        user_errors(lambda: evaluate(case, **settings) and None)()
    assert exit_info.value.code == 2
    said = caplog.messages[-1]
    assert said.startswith("error: ")
    assert "\n" not in said
    return said


def test_a_step_that_is_not_saved_is_refused(case: RunCase, caplog: pytest.LogCaptureFixture) -> None:
    assert f"no checkpoint of step 7 in {case.run}/checkpoints: saved are 0, {TRAINED}" in fails(case, caplog, step=7)


def test_shards_are_held_against_the_codec_and_text_encoder_of_training(case: RunCase) -> None:
    identity = Manifest.read(case.shards).identity
    model, config = load_for_inference(case.run), EvaluateConfig(run=str(case.run))
    same = {"codec": identity.codec, "text": identity.text}
    assert open_heldout(config, replace(model, state=same)).samples
    with pytest.raises(ValueError, match="was encoded by another codec"):
        open_heldout(config, replace(model, state=same | {"codec": "d" * 64}))
    with pytest.raises(ValueError, match="holds captions of another text encoder"):
        open_heldout(config, replace(model, state=same | {"text": "u" * 64}))


def test_shards_that_cannot_be_evaluated_on_are_refused(
    case: RunCase, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    codec = Manifest.read(case.shards).identity.codec

    def shards(name: str, heldout: list[int], made_by: str = codec) -> str:
        return str(write_shards(tmp_path / name, codec=made_by, heldout=heldout, training=2).folder)

    nothing = fails(case, caplog, shards=shards("nothing", []))
    assert "nothing holds no held-out samples: encode the clips again with heldout_fraction above 0" in nothing
    lonely = fails(case, caplog, shards=shards("lonely", [1, 2, 3, 3]))
    assert "cannot be told from 3 held-out sources, an interval needs 4" in lonely
    tilted = fails(case, caplog, shards=shards("tilted", [1, 2, 3, *[4] * 5]))
    assert "'film/shot-004' holds over half of the 8 held-out samples" in tilted
    foreign = fails(case, caplog, shards=shards("foreign", HELDOUT, write_codec(tmp_path / "codec", seed=1)))
    assert "foreign was encoded by another codec" in foreign
    assert "no manifest.parquet: make latent shards" in fails(case, caplog, shards=str(tmp_path))
    assert "max_samples=0 must be at least 1" in fails(case, caplog, max_samples=0)


def test_captions_of_another_width_are_refused(case: RunCase, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    wide = replace(MODEL, text_dim=6)
    other = replace(case, root=tmp_path)
    write_shards(other.shards, codec=write_codec(other.codec), heldout=HELDOUT)
    save_run(other, 1, ema=new_dit(model=wide), model=wide)
    assert "captions embedded in 4 values, but the model reads 6" in fails(other, caplog)


def test_nothing_is_left_of_a_report_that_could_not_be_written(
    case: RunCase, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before = evaluate(case, levels=2)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    assert "No space left on device" in fails(case, caplog, levels=3)
    assert json.loads((case.run / "captions.json").read_text()) == before
