"""`python -m slurm.submit`: refused in one sentence, or a run on a real SLURM exactly as it was checked."""

import re

import pytest
import yaml

from slurm.submit import choices, split_words
from tests.slurm.checkout_case import ENDED, training
from trainer.metrics import read_metrics

LAYOUT = ["parallel=tp2_pp2", "nodes=2", "ranks_per_node=2"]
MODEL = ["model=nano", "model.in_channels=16", "model.out_channels=16", "model.text_dim=384"]


def small(name: str, **changes) -> list[str]:
    """A run of the smallest model."""
    own = {f"model__{size}": None for size in ("num_blocks", "num_heads", "head_dim", "ffn_dim")}
    return [*MODEL, *training(name, **own, **changes)]


def job_of(out: str) -> str:
    return out.split("\njob ")[1].split(":")[0]


def test_words_of_the_job_and_of_the_run_are_told_apart():
    words = [
        "nodes=2",
        "model=nano",
        "cluster.partition=gpu",
        "+cluster.environment.A=b",
        "dry_run=true",
        "run.steps=3",
    ]
    assert split_words([*words, "~samples"]) == (
        ["nodes=2", "cluster.partition=gpu", "+cluster.environment.A=b", "dry_run=true"],
        ["model=nano", "run.steps=3", "~samples"],
    )


