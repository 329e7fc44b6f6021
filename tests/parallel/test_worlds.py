"""One set of processes, many process groups: what comes back, and what a failure says."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from parallel.worlds import WorldFailed, Worlds
from tests.fresh import in_a_fresh_interpreter


def total_of_ranks(factor):
    value = torch.tensor(float(dist.get_rank() + 1)) * factor
    dist.all_reduce(value)
    return float(value), dist.get_world_size()


def fail_on(rank):
    if dist.get_rank() == rank:
        raise ValueError(f"rank {rank} will not")
    dist.barrier()


def vanish():
    os._exit(7)


@in_a_fresh_interpreter
def test_worlds_of_several_sizes_follow_one_another_in_the_same_processes():
    with Worlds(3) as worlds:
        for size, total in ((3, 60.0), (1, 10.0), (2, 30.0), (3, 60.0)):
            outcomes = worlds.run(size, total_of_ranks, 10.0)
            assert [outcome.value for outcome in outcomes] == [(total, size)] * size
            assert all(outcome.threads > 0 and outcome.files > 0 for outcome in outcomes)
    assert not any(process.is_alive() for process in worlds._processes)


@in_a_fresh_interpreter
def test_what_a_rank_raises_reaches_the_caller_at_once():
    started = time.monotonic()
    with pytest.raises(WorldFailed, match=r"(?s)rank 1: .*ValueError: rank 1 will not"), Worlds(2) as worlds:
        worlds.run(2, fail_on, 1)
    assert time.monotonic() - started < 30, "nobody waits for a barrier that one rank will not reach"
    assert not any(process.is_alive() for process in worlds._processes)


@in_a_fresh_interpreter
def test_a_process_that_ends_is_noticed():
    with pytest.raises(WorldFailed, match="rank 0: the process ended without a word"), Worlds(1) as worlds:
        worlds.run(1, vanish)


def test_nobody_outlives_a_parent_that_is_killed(tmp_path):
    code = (
        "import os, time; from parallel.worlds import Worlds; worlds = Worlds(3);"
        "print(*(process.pid for process in worlds._processes), flush=True); time.sleep(60)"
    )
    root = Path(__file__).parents[2]
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=root, stdout=subprocess.PIPE, text=True)
    children = [int(pid) for pid in parent.stdout.readline().split()]
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in children):
        assert time.monotonic() < deadline, "a process waits for a parent that is gone"
        time.sleep(0.1)
