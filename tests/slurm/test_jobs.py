"""Jobs are looked after by their ids or by their runs, with and without SLURM's memory of them."""

import json
import os
import time

import pytest

from slurm import jobs
from slurm.jobs import described, job_ids, note_job, target_of
from tests.slurm.checkout_case import ENDED, until

WAITING = """#!/usr/bin/env bash
trap 'echo "asked to save"; exit 0' TERM
echo "start ${SLURM_RESTART_COUNT:-0}"
for n in $(seq 600); do sleep 0.1; done
"""


@pytest.fixture
def run_folder(tmp_path, monkeypatch):
    """`runs/first`, after 7 of 20 steps."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs/first"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("run: {steps: 20}\n")
    rows = [{"step": 6, "loss": 2.5}, {"step": 7, "loss": 2.25}, {"step": 7, "heldout/loss": 1.0}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 8, "lo')
    return folder


def programs(folder, monkeypatch, **scripts):
    """Programs of those names, and no others."""
    for name, script in scripts.items():
        (folder / name).write_text(f"#!/bin/bash\n{script}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def test_a_run_is_named_by_its_name_or_folder_and_a_job_by_its_id(run_folder):
    note_job(run_folder, "12", task=None)
    note_job(run_folder, "15", task=3)
    assert job_ids(run_folder) == ["12", "15_3"]
    assert target_of("first") == target_of("runs/first").__class__(jobs=("12", "15_3"), folder=jobs.RUNS / "first")
    assert target_of("15_3").folder == target_of("12").folder == jobs.RUNS / "first"
    for cell in ("runs/sweeps/demo/runs/1m-c1e12", "runs/sweeps/demo/bet/runs/2m-c4e12"):
        os.makedirs(cell)
        note_job(jobs.Path(cell), f"2{len(cell)}", task=1)
        assert target_of(f"2{len(cell)}_1").folder == jobs.Path(cell)
    assert target_of("99").folder is None
    with pytest.raises(ValueError, match=r"second is neither the id of a job nor a run that python -m slurm\.submit"):
        target_of("second")


def test_status_without_accounting_still_says_how_far_the_run_is(run_folder, tmp_path, monkeypatch, capsys):
    note_job(run_folder, "12", task=None)
    forgotten = "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1"
    programs(tmp_path, monkeypatch, scontrol=forgotten)
    assert jobs.main(["status", "first"]) == 0
    heading, row = capsys.readouterr().out.splitlines()
    assert heading.split() == list(jobs._HEADINGS)
    assert row.split()[:2] == ["12", "ENDED"] and row.split()[-3:] == ["runs/first", "7/20", "2.2500"]
    assert "(no accounting: there is no sacct on PATH" in row

    programs(tmp_path, monkeypatch, sacct="echo '12|TIMEOUT|2026-01-01T00:00:00|n[0-3]'")
    assert jobs.main(["status", "12"]) == 0
    assert "TIMEOUT" in capsys.readouterr().out
    programs(tmp_path, monkeypatch, sacct="true")
    assert jobs.main(["status", "12"]) == 0
    assert "ENDED  (not in SLURM's accounting)" in capsys.readouterr().out


def test_a_controller_that_is_away_is_not_taken_for_a_forgotten_job(tmp_path, monkeypatch, capsys):
    programs(tmp_path, monkeypatch, scontrol="echo 'Unable to contact slurm controller' >&2; exit 1")
    assert jobs.main(["status", "12"]) == 2
    assert (
        capsys.readouterr().err == "error: scontrol --oneliner show job 12 failed: Unable to contact slurm controller\n"
    )


def test_a_log_that_is_not_there_yet_is_told_with_the_jobs_state(run_folder, tmp_path, monkeypatch, capsys):
    programs(tmp_path, monkeypatch, scontrol="echo 'JobId=12 JobState=PENDING Reason=Resources'")
    assert jobs.main(["tail", "12"]) == 2
    assert capsys.readouterr().err == "error: there is no runs/slurm/12.log: the job is PENDING (Resources)\n"


def test_jobs_are_seen_requeued_and_cancelled(checkout, monkeypatch, capsys):
    cluster, folder = checkout.cluster, checkout.folder / "runs/waiting"
    folder.mkdir()
    (folder / "wait.sbatch").write_text(WAITING)
    words = ("sbatch", "--parsable", "--requeue", "--open-mode=append", "--output=runs/slurm/%j.log")
    job = cluster.run(*words, str(folder / "wait.sbatch"), cwd=checkout.folder)
    late = cluster.run(*words, f"--dependency=afternotok:{job}", str(folder / "wait.sbatch"), cwd=checkout.folder)
    for one in (job, late):
        note_job(folder, one, task=None)
    until(lambda: "start 0" in checkout.log(job), seconds=60, what=lambda: cluster.run("squeue"))

    assert checkout.jobs(monkeypatch, "status") == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert {(row[0], row[1]) for row in rows} >= {(job, "RUNNING"), (late, "PENDING")}
    assert next(row for row in rows if row[0] == late)[2] == "Dependency"
    assert all("runs/waiting" in row for row in rows)
    assert checkout.jobs(monkeypatch, "tail", job) == 0
    assert capsys.readouterr().out == f"== runs/slurm/{job}.log\nstart 0\n"

    assert checkout.jobs(monkeypatch, "requeue", "waiting") == 0
    assert f"job {job} goes back to the queue" in capsys.readouterr().out
    cluster.wait(job, ("PENDING",), seconds=60)
    assert described(job)[0]["Restarts"] == "1"
    assert "asked to save" in checkout.log(job)

    assert checkout.jobs(monkeypatch, "cancel", "runs/waiting") == 0
    assert capsys.readouterr().out == f"cancelled: {late}, {job}\n"
    assert {cluster.wait(one, ENDED, seconds=60) for one in (job, late)} == {"CANCELLED"}
    assert checkout.jobs(monkeypatch, "cancel", job) == 0
    assert capsys.readouterr().out == f"{job}: not in the queue any more\n"


def test_following_ends_with_the_job(checkout, monkeypatch, capsys):
    script = checkout.folder / "runs/short.sbatch"
    script.write_text("#!/bin/bash\necho one\nsleep 3\necho two\n")
    job = checkout.cluster.run("sbatch", "--parsable", "--output=runs/slurm/%j.log", str(script), cwd=checkout.folder)
    until(lambda: "one" in checkout.log(job), seconds=60, what=lambda: checkout.cluster.run("squeue"))
    began = time.monotonic()
    assert checkout.jobs(monkeypatch, "tail", job, "-f") == 0
    assert capsys.readouterr().out.splitlines()[1:] == ["one", "two"]
    assert time.monotonic() - began < 60
    assert os.environ["SLURM_CONF"] == checkout.cluster.env["SLURM_CONF"]
