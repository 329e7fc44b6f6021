"""`sbatch slurm/train.sbatch` on a real two-node SLURM."""

import pytest
import yaml

from tests.slurm.checkout_case import ENDED, training, until
from trainer.checkpoint import committed_steps


def test_a_run_spans_both_nodes_and_gets_its_overrides(checkout):
    prompt = "a rabbit, big and grey's; $HOME"
    quoted = f'samples.prompts=["{prompt}"]'
    job = checkout.sbatch(*training("both", run__steps=3), "parallel=dp2", quoted, nodes=2)
    log = checkout.finish(job)
    assert "trainer.train on 2 nodes (n[0-1]) x 1 ranks, rendezvous 127.0.0.1:" in log
    assert checkout.cluster.field(job, "NodeList") == "n[0-1]"
    assert checkout.steps("both") == [1, 2, 3]
    composed = yaml.safe_load((checkout.folder / f"runs/slurm/{job}.yaml").read_text())
    assert (composed["run"]["steps"], composed["samples"]["prompts"]) == (3, [prompt])
    saved = checkout.folder / "runs/both/checkpoints/step_00000003"
    assert len(list(saved.glob("pieces-*.safetensors"))) == 2, "each of the two ranks writes its part"
    config = yaml.safe_load((saved / "config.yaml").read_text())
    assert config["samples"]["prompts"] == [prompt]
    assert (config["run"]["steps"], config["parallel"]["data"], config["model"]["num_blocks"]) == (3, 2, 2)


def test_a_mistake_ends_the_job_with_its_sentence(checkout):
    job = checkout.sbatch(*training("mistake"), "run.stepz=4", nodes=1)
    assert checkout.cluster.wait(job, ENDED, seconds=300) == "FAILED"
    log = checkout.log(job)
    said, srun, _ = log.splitlines()[-3:]
    assert said.startswith("error: run.stepz is in no config: did you mean run.steps?")
    assert srun.startswith("srun: error: ") and srun.endswith("Exited with exit code 2")
    assert "Traceback" not in log and "goes back to the queue" not in log
    assert checkout.cluster.field(job, "ExitCode") == "2:0"


@pytest.mark.slow
def test_the_signal_at_the_time_limit_is_not_taken_for_a_cancel(checkout):
    """Nothing comes before it here: no warning that the script understands, no end that the loop knows."""
    cluster, words = checkout.cluster, training("limit", run__steps=100_000)
    command = ("sbatch", "--parsable", "--nodes=1", "--time=1", "--signal=B:CONT@1", "slurm/train.sbatch", *words)
    job = cluster.run(*command, cwd=checkout.folder, **checkout.env, SLURM_JOB_END_TIME="9999999999")
    until(lambda: cluster.field(job, "Restarts") == "1", seconds=240, what=lambda: checkout.log(job))
    log = checkout.log(job)
    assert "DUE TO TIME LIMIT" in log and "told to end: asking the ranks to save" in log
    assert f"stopped before the end (SIGTERM): job {job} goes back to the queue" in log
    assert committed_steps(checkout.folder / "runs/limit/checkpoints")[-1] == checkout.steps("limit")[-1]
    cluster.wait(job, ("PENDING",), seconds=60)
    conf = checkout.folder / "conf/train.yaml"
    before = conf.read_text()
    try:
        conf.write_text("no config: [")
        checkout.start_now(job)  # it is what it was when it first started
        resumed = f"resumed from runs/limit/checkpoints/step_{checkout.steps('limit')[-1]:08d}"
        until(lambda: resumed in checkout.log(job), seconds=90, what=lambda: checkout.log(job))
    finally:
        conf.write_text(before)
        cluster.run("scancel", job)
    cluster.wait(job, ENDED, seconds=60)


def test_submitting_from_elsewhere_is_refused(checkout, tmp_path):
    script = checkout.folder / "slurm/train.sbatch"
    job = checkout.cluster.run("sbatch", "--parsable", f"--output={tmp_path}/log", str(script), cwd=tmp_path)
    assert checkout.cluster.wait(job, ENDED, seconds=60) == "FAILED"
    assert "not the root of a Tessera checkout" in (tmp_path / "log").read_text()
