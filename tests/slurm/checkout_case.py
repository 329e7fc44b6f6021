"""A copy of what git tracks, from which jobs are submitted as a user would."""

import logging
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

from slurm import jobs, submit
from tests.trainer.run_case import overrides
from trainer.metrics import read_metrics

ROOT = Path(__file__).parents[2]
TRACKED = ("model", "diffusion", "data", "parallel", "trainer", "slurm", "scaling", "conf", "runs/slurm/.gitignore")
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


def training(name: str, **changes) -> list[str]:
    """Words of a small run in runs/NAME."""
    return overrides(name=name, folder=None, **changes)


def until(condition: Callable[[], object], *, seconds: float, what: Callable[[], str]) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what()
        time.sleep(0.2)


class Checkout:
    """The folder, and commands given in it."""

    def __init__(self, folder: Path, cluster) -> None:
        self.folder, self.cluster = folder, cluster
        for name in TRACKED:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            copy(ROOT / name, folder / name)
        path = os.pathsep.join((str(Path(sys.executable).parent), cluster.env["PATH"]))
        # All "nodes" are this machine, and node names do not resolve.
        self.env = {"PATH": path, "HEAD_ADDRESS": "127.0.0.1", "OMP_NUM_THREADS": "1", "PREFLIGHT": "0"}

    def sbatch(self, *words: str, nodes: int) -> str:
        """`sbatch` with this test's Python first on PATH; the job id."""
        command = ("sbatch", "--parsable", f"--nodes={nodes}", "slurm/train.sbatch", *words)
        return self.cluster.run(*command, cwd=self.folder, **self.env)

    def submit(self, monkeypatch, caplog, *words: str) -> int:
        """`python -m slurm.submit`, in this process; its exit code."""
        self._enter(monkeypatch)
        monkeypatch.setattr(sys, "argv", ["slurm.submit", *words])
        caplog.set_level(logging.INFO)
        try:
            submit.main()
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    def jobs(self, monkeypatch, *words: str) -> int:
        """`python -m slurm.jobs`, in this process; its exit code."""
        self._enter(monkeypatch)
        return jobs.main(words)

    def _enter(self, monkeypatch) -> None:
        monkeypatch.chdir(self.folder)
        for name, value in {**self.env, "SLURM_CONF": self.cluster.env["SLURM_CONF"]}.items():
            monkeypatch.setenv(name, value)

    def log(self, job: str) -> str:
        path = self.folder / f"runs/slurm/{job}.log"
        return path.read_text() if path.exists() else ""

    def finish(self, job: str, *, seconds: float = 480) -> str:
        """The log of a job that must end well."""
        state = self.cluster.wait(job, ENDED, seconds=seconds)
        log = self.log(job)
        assert state == "COMPLETED", log
        return log

    def losses(self, name: str) -> list[tuple[int, float]]:
        return [(row["step"], row["loss"]) for row in read_metrics(self.folder / "runs" / name) if "loss" in row]

    def steps(self, name: str) -> list[int]:
        return [step for step, _ in self.losses(name)]

    def start_now(self, job: str) -> None:
        """SLURM holds a requeued job back for two minutes."""
        self.cluster.wait(job, ("PENDING",), seconds=90)
        end = time.monotonic() + 90
        while self.cluster.field(job, "JobState") == "PENDING":
            assert time.monotonic() < end, self.cluster.run("scontrol", "show", "job", job)
            time.sleep(3)  # it refuses a start within the second in which it revoked the job's credential
            self.cluster.run("scontrol", "update", f"jobid={job}", "StartTime=now")
            time.sleep(1)
