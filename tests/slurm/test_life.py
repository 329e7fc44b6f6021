"""One job and what clusters do to it: it goes on each time, bit by bit the run that nobody disturbed."""

import re
import time

import pytest

from tests.slurm.checkout_case import ENDED, training, until
from tests.trainer.wandb_case import expected_history, numbers_of, read_file
from trainer.checkpoint import committed_steps
from trainer.metrics import read_metrics
from trainer.mirror import ID_FILE


class Life:
    """The job of a run, and its starts."""

    def __init__(self, checkout, name: str) -> None:
        self.checkout, self.cluster, self.name = checkout, checkout.cluster, name
        self.job, self.starts, self.stopped_after = "", 0, [0]

    def goes_on(self) -> None:
        """It is started again, and comes to a step that it had not been at."""
        self.starts += 1
        until(
            lambda: (
                f"job {self.job}, start {self.starts}: " in self.checkout.log(self.job)
                and max(self.checkout.steps(self.name), default=0) >= self.stopped_after[-1] + 5
            ),
            seconds=480,
            what=lambda: self.checkout.log(self.job),
        )

    def was_requeued(self) -> None:
        until(
            lambda: self.cluster.field(self.job, "Restarts") == str(self.starts),
            seconds=240,
            what=lambda: self.cluster.run("scontrol", "show", "job", self.job) + self.checkout.log(self.job),
        )
        until(
            lambda: self.cluster.field(self.job, "JobState") == "PENDING",
            seconds=90,
            what=lambda: self.cluster.run("scontrol", "show", "job", self.job),
        )
        self.stopped_after.append(committed_steps(self.folder / "checkpoints")[-1])

    @property
    def folder(self):
        return self.checkout.folder / "runs" / self.name


@pytest.mark.slow
def test_a_job_goes_on_after_its_time_limit_a_requeue_a_lost_node_and_a_killed_daemon(
    checkout, cluster, monkeypatch, caplog, capsys
):
    words = ("parallel=dp2", "nodes=2", "cluster.time=20")
    sizes = {"run__steps": 100_000, "run__checkpoint_every": 20, "schedule__warmup_steps": 20}
    life = Life(checkout, "life")

    assert checkout.submit(monkeypatch, caplog, *training("life", **sizes), *words) == 0
    life.job = capsys.readouterr().out.split("\njob ")[1].split(":")[0]
    life.goes_on()

    # SLURM's own signal before the limit. The job has less than two minutes left from now on.
    started = cluster.run("squeue", "--noheader", "--jobs", life.job, "--format", "%M").split(":")
    cluster.run("scontrol", "update", f"jobid={life.job}", f"TimeLimit={int(started[-2]) + 2}")
    life.was_requeued()
    assert "time is nearly up: asking the ranks to save" in checkout.log(life.job)
    cluster.run("scontrol", "update", f"jobid={life.job}", "TimeLimit=20")
    checkout.start_now(life.job)
    life.goes_on()

    assert checkout.jobs(monkeypatch, "requeue", "life") == 0
    life.was_requeued()
    checkout.start_now(life.job)
    life.goes_on()

    cluster.run("scontrol", "update", "nodename=n1", "state=down", "reason=test")
    life.was_requeued()
    if "DOWN" in cluster.run("scontrol", "show", "node", "n1"):  # else it has reported for service by itself
        cluster.run("scontrol", "update", "nodename=n1", "state=resume")
    checkout.start_now(life.job)
    life.goes_on()

    cluster.kill_node("n0")  # the one with the job's script
    life.was_requeued()
    cluster.start_node("n0")
    checkout.start_now(life.job)
    life.goes_on()

    assert checkout.jobs(monkeypatch, "cancel", "runs/life") == 0
    assert cluster.wait(life.job, ENDED, seconds=60) == "CANCELLED"
    until(lambda: cluster.run("squeue", "--noheader") == "", seconds=60, what=lambda: cluster.run("squeue"))
    losses = checkout.losses("life")
    assert [step for step, _ in losses] == list(range(1, len(losses) + 1)), "no step is missing, none was taken twice"
    assert committed_steps(life.folder / "checkpoints")[-1] == len(losses), "a cancelled job saves too"
    assert life.stopped_after == sorted(set(life.stopped_after)), "each start got somewhere"
    assert len((life.folder / "starts.jsonl").read_text().splitlines()) == 5

    assert checkout.submit(monkeypatch, caplog, *training("straight", **sizes), *words) == 0
    job = capsys.readouterr().out.split("\njob ")[1].split(":")[0]
    until(lambda: len(checkout.steps("straight")) >= len(losses), seconds=480, what=lambda: checkout.log(job))
    assert checkout.jobs(monkeypatch, "cancel", "straight") == 0
    cluster.wait(job, ENDED, seconds=60)
    time.sleep(1)
    assert checkout.losses("straight")[: len(losses)] == losses


def saved(life, *, times):
    """SLURM shows a job as waiting while its last start still saves."""
    log = life.checkout.log
    until(
        lambda: log(life.job).count("everything is saved, and the same command goes on") == times,
        seconds=90,
        what=lambda: log(life.job),
    )


@pytest.mark.slow
def test_a_task_of_an_array_is_requeued_alone_and_stays_one_run_of_wandb(
    checkout, cluster, monkeypatch, caplog, capsys
):
    sizes = {"run__steps": 100_000, "run__checkpoint_every": 1000, "wandb__mode": "offline"}
    assert checkout.submit(monkeypatch, caplog, *training("pair", **sizes), "-m", "seed=0,1") == 0
    (array,) = re.findall(r"^job (\d+)", capsys.readouterr().out, re.MULTILINE)
    mine, other = Life(checkout, "pair-seed-0"), Life(checkout, "pair-seed-1")
    mine.job, other.job = f"{array}_0", f"{array}_1"
    for life in (mine, other):
        life.goes_on()
    assert checkout.jobs(monkeypatch, "requeue", "pair-seed-0") == 0
    assert f"job {mine.job} goes back to the queue" in capsys.readouterr().out
    saved(mine, times=1)
    mine.was_requeued()
    assert (cluster.field(other.job, "JobState"), cluster.field(other.job, "Restarts")) == ("RUNNING", "0")
    checkout.start_now(mine.job)
    mine.goes_on()
    stopped = mine.stopped_after[-1]
    assert f"resumed from runs/pair-seed-0/checkpoints/step_{stopped:08d}" in checkout.log(mine.job)

    cluster.run("scancel", "--signal=USR1", "--batch", mine.job)  # as before the time limit
    saved(mine, times=2)
    mine.was_requeued()
    assert checkout.jobs(monkeypatch, "cancel", "pair-seed-0", "pair-seed-1") == 0
    for life in (mine, other):
        assert cluster.wait(life.job, ENDED, seconds=90) == "CANCELLED"
    assert len((mine.folder / "starts.jsonl").read_text().splitlines()) == 2
    assert len((other.folder / "starts.jsonl").read_text().splitlines()) == 1
    steps = checkout.steps("pair-seed-0")
    assert steps == list(range(1, steps[-1] + 1)) and steps[-1] >= stopped + 5
    told = [read_file(path) for path in sorted(mine.folder.glob("wandb/offline-run-*/*.wandb"))]
    assert {one.run.run_id for one in told} == {(mine.folder / ID_FILE).read_text().strip()}
    shown = [entry["_step"] for one in told for entry in one.history]
    assert shown == steps, "no step is missing, none is there twice"
    history = numbers_of([entry for one in told for entry in one.history])
    assert history == expected_history(read_metrics(mine.folder))