def test_a_sweep_is_every_combination_each_with_a_name():
    words = ["model=nano", "schedule.lr=1e-3,2e-3", "seed=range(2)", "samples.prompts=['a,b']"]
    found = list(choices(words))
    assert [name for _, name in found] == ["lr-0.001-seed-0", "lr-0.001-seed-1", "lr-0.002-seed-0", "lr-0.002-seed-1"]
    assert found[2][0] == ["model=nano", "schedule.lr=0.002", "seed=0", "samples.prompts=['a,b']"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["run.stepz=4"], "run.stepz is in no config: did you mean run.steps?"),
        (["run.steps=many"], "config: run.steps=many must be a whole number"),
        (["data.folder=nowhere"], "nowhere has no manifest.parquet: make latent shards with"),
        (["nodes=3"], "nodes=3 x 2 ranks: 6 processes cannot hold whole copies of the model"),
        (["nodes=0"], "nodes=0 must be at least 1"),
        (["cluster=moon"], "cluster=moon is not there: take one of apptainer, bare_metal, local, pyxis"),
        (["cluster.partitoin=gpu"], "cluster.partitoin is in no config: did you mean cluster.partition?"),
        (
            ["module=os.path", "nodes=1", "ranks_per_node=1"],
            "module=os.path is no command with a config of its own, such as trainer.train",
        ),
        (["module=trainer.sweep"], "module=trainer.sweep is no command with a config of its own"),
        (["module=trainer.encode"], "module=trainer.encode is one process: leave nodes= and ranks_per_node= away"),
        (["--cfg"], "--cfg is no option here (there are -m and --help)"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_mistakes_are_refused_before_the_queue_in_one_sentence(checkout, monkeypatch, caplog, capsys, words, sentence):
    before = checkout.cluster.run("squeue", "--noheader")
    assert checkout.submit(monkeypatch, caplog, *small("wrong"), *LAYOUT, *words) == 2
    assert len(caplog.messages) == 1 and caplog.messages[0].startswith(f"error: {sentence}"), caplog.messages
    assert capsys.readouterr().out == ""
    assert not (checkout.folder / "runs/wrong").exists()
    assert checkout.cluster.run("squeue", "--noheader") == before


def test_what_slurm_refuses_is_told_in_its_words(checkout, monkeypatch, caplog):
    assert checkout.submit(monkeypatch, caplog, *small("nopart"), "cluster.partition=gpu") == 2
    assert re.match(
        r"error: sbatch --parsable runs/nopart/submit.sbatch failed: .*[Ii]nvalid partition",
        caplog.messages[0],
    )


def test_a_dry_run_prints_config_and_script_and_leaves_nothing(checkout, monkeypatch, caplog, capsys):
    assert checkout.submit(monkeypatch, caplog, *small("dry"), *LAYOUT, "dry_run=true") == 0
    out = capsys.readouterr().out
    _, config, script = re.split(r"\n# runs/dry/submit\.\w+\n", out)
    assert yaml.safe_load(config)["parallel"]["tensor"] == 2
    assert script.startswith("#!/usr/bin/env bash\n#SBATCH --job-name=dry\n#SBATCH --nodes=2\n")
    assert out.endswith("dry_run=true: nothing was written or submitted\n")
    assert not (checkout.folder / "runs/dry").exists()


def test_two_nodes_of_two_ranks_train_what_was_checked(checkout, monkeypatch, caplog, capsys):
    words = [*small("four", run__steps=6), *LAYOUT, "cluster.preflight=true", "schedule.lr=5e-4"]
    assert checkout.submit(monkeypatch, caplog, *words) == 0
    job = job_of(capsys.readouterr().out)

    assert checkout.submit(monkeypatch, caplog, *words) == 2, "twice is once too often"
    assert f"runs/four is the folder of job {job}, which has not ended: cancel that" in caplog.text
    edited = checkout.folder / "conf/train.yaml"  # what is edited while the job waits is not what was checked
    was = edited.read_text()
    edited.write_text(was.replace("tokens_per_pack", "tokens_per_bag"))
    try:
        log = checkout.finish(job)
    finally:
        edited.write_text(was)
    assert "preflight: 2 nodes alike, clocks within 0." in log
    assert "trainer.train on 2 nodes (n[0-1]) x 2 ranks" in log
    assert "layout: 2 tensor with sequence parallelism x 2 pipeline x 1 data" in log
    folder = checkout.folder / "runs/four"
    assert checkout.steps("four") == list(range(1, 7))
    assert len(list((folder / "checkpoints/step_00000006").glob("pieces-*.safetensors"))) == 4
    assert (folder / "config.yaml").read_text() == (folder / "submit.yaml").read_text()
    assert next(row["lr"] for row in read_metrics(folder)) == pytest.approx(5e-4 / 4), "of four steps of warm-up"

    capsys.readouterr()
    assert checkout.jobs(monkeypatch, "status", "four") == 0
    row = capsys.readouterr().out.splitlines()[1].split()
    assert row[:2] == [job, "COMPLETED"] and row[-3:-1] == ["runs/four", "6/6"]


@pytest.mark.slow
def test_a_sweep_is_an_array_and_a_chain_goes_on_where_time_was_up(checkout, monkeypatch, caplog, capsys):
    """In the first link of each task time is up before it starts: a run takes one step all the same, and saves it."""
    prelude = "test -e once-$SLURM_ARRAY_TASK_ID || export SLURM_JOB_END_TIME=1; touch once-$SLURM_ARRAY_TASK_ID"
    words = [*small("sweep", run__steps=5), "-m", "seed=0,1", "chain=3", f"cluster.prelude=['{prelude}']"]
    assert checkout.submit(monkeypatch, caplog, *words) == 0
    first, second, third = re.findall(r"^job (\d+)", capsys.readouterr().out, re.MULTILINE)
    for seed in (0, 1):
        log = checkout.finish(f"{second}_{seed}")
        assert f"resumed from runs/sweep-seed-{seed}/checkpoints/step_00000001" in log
        stopped = checkout.log(f"{first}_{seed}")
        assert "stopped by the job's time limit (-" in stopped
        assert "and REQUEUE is off: the next job goes on from here" in stopped
        assert checkout.steps(f"sweep-seed-{seed}") == [1, 2, 3, 4, 5]
    assert checkout.losses("sweep-seed-0") != checkout.losses("sweep-seed-1")
    assert checkout.cluster.wait(third, ENDED, seconds=60) == "CANCELLED", "there is nothing left for it to do"
    assert checkout.log(f"{third}_0") == ""


@pytest.mark.slow
def test_another_command_is_submitted_the_same_way(checkout, monkeypatch, caplog, capsys):
    words = ["module=trainer.layout", "model=tiny", "world_size=4", "parallel.tensor=2"]
    assert checkout.submit(monkeypatch, caplog, *words) == 0
    out = capsys.readouterr().out
    assert out.startswith("runs/slurm/layout-")
    assert "layout: 2 tensor with sequence parallelism" in checkout.finish(job_of("\n" + out.split("one process")[1]))
