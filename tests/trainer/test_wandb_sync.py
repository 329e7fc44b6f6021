"""What W&B holds of a run is what its record holds, whatever became of the run; read back from the offline files."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.wandb_server import WandbServer
from tests.trainer.run_case import STEPS, environment, overrides
from tests.trainer.wandb_case import expected_history, numbers_of, offline_file, read_offline, sync
from trainer.checkpoint import committed_steps
from trainer.metrics import Metrics, NotFinite, read_metrics
from trainer.mirror import ID_FILE, RUN_FILE, WandbConfig, describe_run
from trainer.signals import EXIT_STOPPED
from trainer.wandb_sync import described, locked, main, rows_of

HALF = STEPS // 2
KILLED_AT = 13
SECRET = "5ec7e7" * 7
PROMPTS = "samples.prompts=['a rabbit, grey','a tree']"
PAGE = {"wandb__mode": "offline", "wandb__group": "first", "wandb__job_type": "try", "wandb__notes": "what if"}


def words(folder, **changes):
    cadence = {"run__sample_every": HALF, "run__evaluate_every": HALF, "run__checkpoint_every": HALF}
    return [*overrides(folder=folder, **cadence, **PAGE, **changes), PROMPTS, "wandb.tags=[a,b]"]


@pytest.fixture(scope="module")
def halves(commands, inputs):
    """A run that was killed in the middle of a step, and a copy of its folder after it went on."""
    folder = inputs / "shown"
    ended = commands.run(words("shown"), cwd=inputs, event={"step": KILLED_AT, "signal": "SIGKILL"})
    assert ended.codes == [-9]
    end = time.monotonic() + 60
    while not list(folder.glob("wandb/offline-run-*/*.wandb")):
        assert time.monotonic() < end
        time.sleep(0.05)
    locked(folder, waits=True).close()  # its mirror has shown all there is
    shutil.copytree(folder, inputs / "shown_killed", symlinks=True)
    commands.run(words("shown"), cwd=inputs).ok()
    return inputs / "shown_killed", folder


def test_a_killed_run_is_shown_to_its_last_row(halves):
    killed, _ = halves
    rows = read_metrics(killed)
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, KILLED_AT))
    told = read_offline(killed)
    assert numbers_of(told.history) == expected_history(rows)
    assert told.exit_code == 1
    assert [alert.title for alert in told.alerts] == ["small: gone"]


def test_a_run_that_went_on_is_one_run_without_gap_or_overlap(halves):
    killed, folder = halves
    rows, told = read_metrics(folder), read_offline(folder)
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, STEPS + 1))
    assert [entry["_step"] for entry in told.history] == list(range(STEPS + 1))
    assert numbers_of(told.history) == expected_history(rows)
    assert told.run.run_id == read_offline(killed).run.run_id == (folder / ID_FILE).read_text()
    assert told.exit_code == 0
    for entry in told.history[1:]:
        assert entry["by_tokens/loss"] == entry["by_flops/loss"] == entry["loss"]
    assert told.history[KILLED_AT]["_timestamp"] == pytest.approx(told.history[KILLED_AT]["time"], abs=1e-3)
    assert told.history[-1]["goodput/lost_s"] > 0, "two steps were done again"


def test_w_and_bs_own_command_uploads_all_starts_of_an_offline_run(halves, server):
    _, folder = halves
    words = [str(Path(sys.executable).with_name("wandb")), "sync", str(offline_file(folder).parent)]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    (run,) = server.runs.values()
    assert run.id == (folder / ID_FILE).read_text()
    assert [row["_step"] for row in run.history] == list(range(STEPS + 1))


def test_the_run_says_what_it_is(halves):
    _, folder = halves
    told = read_offline(folder)
    run = told.run
    assert (run.display_name, run.project, run.run_group, run.job_type) == ("small", "tessera", "first", "try")
    assert (list(run.tags), run.notes) == (["a", "b"], "what if")
    settings = json.loads((folder / RUN_FILE).read_text())["settings"]
    assert {key: told.config[key] for key in settings} == settings
    assert (
        settings["schedule.lr"] == 3e-3 and settings["parallel.tensor"] == 1 and settings["deepspeed.zero_stage"] == 1
    )
    assert settings["code.commit"] != "" and len(settings["manifest"]) == 64
    assert not [value for value in settings.values() if str(folder.parent) in str(value)], "no paths"
    axes = {name: metric.step_metric for name, metric in told.metrics.items()}
    assert axes == {
        "step": "",
        "tokens": "",
        "flops": "",
        "*": "step",
        "heldout/loss": "step",
        "by_tokens/*": "tokens",
        "by_flops/*": "flops",
    }


def test_sheets_videos_and_tables_of_samples_are_the_files_of_the_run(halves):
    _, folder = halves
    told, files = read_offline(folder), offline_file(folder).parent / "files"
    shown = [entry for entry in told.history if "samples/sheet.path" in entry]
    assert [entry["_step"] for entry in shown] == [0, HALF, STEPS]
    for entry in shown:
        stem = f"samples/step_{entry['_step']:08d}"
        assert (files / entry["samples/sheet.path"]).read_bytes() == (folder / f"{stem}.png").read_bytes()
        for number, prompt in enumerate(("a rabbit, grey", "a tree")):
            video = files / entry[f"samples/video_{number}.path"]
            assert video.read_bytes() == (folder / f"{stem}_{number}.mp4").read_bytes() != b""
            assert entry[f"samples/video_{number}.caption"] == prompt
        table = json.loads((files / entry["samples/table.path"]).read_text())
        assert table["columns"] == ["step", "prompt", "seed", "video"]
        expected = [[entry["_step"], "a rabbit, grey", 0], [entry["_step"], "a tree", 1]]
        assert [row[:3] for row in table["data"]] == expected


def test_config_record_and_checkpoints_are_referred_to_where_they_lie(halves):
    _, folder = halves
    artifacts = [one for one in read_offline(folder).artifacts if one.type != "run_table"]
    assert [one.type for one in artifacts] == ["run", "checkpoint", "checkpoint"]
    references = {entry.ref for one in artifacts for entry in one.manifest.contents}
    saved = [f"checkpoints/step_{step:08d}" for step in committed_steps(folder / "checkpoints")]
    files = [path for name in saved for path in (folder / name).iterdir()]
    files += [folder / name for name in ("config.yaml", "data_plan.json", "metrics.jsonl", "log.txt")]
    assert references == {path.absolute().as_uri() for path in files}
    assert json.loads(artifacts[-1].metadata)["step"] == STEPS


def test_the_page_is_made_again_from_the_record_alone(halves):
    _, folder = halves
    before = numbers_of(read_offline(folder).history)
    shutil.rmtree(folder / "wandb")
    done = sync(folder)
    assert done.returncode == 0, done.stderr
    path = offline_file(folder)
    rows = len(read_metrics(folder))
    assert done.stdout == f"{rows} rows in {path.parent}; to upload them: wandb sync {path.parent}\n"
    again = read_offline(folder)
    assert numbers_of(again.history) == before
    assert len([entry for entry in again.history if "samples/table.path" in entry]) == 3
    fresh = sync(folder, "--fresh")
    assert fresh.returncode == 0, fresh.stderr
    (new,) = [found for found in (folder / "wandb").glob("offline-run-*") if found != path.parent]
    assert new.name.endswith((folder / ID_FILE).read_text())
    assert not new.name.endswith(again.run.run_id)


def test_a_folder_that_is_no_run_and_one_that_is_being_shown_are_refused(halves, tmp_path):
    _, folder = halves
    refused = sync(tmp_path)
    assert refused.returncode == 2
    assert refused.stderr == f"error: {tmp_path} has no run.json: name the folder of a run, such as runs/demo-dit\n"
    held = locked(folder, waits=False)
    refused = sync(folder)
    held.close()
    assert refused.returncode == 2
    assert refused.stderr == f"error: {folder} is being shown in W&B by its run: wait until that has ended\n"


def test_a_torn_line_is_shown_once_it_is_whole(tmp_path):
    path, torn = tmp_path / "metrics.jsonl", []
    with path.open("w") as writing, path.open() as reading:
        for text, found in (('{"step": 1}\n{"st', [1]), ('ep": 2', []), ("}", []), ('\n{"step": 3}\n', [2, 3])):
            writing.write(text)
            writing.flush()
            assert [row["step"] for row in rows_of(reading, torn)] == found


def test_alerts_are_sent_by_the_process_that_follows_and_not_again_afterwards(tmp_path):
    def fail():
        with Metrics(tmp_path, speaks=True, resume_step=0, config_yaml="name: x\n") as metrics:
            metrics.start_wandb(WandbConfig(), name="x", settings={})
            end = time.monotonic() + 60
            while not list(tmp_path.glob("wandb/offline-run-*/*.wandb")):
                assert time.monotonic() < end
                time.sleep(0.05)
            metrics.write(1, {"loss": 1.0})
            metrics.alert(1, "spike", "step 1: loss 1.0 is far above")
            raise NotFinite("step 2: loss is not finite")

    with pytest.raises(NotFinite):
        fail()
    alerts = read_offline(tmp_path).alerts
    assert [(one.title, one.text, one.level) for one in alerts] == [
        ("x: spike", "step 1: loss 1.0 is far above", "ERROR"),
        ("x: not finite", "step 2: loss is not finite", "ERROR"),
    ]
    assert [row["alert"]["kind"] for row in read_metrics(tmp_path) if "alert" in row] == ["spike", "not finite"]
    assert sync(tmp_path).returncode == 0
    assert read_offline(tmp_path).alerts == []


@pytest.fixture
def server(monkeypatch):
    """A server that speaks to wandb's own client; what it has is read in this process."""
    with WandbServer() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", SECRET)
        yield server
        assert server.unknown == set()


