"""`python -m trainer.train` as a user meets it: what it writes, how it stops, and one sentence for each mistake."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from data.manifest import Manifest
from data.plan import PlanConfig
from model.codec import CodecConfig, build_codec, save_codec
from model.codec_patch import PatchCodecConfig
from tests.data.tar_faults import FAULTS, Shards
from tests.trainer.run_case import MODEL, ROOT, STEPS, environment, overrides, write_inputs
from trainer.checkpoint import CheckpointReader, committed_steps
from trainer.compose import to_dataclass
from trainer.config import TrainConfig
from trainer.metrics import read_metrics
from trainer.train import run

LONG = 60


def tree(folder):
    return sorted(str(path) for path in Path(folder).rglob("*"))


def steps_logged(folder):
    return [row["step"] for row in read_metrics(folder) if "loss" in row]


def interrupt(command, folder, *, cwd):
    """Run a command as a terminal does, press Ctrl-C after its third step; exit code and what it printed."""
    log = cwd / f"{folder.name}.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=cwd, env=environment(), stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
    end = time.monotonic() + 120
    while len(steps_logged(folder)) < 3:
        assert process.poll() is None and time.monotonic() < end, log.read_text()
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    return process.wait(timeout=90), log.read_text()


def test_one_process_without_a_launcher_stops_at_ctrl_c_goes_on_and_says_when_it_is_done(commands, inputs):
    folder, words = inputs / "alone", overrides(folder="alone", wandb__mode="offline", run__steps=LONG)
    code, printed = interrupt([sys.executable, "-m", "trainer.train", *words], folder, cwd=inputs)
    assert code == 75, printed
    assert "SIGINT: saving after this step" in printed and "Traceback" not in printed
    stopped_after = steps_logged(folder)[-1]
    assert 3 <= stopped_after < LONG
    assert committed_steps(folder / "checkpoints") == [stopped_after]

    again = commands.run(words, cwd=inputs).ok()
    assert f"resumed from alone/checkpoints/step_{stopped_after:08d}" in again.err
    assert steps_logged(folder) == list(range(1, LONG + 1))
    assert committed_steps(folder / "checkpoints") == [stopped_after, LONG]
    run_id = (folder / "wandb_id").read_text()
    assert len(list((folder / "wandb").glob(f"offline-run-*-{run_id}/*.wandb"))) >= 1

    before = tree(folder)
    done = f"step {LONG} of {LONG} is done; to go on, raise run.steps with allow_changes=true"
    assert done in commands.run(words, cwd=inputs).ok().err
    assert tree(folder) == before


def test_ctrl_c_under_a_launcher_saves_too_and_its_exit_code_says_so(commands, inputs):
    folder, words = inputs / "launched", [*overrides(folder="launched", run__steps=LONG), "parallel=dp2"]
    launcher = [sys.executable, "-m", "parallel.torchrun", "--standalone", "--nproc-per-node=2"]
    code, printed = interrupt([*launcher, "-m", "trainer.train", *words], folder, cwd=inputs)
    assert code == 75 and "Traceback" not in printed, printed
    assert "everything is saved, and the same command goes on from here" in printed
    stopped_after = steps_logged(folder)[-1]
    assert committed_steps(folder / "checkpoints") == [stopped_after]
    again = commands.run(words, cwd=inputs, ranks=2).ok()
    assert f"step_{stopped_after:08d}" in again.err
    assert steps_logged(folder) == list(range(1, LONG + 1))


def test_sigterm_from_outside_saves_at_the_step_boundary(commands, inputs):
    folder, words = inputs / "terminated", overrides(folder="terminated")
    started = commands.start(words, cwd=inputs, event={"sleep": 0.1})
    started.until(lambda: len(steps_logged(folder)) >= 3)
    started.signal(signal.SIGTERM)
    ended = started.wait()
    assert ended.code == 75, ended.err
    assert committed_steps(folder / "checkpoints") == [steps_logged(folder)[-1]]
    commands.run(words, cwd=inputs).ok()
    assert steps_logged(folder) == list(range(1, STEPS + 1))


def test_overfitting_a_few_samples_lowers_the_loss_far(commands, inputs):
    small = {f"model__{name}": None for name in MODEL}
    own = {"run__checkpoint_every": None, "data__packs_per_step": None, "wandb__mode": None}
    words = overrides(folder="overfit", name=None, run__log_every=1, run__steps=400, schedule__lr=0.01, **small, **own)
    commands.run([*words, "debug=overfit"], cwd=inputs).ok()
    losses = [row["loss"] for row in read_metrics(inputs / "overfit") if "loss" in row]
    assert losses[0] == pytest.approx(2, rel=0.2), "what predicting zero for white latents costs"
    assert len(losses) == 400
    assert sum(losses[-50:]) / 50 < 0.7, "a model that learned no sample by heart stays near 1"
    written = sorted(path.name for path in (inputs / "overfit").iterdir())
    record = ["config.yaml", "data_plan.json", "log.txt", "metrics.jsonl", "run.json", "starts.jsonl", "wandb_id"]
    assert written == record


def test_a_sweep_in_one_shell_is_a_run_after_the_other_each_in_a_folder_of_its_own(commands, inputs):
    small = overrides(name=None, folder=None, run__steps=3, schedule__lr=None)
    sweep = ["-m", *small, "schedule.lr=1e-3,1e-4", "data.packs_per_step=1,2"]
    before = {path for path in tree(inputs) if "multirun" not in path}
    sentence = commands.run(sweep, cwd=inputs).sentences()[-1]
    assert sentence.startswith(
        "error: 4 jobs of this sweep would write into runs/run: give each a name of its own, such as "
        "'name=sweep-${data.packs_per_step}-${schedule.lr}'"
    )
    assert {path for path in tree(inputs) if "multirun" not in path} <= {*before, str(inputs / "runs")}
    named = "name=sweep-${data.packs_per_step}-${schedule.lr}"
    ended = commands.run([*sweep, named], cwd=inputs).ok()
    assert "job 4 of 4: data.packs_per_step=2 schedule.lr=0.0001" in ended.sentences()
    for packs, rate in ((1, "0.001"), (2, "0.001"), (1, "0.0001"), (2, "0.0001")):
        folder = inputs / f"runs/sweep-{packs}-{rate}"
        assert steps_logged(folder) == [1, 2, 3]
        assert CheckpointReader(folder / "checkpoints/step_00000003").state["settings"]["schedule.lr"] == float(rate)


@pytest.mark.parametrize("is_told", [True, False], ids=["by a job's script", "by hand"])
def test_a_sweep_that_is_stopped_begins_no_further_run(commands, inputs, tmp_path, is_told):
    """The time limit stops its first run after one step; a job's script that asked for it learns of it by the note."""
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_END_TIME": "1"}
    job |= {"TESSERA_STOP_NOTE": str(tmp_path / "note")} if is_told else {}
    words = ["-m", *overrides(name=None, folder=None, run__steps=3), "seed=1,2", f"name=stopped-{is_told}-${{seed}}"]
    ended = commands.run(words, cwd=inputs, event={"environ": job})
    assert ended.code == (0 if is_told else 75), ended.err
    assert (tmp_path / "note").exists() == is_told
    assert steps_logged(inputs / f"runs/stopped-{is_told}-1") == [1]
    assert "job 2 of 2" not in ended.err and not (inputs / f"runs/stopped-{is_told}-2").exists()


