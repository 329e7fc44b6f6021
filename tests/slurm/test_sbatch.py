"""`sbatch slurm/train.sbatch` on a real two-node SLURM: encoding, training on both nodes, running out of time."""

import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from data.clips import write_clip_shards
from model.codec import CodecConfig, build_codec, save_codec
from model.codec_patch import PatchCodecConfig
from tests.data.media import source, still, video
from trainer.metrics import read_metrics

ROOT = Path(__file__).parents[2]
CHECKOUT = ("model", "diffusion", "data", "parallel", "trainer", "slurm", "scaling", "conf", "runs/slurm/.gitignore")
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


class Checkout:
    """A copy of what git tracks, from which jobs are submitted as a user would."""

    def __init__(self, folder: Path, cluster) -> None:
        self.folder, self.cluster = folder, cluster
        for name in CHECKOUT:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            copy(ROOT / name, folder / name)

    def submit(self, *words: str, nodes: int) -> str:
        """`sbatch` with this test's Python first on PATH; the job id."""
        path = os.pathsep.join((str(Path(sys.executable).parent), self.cluster.env["PATH"]))
        command = ("sbatch", "--parsable", f"--nodes={nodes}", "slurm/train.sbatch", *words)
        settings = {"HEAD_ADDRESS": "127.0.0.1", "WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"}
        return self.cluster.run(*command, cwd=self.folder, PATH=path, **settings)

    def log(self, job: str) -> str:
        path = self.folder / f"runs/slurm/{job}.log"
        return path.read_text() if path.exists() else ""

    def finish(self, job: str) -> str:
        """The log of a job that must end well."""
        state = self.cluster.wait(job, ENDED, seconds=240)
        log = self.log(job)
        assert state == "COMPLETED", log
        return log

    def steps(self, name: str) -> list[int]:
        return [row["step"] for row in read_metrics(self.folder / "runs" / name) if "loss" in row]


@pytest.fixture(scope="module")
def checkout(cluster, tmp_path_factory) -> Checkout:
    return Checkout(tmp_path_factory.mktemp("checkout"), cluster)


@pytest.fixture(scope="module")
def latents(checkout) -> tuple[str, str]:
    """Overrides that name latent shards, made by `trainer.encode` through the same script."""
    clips = [source(f"shot{i}", video(frames=40, height=48, width=64)) for i in range(8)]
    clips += [source(f"photo{i}", still(height=48, width=64), "png") for i in range(4)]
    write_clip_shards(clips, checkout.folder / "clips", clips_per_shard=4)
    torch.manual_seed(0)
    codec = build_codec(CodecConfig(patch=PatchCodecConfig(width=8, encoder_blocks=1, decoder_blocks=1)))
    save_codec(codec, checkout.folder / "codec")
    job = checkout.submit("-m", "trainer.encode", "clips=clips", "codec=codec", "folder=latents", nodes=1)
    assert "trainer.encode on 1 nodes" in checkout.finish(job)
    assert (checkout.folder / "latents" / "manifest.parquet").is_file()
    return "data.folder=latents", "data.codec=codec"


def training(name: str, steps: int) -> tuple[str, ...]:
    words = ("model=tiny", "parallel=dp2", f"name={name}", f"run.steps={steps}", "run.log_every=1")
    return (
        *words,
        "run.checkpoint_every=100000",
        "run.evaluate_every=0",
        "data.packs_per_step=2",
        "wandb.mode=disabled",
    )


def until(condition: Callable[[], object], *, seconds: float, what: Callable[[], str]) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what()
        time.sleep(0.2)


def test_a_run_spans_both_nodes_and_gets_its_overrides(checkout, latents):
    prompt = "a rabbit, big and grey's; $HOME"
    quoted = f'samples.prompts=["{prompt}"]'
    job = checkout.submit(*training("both", 3), quoted, *latents, nodes=2)
    log = checkout.finish(job)
    assert "trainer.train on 2 nodes (n[0-1]) x 1 ranks, rendezvous 127.0.0.1:" in log
    assert checkout.cluster.field(job, "NodeList") == "n[0-1]"
    assert checkout.steps("both") == [1, 2, 3]
    saved = checkout.folder / "runs/both/checkpoints/step_00000003"
    assert len(list(saved.glob("pieces-*.safetensors"))) == 2, "each of the two ranks writes its part"
    config = yaml.safe_load((saved / "config.yaml").read_text())
    assert config["samples"]["prompts"] == [prompt]
    assert (config["run"]["steps"], config["parallel"]["data"], config["model"]["num_blocks"]) == (3, 2, 2)


def test_a_mistake_ends_the_job_with_its_sentence(checkout, latents):
    job = checkout.submit(*training("mistake", 3), "run.stepz=4", *latents, nodes=1)
    assert checkout.cluster.wait(job, ENDED, seconds=120) == "FAILED"
    assert "stepz" in checkout.log(job)
    assert "goes back to the queue" not in checkout.log(job)


def test_a_run_out_of_time_saves_requeues_and_goes_on(checkout, latents):
    steps = 300
    job = checkout.submit(*training("twice", steps), *latents, nodes=2)
    until(lambda: len(checkout.steps("twice")) >= 3, seconds=180, what=lambda: checkout.log(job))
    checkout.cluster.run("scancel", "--batch", "--signal=USR1", job)
    checkout.cluster.wait(job, ("PENDING",), seconds=120)
    stopped_after = checkout.steps("twice")[-1]
    assert 3 <= stopped_after < steps
    assert (checkout.folder / f"runs/twice/checkpoints/step_{stopped_after:08d}/COMMIT").is_file()
    time.sleep(3)  # SLURM refuses a start within the second in which it revoked the job's credential
    checkout.cluster.run("scontrol", "update", f"jobid={job}", "StartTime=now")
    checkout.cluster.wait(job, ("RUNNING",), seconds=60)
    log = checkout.finish(job)
    assert checkout.cluster.field(job, "Restarts") == "1"
    assert f"job {job}, start 1: " in log
    assert f"job {job}, start 2: " in log
    assert checkout.steps("twice") == list(range(1, steps + 1)), "no step is missing and none was taken twice"


def test_submitting_from_elsewhere_is_refused(checkout, tmp_path):
    script = checkout.folder / "slurm/train.sbatch"
    job = checkout.cluster.run("sbatch", "--parsable", f"--output={tmp_path}/log", str(script), cwd=tmp_path)
    assert checkout.cluster.wait(job, ENDED, seconds=60) == "FAILED"
    assert "not the root of a Tessera checkout" in (tmp_path / "log").read_text()
