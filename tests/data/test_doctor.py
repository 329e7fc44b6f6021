import subprocess
import sys

import pytest
from PIL import Image

from data import doctor
from data.clips import INDEX_NAME, write_clip_shards
from data.doctor import main
from data.manifest import FILE_NAME
from tests.data.latent_set import sample, write_latents
from tests.data.media import source, video


@pytest.fixture
def latents(tmp_path):
    write_latents(tmp_path / "set", [sample(i, heldout_every=5) for i in range(40)])
    return tmp_path / "set"


def examined(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    return code, capsys.readouterr().out


def test_healthy_latents_are_described(latents, tmp_path, capsys):
    flags = ["--tokens-per-pack", "100", "--ranks", "2", "--packs-per-step", "4", "--cost", "1,0.01,0.1"]
    code, said = examined(capsys, latents, *flags, "--deep", "--picture", tmp_path / "p.png")
    assert code == 0
    assert "checked  every byte: 0 problems" in said
    assert "train: 32 samples" in said
    assert "heldout: 8 samples" in said
    assert "the busiest of 2 ranks does 1." in said
    for word in ("epoch    ", "fill     0.", "video-000064-000090"):
        assert word in said
    with Image.open(tmp_path / "p.png") as picture:
        assert picture.format == "PNG"
    assert not [line for line in said.splitlines() if line.startswith(("LOST", "DAMAGED", "STARVING"))]


def test_damaged_latents_are_not_healthy(latents, capsys):
    path = next(latents.rglob("*.tar"))
    path.write_bytes(path.read_bytes()[:-600])
    code, said = examined(capsys, latents, "--tokens-per-pack", "100")
    assert code == 1
    assert f"DAMAGED  {path.relative_to(latents)}: has " in said
    (latents / FILE_NAME).write_bytes(b"junk")
    code, said = examined(capsys, latents)
    assert code == 1
    assert "manifest.parquet cannot be read" in said


def test_samples_that_never_fit_are_lost(latents, capsys):
    code, said = examined(capsys, latents, "--tokens-per-pack", "50")
    assert code == 1
    assert "LOST     video-000064-000090: " in said
    assert "do not fit a pack of 50 tokens, the largest is film/clip" in said


def test_starving_buckets_are_told_and_harm_nothing(latents, capsys, monkeypatch):
    code, said = examined(capsys, latents, "--tokens-per-pack", "100", "--starving-steps", "1")
    assert code == 0
    assert "STARVING image-000001-000001: " in said


def test_clips_that_are_dropped_are_told(tmp_path, capsys):
    clips = [source("good", video()), source("short", video(frames=6)), source("bad", b"x")]
    write_clip_shards(clips, tmp_path / "clips")
    code, said = examined(capsys, tmp_path / "clips", "--fps", "8", "--max-frames", "17")
    assert code == 1
    lines = said.splitlines()
    assert lines[0].startswith("clips-000000.tar: good: 64 x 48 -> 5 frames of 64 x 48 at 8 fps, 24 tokens")
    assert "DROPPED  clips-000000.tar: short: too short: 2 frames at 8 fps, fewer than min_frames=5" in lines
    assert "reasons  cannot be decoded (1), too short (1)" in lines
    write_clip_shards(clips[:1], tmp_path / "good")
    code, said = examined(capsys, tmp_path / "good")
    assert (code, "DROPPED" in said) == (0, False)
    (tmp_path / "good" / INDEX_NAME).unlink()
    assert "no clips.json beside the shards" in examined(capsys, tmp_path / "good")[1]


def test_windows_larger_than_a_pack_are_lost(tmp_path, capsys):
    write_clip_shards([source("long", video(frames=60))], tmp_path / "clips")
    code, said = examined(capsys, tmp_path / "clips", "--tokens-per-pack", "40")
    assert code == 1
    assert "LOST     1 windows do not fit a pack of 40 tokens, the largest is long" in said


def test_clips_at_their_own_rate_and_cropped_to_squares(tmp_path, capsys):
    write_clip_shards([source("c", video(frames=24))], tmp_path / "clips")
    code, said = examined(capsys, tmp_path / "clips", "--fps", "own", "--square", "32", "--max-frames", "21")
    assert code == 0
    assert "21 frames of 32 x 32 at 24 fps" in said


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--ranks", "3", "--packs-per-step", "4"], "--packs-per-step 4 must be a multiple of --ranks 3: take 6"),
        (["--packs-per-step", "0"], "--packs-per-step 0 must be at least 1"),
        (["--ranks", "0"], "--ranks 0 must be at least 1"),
        (["--workers", "0"], "--workers 0 must be at least 1"),
        (["--cost", "0,0,0"], "a pack's cost needs coefficients above 0"),
        (["--cost", "1,nan,0"], "a pack's cost needs finite coefficients of 0 or more, not quadratic=nan"),
    ],
)
def test_mistakes_of_a_patient_are_one_sentence(latents, capsys, flags, message):
    assert main([str(latents), *flags]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_latents_without_a_manifest_are_sent_to_the_index(latents, capsys):
    (latents / FILE_NAME).unlink()
    assert main([str(latents)]) == 2
    assert "holds latent shards without manifest.parquet: run `python -m data.index` first" in capsys.readouterr().err
    assert main(["memory://nothing-here"]) == 2
    assert main(["pipe:cat x"]) == 2


def test_an_interrupt_is_one_line(latents, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "check_set", interrupted)
    assert main([str(latents)]) == 130
    assert capsys.readouterr().err == "stopped; nothing was changed, and the same command starts again\n"


def test_the_doctor_runs_as_a_module(latents):
    command = [sys.executable, "-m", "data.doctor", str(latents), "--tokens-per-pack", "100"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
