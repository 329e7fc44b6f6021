"""What W&B holds of a run is what its record holds, whatever became of the run; read back from the offline files."""

import json
import shutil
import time

import pytest

from tests.trainer.run_case import STEPS, overrides
from tests.trainer.wandb_case import expected_history, numbers_of, offline_file, read_offline, sync
from trainer.checkpoint import committed_steps
from trainer.metrics import read_metrics
from trainer.mirror import ID_FILE, RUN_FILE
from trainer.wandb_sync import locked

HALF = STEPS // 2
KILLED_AT = 13
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
    from trainer.wandb_sync import rows_of

    path, torn = tmp_path / "metrics.jsonl", []
    with path.open("w") as writing, path.open() as reading:
        for text, found in (('{"step": 1}\n{"st', [1]), ('ep": 2', []), ("}", []), ('\n{"step": 3}\n', [2, 3])):
            writing.write(text)
            writing.flush()
            assert [row["step"] for row in rows_of(reading, torn)] == found


def test_alerts_are_sent_by_the_process_that_follows_and_not_again_afterwards(tmp_path):
    from trainer.metrics import Metrics, NotFinite
    from trainer.mirror import WandbConfig

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