def online_start(folder, resume_step, rows, *, ends):
    """A start of a run with these rows; `ends` with an exit code, by an error or, where it is None, without a word."""
    with Metrics(folder, speaks=True, resume_step=resume_step, config_yaml="name: x\n") as metrics:
        metrics.start_wandb(WandbConfig(mode="online", finish_s=60.0), name="x", settings={"seed": 1})
        for step, row in rows:
            metrics.write(step, row)
        if ends is None:
            metrics._mirror._process.stdin.close()  # as where the process is killed
            metrics._mirror._process.wait()
            metrics._mirror = None
        elif isinstance(ends, int):
            metrics.exit_code = ends
        else:
            raise ends


def steps(first, last):
    return [(step, {"loss": 1.0 / step, "tokens": 8 * step, "flops": 9 * step}) for step in range(first, last + 1)]


def test_a_run_online_that_is_killed_and_resumed_is_one_run_without_gap_or_overlap(tmp_path, server):
    """Killed between the loss and the held-out loss of step 13; from checkpoint 10 it does both again."""
    online_start(tmp_path, 0, steps(1, 13), ends=None)
    (run,) = server.runs.values()
    assert [row["step"] for row in run.history] == list(range(1, 13)), "step 13 may not be whole"
    again = [*steps(11, 13), (13, {"heldout/loss": 0.5, "tokens": 104, "flops": 117}), *steps(14, 16)]
    online_start(tmp_path, 10, again, ends=EXIT_STOPPED)
    online_start(tmp_path, 16, steps(17, 20), ends=0)
    assert list(server.runs) == [(tmp_path / ID_FILE).read_text()]
    assert [row["_step"] for row in run.history] == list(range(1, 21))
    times = ("time", "_")
    shown = {step: {k: v for k, v in row.items() if k not in times} for step, row in numbers_of(run.history).items()}
    record = expected_history(read_metrics(tmp_path))
    assert shown == {step: {k: v for k, v in row.items() if k not in times} for step, row in record.items()}
    assert run.exit_codes == [1, EXIT_STOPPED, 0]
    assert [one["title"] for one in run.alerts] == ["x: gone"]


