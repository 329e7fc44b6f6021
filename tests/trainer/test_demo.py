"""The demo's phases: their commands are valid, they run once, and they survive an interruption."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from data.demo_captions import CAPTIONS, clip_keys, read_captions
from data.split import split_of
from trainer.codec_config import TrainVaeConfig
from trainer.compose import to_dataclass
from trainer.config import TrainConfig
from trainer.demo import HELDOUT_CLIP, HELDOUT_PROMPT, PROMPTS, Ledger, Phase, Stopped, main, phases, run_phases
from trainer.encode import EncodeConfig
from trainer.evaluate import EvaluateConfig
from trainer.sample import SampleConfig
from trainer.signals import EXIT_STOPPED

CONF = Path(__file__).parents[2] / "conf"
CONFIGS = {
    "trainer.train_vae": TrainVaeConfig,
    "trainer.encode": EncodeConfig,
    "trainer.train": TrainConfig,
    "trainer.evaluate": EvaluateConfig,
    "trainer.sample": SampleConfig,
}


def writing(folder: Path, name: str, code: str = "") -> Phase:
    """A phase that appends a line to its result."""
    result = folder / name
    line = f"{code}\nopen({str(result)!r}, 'a').write('ran\\n')"
    return Phase(name=name, title=f"make {name}", command=(sys.executable, "-c", line), result=result)


def runs(phase: Phase) -> int:
    return len(phase.result.read_text().splitlines()) if phase.result.exists() else 0


def test_every_command_composes_into_its_config(tmp_path):
    clip = tmp_path / "heldout" / f"{HELDOUT_CLIP}.mp4"
    clip.parent.mkdir()
    clip.touch()
    seen = set()
    for phase in phases(tmp_path, tmp_path / "cache"):
        module = next((word for word in phase.command if word in CONFIGS), None)
        if module is None:
            continue
        overrides = phase.command[phase.command.index(module) + 1 :]
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose(module.removeprefix("trainer."), overrides=list(overrides))
        to_dataclass(CONFIGS[module], config)
        seen.add(module)
    assert seen == set(CONFIGS)


def test_prompts_along_the_run_are_those_sampled_at_its_end():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", overrides=["experiment=demo"])
    assert tuple(config.samples.prompts) == PROMPTS


def test_clip_that_is_animated_is_held_out():
    rows = read_captions(CAPTIONS)
    row = dict(zip(clip_keys(rows), rows, strict=True))[HELDOUT_CLIP]
    assert row.short == HELDOUT_PROMPT
    with initialize_config_dir(str(CONF), version_base="1.3"):
        fractions = [compose("encode").heldout_fraction, compose("train_vae").data.heldout_fraction]
    assert [split_of(row.source, fraction) for fraction in fractions] == ["heldout", "heldout"]


def test_what_stands_is_not_run_again(tmp_path):
    todo = [writing(tmp_path, name) for name in "abc"]
    for _ in range(2):
        run_phases(todo, Ledger(tmp_path / "phases.json"))
    assert [runs(phase) for phase in todo] == [1, 1, 1]


def test_a_missing_result_or_another_command_is_made_again_with_all_that_follows(tmp_path):
    todo = [writing(tmp_path, name) for name in "abc"]
    run_phases(todo, Ledger(tmp_path / "phases.json"))
    todo[1].result.unlink()
    run_phases(todo, Ledger(tmp_path / "phases.json"))
    assert [runs(phase) for phase in todo] == [1, 1, 2]
    todo[1] = writing(tmp_path, "b", "pass")
    run_phases(todo, Ledger(tmp_path / "phases.json"))
    assert [runs(phase) for phase in todo] == [1, 2, 3]


def test_a_failed_phase_is_named_and_tried_again(tmp_path):
    marker = tmp_path / "repaired"
    todo = [
        writing(tmp_path, "a"),
        writing(tmp_path, "b", f"import os, sys\nos.path.exists({str(marker)!r}) or sys.exit(3)"),
    ]
    with pytest.raises(ValueError, match="«make b» ended with exit code 3; `make demo` goes on from there"):
        run_phases(todo, Ledger(tmp_path / "phases.json"))
    failed = json.loads((tmp_path / "phases.json").read_text())["b"]
    assert not failed["is_done"]
    marker.touch()
    ledger = Ledger(tmp_path / "phases.json")
    run_phases(todo, ledger)
    assert [runs(phase) for phase in todo] == [1, 1]
    assert ledger.seconds["b"] > failed["seconds"], "seconds of both attempts count"


def test_a_phase_that_was_stopped_and_has_saved_is_no_failure(tmp_path):
    todo = [writing(tmp_path, "a", f"import sys\nsys.exit({EXIT_STOPPED})")]
    with pytest.raises(Stopped):
        run_phases(todo, Ledger(tmp_path / "phases.json"))
    assert not json.loads((tmp_path / "phases.json").read_text())["a"]["is_done"]


SAVES_WHEN_STOPPED = """
import pathlib, signal, sys, time
def save(*_):
    time.sleep(0.5)
    pathlib.Path({saved!r}).touch()
    sys.exit(75)
signal.signal(signal.SIGINT, save)
signal.signal(signal.SIGTERM, save)
pathlib.Path({started!r}).touch()
time.sleep(60)
"""
DRIVER = """
import sys
from pathlib import Path
import signal
from trainer.demo import Ledger, Phase, Stopped, _terminate, run_phases
signal.signal(signal.SIGTERM, _terminate)
folder = Path(sys.argv[1])
phase = Phase(name="a", title="a", command=(sys.executable, "-c", sys.argv[2]), result=folder / "a")
try:
    run_phases([phase], Ledger(folder / "phases.json"))
except Stopped:
    sys.exit(130)
"""


@pytest.mark.parametrize("reaches_group", [True, False], ids=["ctrl-c", "sigterm"])
def test_a_stop_waits_until_the_phase_has_saved(tmp_path, reaches_group):
    """Ctrl-C reaches the phase from the terminal, that is to say the whole process group; SIGTERM the demo alone."""
    started, saved = tmp_path / "started", tmp_path / "saved"
    child = SAVES_WHEN_STOPPED.format(saved=str(saved), started=str(started))
    demo = subprocess.Popen([sys.executable, "-c", DRIVER, str(tmp_path), child], start_new_session=True)
    try:
        deadline = time.monotonic() + 60
        while not started.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        if reaches_group:
            os.killpg(demo.pid, signal.SIGINT)
        else:
            demo.terminate()
        assert demo.wait(60) == 130
    finally:
        demo.kill()
    assert saved.exists()
    assert not json.loads((tmp_path / "phases.json").read_text())["a"]["is_done"]


def test_a_file_for_a_folder_is_refused(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setattr(sys, "argv", ["demo", "--folder", str(tmp_path / "file")])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert f"--folder={tmp_path}/file is a file: give a folder" in caplog.text