@pytest.mark.parametrize(("layout", "ranks"), [("single", 1), ("tp2_pp2", 4)])
def test_a_dry_run_prints_the_plan_and_writes_nothing(commands, inputs, layout, ranks):
    before = tree(inputs)
    words = [*overrides(folder="dry"), f"parallel={layout}", "dry_run=true"]
    ended = commands.run(words, cwd=inputs, ranks=ranks).ok()
    split = {1: "1 tensor x 1 pipeline", 4: "2 tensor with sequence parallelism x 2 pipeline"}
    assert ended.err.splitlines() == [
        f"run small in dry: {STEPS} steps",
        f"layout: {split[ranks]} x 1 data, ZeRO-1, fp32, {ranks} in all",
        "model: 21,504 parameters, 6,880 of them in the 2 blocks",
        "data: 8 training samples of 10, 58 tokens",
        "step: 2 packs of 16 tokens",
    ]
    assert ended.others == ""
    assert tree(inputs) == before


@pytest.mark.parametrize("name", ["bit of a header", "zeroed header", "member .pickle"])
def test_what_is_wrong_beside_the_samples_is_told_before_training(commands, inputs, tmp_path, name):
    """Where the file has its size, which all ranks look at."""
    write_inputs(tmp_path)
    first, second = sorted((tmp_path / "latents").rglob("*.tar"))[:2]
    size = first.stat().st_size
    manifest = Manifest.read(tmp_path / "latents")
    keys = [key for key in manifest.keys() if key.encode() in first.read_bytes()]  # noqa: SIM118 - a manifest is no dict
    told = FAULTS[name](Shards(first, second, key=keys[-1], other=keys[0], main="latent.safetensors"))
    assert first.stat().st_size == size
    words = [*overrides(folder="told"), "dry_run=true"]
    ended = commands.run(words, cwd=tmp_path, ranks=2).ok()
    [line] = [line for line in ended.sentences() if "python -m data.doctor latents lists all" in line]
    assert told.is_in(line)
    assert ended.others == ""


