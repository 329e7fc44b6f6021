"""Who a process is, under each launcher and without one."""

from pathlib import Path

import pytest

from parallel.launch import Launch, SlurmJob

LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
SLURM = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_NTASKS")


@pytest.fixture
def environment(monkeypatch):
    for name in (*LAUNCHERS, *SLURM):
        monkeypatch.delenv(name, raising=False)
    return lambda **values: [monkeypatch.setenv(name, str(value)) for name, value in values.items()]


def test_without_a_launcher_it_is_one_process(environment):
    environment(SLURM_NTASKS=8, SLURM_PROCID=0)  # as in an allocation, before srun
    assert Launch.from_environment() == Launch(rank=0, world_size=1, local_rank=0)


def test_torchrun_wins_over_srun(environment):
    environment(RANK=3, WORLD_SIZE=4, LOCAL_RANK=1, MASTER_ADDR="127.0.0.1", MASTER_PORT=29500)
    environment(SLURM_PROCID=1, SLURM_STEP_NUM_TASKS=2, SLURM_LOCALID=0)
    assert Launch.from_environment() == Launch(rank=3, world_size=4, local_rank=1)


def test_srun_alone_is_understood(environment):
    environment(SLURM_PROCID=5, SLURM_STEP_NUM_TASKS=8, SLURM_LOCALID=1, MASTER_ADDR="node1", MASTER_PORT=29500)
    assert Launch.from_environment() == Launch(rank=5, world_size=8, local_rank=1)


def test_srun_without_a_meeting_place_is_refused(environment):
    environment(SLURM_PROCID=5, SLURM_STEP_NUM_TASKS=8, SLURM_LOCALID=1)
    with pytest.raises(ValueError, match=r"8 processes were started, but MASTER_ADDR and MASTER_PORT is not set"):
        Launch.from_environment()
    assert Launch.named() == Launch(rank=5, world_size=8, local_rank=1), "so that it can still be said by one rank only"


def test_inside_a_world_only_the_place_on_the_machine_is_asked_for(environment):
    assert Launch.in_world(6, 8) == Launch(rank=6, world_size=8, local_rank=0)
    environment(LOCAL_RANK=2)
    assert Launch.in_world(6, 8).local_rank == 2


def test_outside_of_a_job_there_is_none(environment, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert SlurmJob.from_environment() is None


def test_a_job_says_what_it_knows(environment, monkeypatch):
    for name in ("SLURM_JOB_END_TIME", "TESSERA_STOP_NOTE"):
        monkeypatch.delenv(name, raising=False)
    environment(SLURM_JOB_ID=12)
    assert SlurmJob.from_environment() == SlurmJob(id="12", end_time=None, stop_note=None)
    environment(SLURM_JOB_END_TIME="", TESSERA_STOP_NOTE="runs/slurm/12.1.stopped")
    assert SlurmJob.from_environment() == SlurmJob(id="12", end_time=None, stop_note=Path("runs/slurm/12.1.stopped"))
    environment(SLURM_JOB_END_TIME=1795281999)
    assert SlurmJob.from_environment().end_time == 1795281999.0
