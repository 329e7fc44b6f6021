import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from model.codec import CodecConfig, codec_identity, load_codec, save_codec
from model.codec_wan import WanCodecConfig
from tests.trainer.codec_case import make_config, write_clips
from trainer.codec_clips import read_sets, to_video
from trainer.codec_config import CodecLossConfig
from trainer.signals import EXIT_STOPPED
from trainer.train_vae import run

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    return write_clips(tmp_path_factory.mktemp("train_vae") / "clips")


@pytest.fixture(scope="module")
def finished(clips, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "codec"
    assert run(make_config(clips, folder, steps=4)) == 0
    return folder


def test_the_folder_is_a_codec_that_whitens_its_training_clips(clips, finished):
    config = make_config(clips, finished)
    codec = load_codec(finished)
    training = read_sets(config.clips, config.clip, config.data).training
    with torch.no_grad():
        latents = [codec.to_latent(to_video(clip.frames_T3HW[None]))[0].flatten(1) for clip in training]
    values = torch.cat(latents, dim=1)
    torch.testing.assert_close(values.mean(1), torch.zeros(4), rtol=0, atol=1e-4)
    torch.testing.assert_close(values.std(1, correction=0), torch.ones(4), rtol=1e-3, atol=0)


def test_everything_measured_is_written(clips, finished):
    described = json.loads((finished / "metrics.json").read_text())
    assert list(described["heldout_psnr"]) == ["trilinear", "PCA", "codec before training", "codec"]
    assert described["heldout_psnr"].keys() == described["heldout_ssim"].keys()
    assert described["heldout_psnr"]["codec before training"] == pytest.approx(
        described["heldout_psnr"]["PCA"], abs=0.01
    )
    assert described["codec"] == codec_identity(finished)
    assert described["steps"] == 4
    assert described["parameters"] > 0 and described["flops_per_step"] > 0
    assert len(described["latent_mean"]) == len(described["latent_scale"]) == 4
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4]
    with Image.open(finished / "reconstructions.png") as sheet:
        assert sheet.width > 300


def test_a_finished_codec_is_left_as_it_is(clips, finished, caplog):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    with caplog.at_level("INFO"):
        assert run(make_config(clips, finished, steps=4)) == 0
    assert "stands" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_other_settings_or_clips_need_another_folder(clips, finished, tmp_path):
    with pytest.raises(ValueError, match="run.steps: 4 -> 5.*replace=true"):
        run(make_config(clips, finished, steps=5))
    (tmp_path / "clips").mkdir()
    shard = sorted(clips.glob("*.tar"))[0]
    (tmp_path / "clips" / shard.name).write_bytes(shard.read_bytes())
    with pytest.raises(ValueError, match="other clips"):
        run(make_config(tmp_path / "clips", finished, steps=4))


def test_replace_starts_again(clips, tmp_path):
    config = make_config(clips, tmp_path / "codec", steps=2)
    run(config)
    first = codec_identity(config.path)
    (config.path / "notes.txt").write_text("mine")
    run(replace(config, seed=2, replace=True))
    assert codec_identity(config.path) != first
    assert (config.path / "notes.txt").is_file()
    rows = (config.path / "metrics.jsonl").read_text().splitlines()
    assert len([row for row in rows if "grad_norm" in row]) == 2


def test_replace_keeps_the_trained_codec_until_the_new_training_can_start(clips, finished, tmp_path):
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    config = replace(make_config(clips, finished, steps=3), replace=True)
    assert run(replace(config, dry_run=True)) == 0
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "clips-000000.tar").write_bytes(b"")
    with pytest.raises(ValueError, match="no clip to train on"):
        run(replace(config, clips=str(tmp_path / "broken")))
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


def test_a_codec_from_elsewhere_is_not_overwritten(clips, finished, tmp_path):
    save_codec(load_codec(finished), tmp_path / "imported")
    with pytest.raises(ValueError, match="not trained there"):
        run(make_config(clips, tmp_path / "imported"))


def test_a_dry_run_writes_nothing(clips, tmp_path):
    assert run(make_config(clips, tmp_path / "codec", dry_run=True)) == 0
    assert not (tmp_path / "codec").exists()


def test_the_wan_codec_trains_too(clips, tmp_path):
    wan = WanCodecConfig(
        latent_channels=4, encoder_width=4, decoder_width=4, width_multiples=(1, 2, 2, 2), blocks_per_level=1
    )
    config = make_config(
        clips,
        tmp_path / "codec",
        steps=2,
        codec=CodecConfig(wan=wan),
        loss=CodecLossConfig(reconstruction="l1", kl=1e-5),
    )
    assert run(config) == 0
    rows = [json.loads(line) for line in (config.path / "metrics.jsonl").read_text().splitlines()]
    assert all(row["kl"] > 0 for row in rows if "loss" in row)
    assert load_codec(config.path).latent_scale_C.min() > 0


def test_arithmetic_in_bfloat16_keeps_weights_in_float32(clips, tmp_path):
    config = make_config(clips, tmp_path / "codec", steps=2)
    assert run(replace(config, run=replace(config.run, precision="bfloat16"))) == 0
    assert {tensor.dtype for tensor in load_codec(config.path).state_dict().values()} == {torch.float32}


def test_missing_clips_are_a_clear_error(tmp_path):
    with pytest.raises(ValueError, match="is not a folder"):
        run(make_config(tmp_path / "nowhere", tmp_path / "codec"))


def command(clips: Path, folder: Path, *overrides: str) -> list[str]:
    settings = ("vae=patch_tiny", "run.device=cpu", "wandb.mode=disabled", "data.heldout_fraction=0.3", "clip.fps=12")
    return [sys.executable, "-m", "trainer.train_vae", f"clips={clips}", f"folder={folder}", *settings, *overrides]


def test_a_signal_saves_and_the_same_command_goes_on(clips, tmp_path):
    folder = tmp_path / "codec"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    long = command(clips, folder, "run.steps=400", "run.log_every_s=0.2", "run.evaluate_every=0")
    with subprocess.Popen(long, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as job:
        assert job.stderr is not None
        for line in job.stderr:
            if re.match(r"\d\d:\d\d:\d\d  step ", line):
                job.send_signal(signal.SIGINT)
                break
        rest = job.stderr.read()
        assert job.wait(timeout=120) == EXIT_STOPPED
    assert "stopped by SIGINT" in rest and "the same command goes on" in rest
    again = subprocess.run(long, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert again.returncode == 0, again.stderr
    assert "going on from step" in again.stderr
    assert json.loads((folder / "metrics.json").read_text())["steps"] == 400


def test_a_users_mistake_is_one_sentence_and_exit_code_2(clips, tmp_path):
    for overrides, words in (
        (("nonsense=1",), "nonsense"),
        (("loss.kl=1",), "no variance"),
        (("run.steps=x",), "steps"),
    ):
        done = subprocess.run(
            command(clips, tmp_path / "codec", *overrides),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode != 0
        assert words in done.stderr
        assert "Traceback" not in done.stderr
