"""Nodes that are not as the others are named, and a job goes on without them."""

import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from slurm.preflight import NodeFacts, judge, look_around, main, neighbours
from tests.slurm.checkout_case import ENDED, training
from tests.trainer.run_case import environment

ROOT = Path(__file__).parents[2]


def facts(number: int, **changes) -> NodeFacts:
    plain = NodeFacts(node=f"n{number}", versions={"torch": "2.13", "driver": "580"}, clock=1000.0, gb_s=[10.0, 11.0])
    return replace(plain, **changes)


def test_nodes_that_are_alike_are_good():
    assert judge([facts(number) for number in range(4)], min_gb_s=9.0) == {}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"versions": {"torch": "2.12", "driver": "580"}}, "has torch 2.12, the others 2.13"),
        ({"versions": {"torch": "2.13"}}, "has driver none, the others 580"),
        ({"clock": 1009.0}, "has a clock that is +9.0 s off"),
        ({"problems": ["cannot write to runs (No space left on device)"]}, "cannot write to runs (No space left on"),
        ({"gb_s": [1.0, 2.0]}, "passes 2.00 GB/s at most, and more than 2.50 are wanted"),
    ],
)
def test_the_one_that_is_not_as_the_others_is_named(changes, problem):
    told = [facts(0), facts(1), facts(2, **changes), facts(3)]
    bad = judge(told, min_gb_s=0.0)
    assert list(bad) == ["n2"] and bad["n2"][0].startswith(problem)


def test_a_slow_node_is_told_from_its_neighbours():
    """Pairs 0-1, 1-2, 2-3, 3-0: both of node 1 are slow, so one each of nodes 0 and 2."""
    rates = {0: [1.0, 10.0], 1: [1.0, 1.0], 2: [1.0, 10.0], 3: [10.0, 10.0]}
    assert list(judge([facts(number, gb_s=rates[number]) for number in range(4)], min_gb_s=0.0)) == ["n1"]
    assert list(judge([facts(number, gb_s=[0.0]) for number in range(2)], min_gb_s=0.0)) == ["n0", "n1"]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8])
def test_every_node_meets_its_neighbours_once(count):
    pairs = list(neighbours(count))
    assert len(pairs) == len(set(pairs)) == {1: 0, 2: 1}.get(count, count)
    assert all((second - first) % count in (1, count - 1) for first, second in pairs)


def test_a_folder_that_cannot_be_written_is_a_problem_of_the_node(tmp_path):
    assert look_around("n0", tmp_path / "new/runs").problems == []
    assert list((tmp_path / "new/runs").iterdir()) == []
    (tmp_path / "file").write_text("")
    assert look_around("n0", tmp_path / "file/runs").problems[0].startswith(f"cannot write to {tmp_path}/file/runs (")


def preflight(tmp_path, rank: int, port: int) -> subprocess.Popen:
    command = [sys.executable, "-m", "slurm.preflight", f"--node=n{rank}", f"--rank={rank}", "--nodes=n0,n1,n2"]
    command += [f"--meet=127.0.0.1:{port}", f"--folder={tmp_path}/runs", f"--bad-nodes={tmp_path}/bad"]
    outputs = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=environment(GLOO_SOCKET_IFNAME="lo"), **outputs)


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_three_nodes_look_at_each_other(tmp_path, port):
    whole = [preflight(tmp_path, rank, port) for rank in range(3)]
    said = [process.communicate(timeout=300)[0] for process in whole]
    assert [process.returncode for process in whole] == [0, 0, 0], said
    assert said[0].startswith("preflight: 3 nodes alike, clocks within 0.") and said[0].endswith("slowest pair\n")
    assert said[1:] == ["", ""]
    assert list(tmp_path.iterdir()) == [tmp_path / "runs"], "no node is bad"


def test_a_node_that_stays_away_is_named(tmp_path, port, caplog):
    words = ["--node=n0", "--rank=0", "--nodes=n0,n7", f"--meet=127.0.0.1:{port}", "--timeout-s=1"]
    assert main([*words, f"--folder={tmp_path}/runs", f"--bad-nodes={tmp_path}/bad"]) == 1
    assert caplog.messages == [f"preflight: node n7 did not come to 127.0.0.1:{port} in 1 s"]
    assert (tmp_path / "bad").read_text() == "n7"


def test_a_node_that_does_not_reach_the_first_says_so(tmp_path, port, caplog):
    words = ["--node=n7", "--rank=1", "--nodes=n0,n7", f"--meet=127.0.0.1:{port}", "--timeout-s=1"]
    assert main([*words, f"--folder={tmp_path}/runs"]) == 2
    assert caplog.messages == [f"error: node n7 does not reach the first node at 127.0.0.1:{port}"]


@pytest.mark.slow
def test_a_job_goes_back_to_the_queue_without_its_bad_node(checkout, monkeypatch, caplog, capsys, tmp_path):
    """On n1 another version of numpy is found first."""
    odd = tmp_path / "odd/numpy-0.0.1.dist-info"
    odd.mkdir(parents=True)
    (odd / "METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 0.0.1\n")
    wrapper = tmp_path / "wrapper"
    wrapper.write_text(f'#!/bin/bash\n[ "$SLURMD_NODENAME" = n0 ] || export PYTHONPATH={odd.parent}\nexec "$@"\n')
    wrapper.chmod(0o755)
    words = ["parallel=dp2", "nodes=2", "cluster.preflight=true", f"+cluster.environment.WRAPPER={wrapper}"]
    assert checkout.submit(monkeypatch, caplog, *training("uneven"), *words) == 0
    job = capsys.readouterr().out.split("\njob ")[1].split(":")[0]
    cluster = checkout.cluster
    cluster.wait(job, ("PENDING",), seconds=5)
    cluster.wait(job, ("RUNNING",), seconds=60)
    cluster.wait(job, ("PENDING",), seconds=240)
    assert "preflight: node n1 has numpy 0.0.1, the others 2." in checkout.log(job)
    assert "stopped before the end (bad nodes): job" in checkout.log(job)
    assert cluster.field(job, "ExcNodeList") == "n1"
    assert cluster.field(job, "Restarts") == "1"
    assert checkout.jobs(monkeypatch, "cancel", "uneven") == 0
    assert cluster.wait(job, ENDED, seconds=60) == "CANCELLED"
    assert checkout.steps("uneven") == []