def test_threads_are_left_to_the_launcher_unless_a_run_sets_them(inputs, monkeypatch):
    asked = []
    monkeypatch.setattr("torch.set_num_threads", asked.append)
    monkeypatch.chdir(inputs)
    for own in ([], ["run.threads_per_rank=3"]):
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            composed = compose("train", [*overrides(folder="threads"), "dry_run=true", *own])
        assert run(to_dataclass(TrainConfig, composed)) == 0
    assert asked == [3]


MISTAKES = {
    "unknown key": (["run.stepz=4"], r"run\.stepz is in no config: did you mean run\.steps\?"),
    "unknown group": (["modell=tiny"], r"modell is in no config: did you mean model\?"),
    "unknown option": (["model=huge"], r"model=huge is not there: take one of demo, .*tiny"),
    "no value": (["run.steps"], r"'run\.steps'.*: write KEY=VALUE"),
    "wrong type": (["run.steps=ten"], r"run\.steps=ten must be a whole number"),
    "a string for a list": (["samples.prompts=a rabbit"], r"samples\.prompts=a rabbit must be a list in brackets"),
    "a word that is no choice": (["schedule.kind=linear"], r"schedule\.kind=linear must be one of constant, cosine"),
    "a number out of range": (["schedule.lr=-1"], r"schedule\.lr=-1\.0 must be above 0"),
    "no shards": (["data.folder=nowhere"], r"nowhere has no manifest\.parquet: make latent shards with"),
    "no codec": (["data.codec=nowhere"], r"nowhere is not a codec folder \(config\.json is missing\): make one with"),
    "shards of another codec": (["data.codec=other"], r"latents was encoded by another codec \(\w+, not \w+\): name"),
    "captions of another size": (["model.text_dim=128"], r"model\.text_dim=128, but .* latents .* 384 values: set"),
    "too few processes": (["parallel=tp2"], r"1 processes cannot hold whole copies .* start 2 processes"),
    "heads that do not divide": (
        ["parallel=tp2", "model.num_heads=3"],
        r"parallel\.tensor=2 does not divide model\.num_heads=3",
    ),
    "packs that do not divide": (["parallel=dp2", "data.packs_per_step=3"], r"data\.packs_per_step=3 .* use 2 or 4"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence_and_writes_nothing(commands, inputs, mistake):
    if not (inputs / "other").exists():
        torch.manual_seed(1)
        patch = PatchCodecConfig(width=8, encoder_blocks=1, decoder_blocks=1)
        save_codec(build_codec(CodecConfig(patch=patch)), inputs / "other")
    wrong, sentence = MISTAKES[mistake]
    before = tree(inputs)
    ranks = 2 if "divide" in mistake else 1
    ended = commands.run([*overrides(folder="mistaken"), *wrong], cwd=inputs, ranks=ranks)
    assert re.search(sentence, ended.refused())
    assert tree(inputs) == before


def test_other_settings_at_resume_are_refused_unless_allowed(commands, inputs):
    changes = {"folder": "changed", "run__steps": 4}
    commands.run(overrides(**changes), cwd=inputs).ok()
    before = tree(inputs)
    changes |= {"run__steps": 6, "schedule__lr": 1e-3, "optim__weight_decay": 0.5, "data__window": 3}
    sentence = commands.run(overrides(**changes), cwd=inputs).refused()
    assert "changed/checkpoints/step_00000004 was saved under other settings" in sentence
    assert "optim.weight_decay: 0.01 -> 0.5; run.steps: 4 -> 6; schedule.lr: 0.003 -> 0.001" in sentence
    assert "allow_changes=true" in sentence
    assert tree(inputs) == before
    allowed = commands.run([*overrides(**changes), "allow_changes=true"], cwd=inputs).ok()
    assert "resumed under other settings: data.window: 4096 -> 3; optim.weight_decay" in allowed.err
    assert steps_logged(inputs / "changed") == list(range(1, 7))
    resumed = CheckpointReader(inputs / "changed/checkpoints/step_00000006").state
    assert resumed["settings"]["schedule.lr"] == 1e-3
    plans = [PlanConfig.read(inputs / "changed", step=step) for step in (1, 4, 5, 6)]
    assert [(plan.window, start.step) for plan, _, start in plans] == [(4096, 0), (4096, 0), (3, 4), (3, 4)]


@pytest.fixture
def disk(tmp_path):
    """A disk of 600 KiB, on which one checkpoint fits and not two."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_leaves_the_earlier_checkpoint_and_the_run_goes_on_when_there_is_room(commands, inputs, disk):
    words = overrides(folder=disk / "run", run__checkpoint_every=5)
    sentence = commands.run(words, cwd=inputs).refused()
    checkpoints = disk / "run/checkpoints"
    assert f"checkpoint {checkpoints}/step_00000010 was not written (rank 0: the disk is full)" in sentence
    assert "earlier checkpoints are intact, so free space" in sentence
    assert [path.name for path in checkpoints.iterdir()] == ["step_00000005"]
    CheckpointReader(checkpoints / "step_00000005").verify()
    subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
    assert "resumed from" in commands.run(words, cwd=inputs).ok().err
    assert committed_steps(checkpoints) == [15, STEPS]


def test_one_rank_that_cannot_write_ends_all_ranks_with_one_sentence(commands, inputs):
    words = [*overrides(folder="limited", run__checkpoint_every=5), "parallel=pp2"]
    event = {"step": 8, "rank": 1, "largest_file": 4096}
    sentence = commands.run(words, cwd=inputs, ranks=2, event=event).refused()
    assert re.search(r"step_00000010 was not written \(rank 1: .*too large", sentence)
    assert [path.name for path in (inputs / "limited/checkpoints").iterdir()] == ["step_00000005"]


def test_a_record_that_rank_0_alone_cannot_write_ends_all_ranks_with_one_sentence(commands, inputs):
    (inputs / "taken").write_text("a file")
    sentence = commands.run([*overrides(folder="taken"), "parallel=pp2"], cwd=inputs, ranks=2).refused()
    assert "taken/starts.jsonl cannot be written (File exists)" in sentence
    (inputs / "barred/config.yaml").mkdir(parents=True)
    sentence = commands.run([*overrides(folder="barred"), "parallel=pp2"], cwd=inputs, ranks=2).refused()
    assert "barred could not be written (Is a directory)" in sentence


def test_a_rank_that_hangs_ends_the_run_with_one_sentence_and_a_dump(commands, inputs):
    words = [*overrides(folder="hung"), "parallel=dp2", "parallel.timeout_s=5"]
    started = time.monotonic()
    ended = commands.run(words, cwd=inputs, ranks=2, event={"step": 3, "rank": 1, "stall": 90})
    assert 5 < time.monotonic() - started < 60
    sentence = ended.refused()
    assert re.fullmatch(
        r"rank 0 waited 5 s \(parallel\.timeout_s\) for other ranks after step 2, in all_reduce number \d+ of "
        r"DATA_PARALLEL_GROUP \[0, 1\]; what it knew is in hung/hang/waiting_0\.json, and a rank without such a file "
        r"is one that never came: .*\(docs/slurm\.md\)",
        sentence,
    )
    log = (inputs / "hung/log.txt").read_text()
    assert f"error: {sentence}" in log, "the record has it too"
    assert "in sum_over_data" in log, "with where it stood"
    note = json.loads((inputs / "hung/hang/waiting_0.json").read_text())
    assert note["where"] == "after step 2"
    assert steps_logged(inputs / "hung") == [1, 2]


def test_a_rank_that_is_killed_ends_the_others_with_one_sentence(commands, inputs):
    words = [*overrides(folder="bereft"), "parallel=dp2"]
    ended = commands.run(words, cwd=inputs, ranks=2, event={"step": 3, "rank": 1, "signal": "SIGKILL"})
    assert ended.codes == [2, -signal.SIGKILL]
    sentence = ended.err.splitlines()[-1]
    assert sentence.startswith("error: rank 0 lost another rank after step 2, in all_reduce number")
    assert "hang/waiting_0.json" in sentence


def test_the_record_begins_with_what_deepspeed_says_it_does(commands, inputs):
    commands.run([*overrides(folder="said", run__steps=1), "parallel=dp2"], cwd=inputs, ranks=2).ok()
    log = (inputs / "said/log.txt").read_text()
    (settings,) = re.findall(r"DeepSpeed: (.*)", log)
    assert {"zero_stage=1", "gradient_clipping=1.0", "overlap_comm=False"} <= set(settings.split(", "))
    assert re.search(r"connections between 2 ranks made in \d+\.\d\d s", log)
    assert log.index("connections between") < log.index("step 1/1")
