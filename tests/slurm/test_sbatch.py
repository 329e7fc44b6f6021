"""`sbatch slurm/train.sbatch` on a real two-node SLURM."""

import yaml

from tests.slurm.checkout_case import ENDED, training


def test_a_run_spans_both_nodes_and_gets_its_overrides(checkout):
    prompt = "a rabbit, big and grey's; $HOME"
    quoted = f'samples.prompts=["{prompt}"]'
    job = checkout.sbatch(*training("both", run__steps=3), "parallel=dp2", quoted, nodes=2)
    log = checkout.finish(job)
    assert "trainer.train on 2 nodes (n[0-1]) x 1 ranks, rendezvous 127.0.0.1:" in log
    assert checkout.cluster.field(job, "NodeList") == "n[0-1]"
    assert checkout.steps("both") == [1, 2, 3]
    saved = checkout.folder / "runs/both/checkpoints/step_00000003"
    assert len(list(saved.glob("pieces-*.safetensors"))) == 2, "each of the two ranks writes its part"
    config = yaml.safe_load((saved / "config.yaml").read_text())
    assert config["samples"]["prompts"] == [prompt]
    assert (config["run"]["steps"], config["parallel"]["data"], config["model"]["num_blocks"]) == (3, 2, 2)


def test_a_mistake_ends_the_job_with_its_sentence(checkout):
    job = checkout.sbatch(*training("mistake"), "run.stepz=4", nodes=1)
    assert checkout.cluster.wait(job, ENDED, seconds=300) == "FAILED"
    assert "stepz" in checkout.log(job)
    assert "goes back to the queue" not in checkout.log(job)


def test_submitting_from_elsewhere_is_refused(checkout, tmp_path):
    script = checkout.folder / "slurm/train.sbatch"
    job = checkout.cluster.run("sbatch", "--parsable", f"--output={tmp_path}/log", str(script), cwd=tmp_path)
    assert checkout.cluster.wait(job, ENDED, seconds=60) == "FAILED"
    assert "not the root of a Tessera checkout" in (tmp_path / "log").read_text()