def test_what_goes_wrong_in_steps_that_w_and_b_has_already_is_told_all_the_same(tmp_path, server):
    online_start(tmp_path, 0, steps(1, 13), ends=0)
    with pytest.raises(NotFinite):
        online_start(tmp_path, 10, steps(11, 12), ends=NotFinite("step 13: loss is not finite"))
    (run,) = server.runs.values()
    assert [row["step"] for row in run.history] == list(range(1, 14))
    assert [(one["title"], one["text"]) for one in run.alerts] == [("x: not finite", "step 13: loss is not finite")]
    found = [path for path in tmp_path.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    assert not found, "the key to W&B is written nowhere"


def test_an_offline_run_is_shown_online_afterwards_and_only_what_is_new_is_sent(tmp_path, server):
    (tmp_path / "metrics.jsonl").write_text("")
    describe_run(tmp_path, WandbConfig(), name="x", settings={})
    for last, sent in ((5, 5), (9, 4)):
        rows = [{"step": step, "time": 1e9 + step, **row} for step, row in steps(1, last)]
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 10, "lo')
        done = sync(tmp_path, "--mode", "online")
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"{sent} rows in {server.url}/local/tessera/runs/")
    (run,) = server.runs.values()
    assert numbers_of(run.history) == expected_history(read_metrics(tmp_path))


def test_a_record_that_cannot_be_read_is_refused_in_one_sentence(tmp_path, capsys):
    describe_run(tmp_path, WandbConfig(), name="x", settings={})
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "time": 1.0}\n\0\0\0\n')
    with path.open() as file, pytest.raises(ValueError) as error:
        list(rows_of(file, []))
    assert str(error.value) == f"{path} has a line that is no row ('\\x00\\x00\\x00\\n'): take it out"
    (tmp_path / ID_FILE).write_text("")
    assert main([str(tmp_path)]) == 2
    told = f"error: {tmp_path}/wandb_id is empty, as a full disk leaves it: --fresh gives the run an id\n"
    assert capsys.readouterr().err == told
    (tmp_path / ID_FILE).write_text("id")
    (tmp_path / RUN_FILE).write_text('{"name": "x"}')
    assert main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}/run.json does not describe a run (KeyError: 'wandb')")


def test_what_an_older_or_newer_version_says_of_a_run_is_taken_as_far_as_it_is_known(tmp_path):
    told = {"name": "x", "settings": {}, "wandb": {"mode": "offline", "tags": ["a"], "colour": "blue"}}
    (tmp_path / RUN_FILE).write_text(json.dumps(told))
    config, name, settings = described(tmp_path)
    assert (config, name, settings) == (WandbConfig(tags=("a",)), "x", {})
