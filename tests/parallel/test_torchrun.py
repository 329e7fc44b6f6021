"""What a run ended with is what its launcher ends with, under one line of it."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.trainer.run_case import environment

ROOT = Path(__file__).parents[2]
HOST = socket.gethostname()


def command(script: Path, ranks: int) -> list[str]:
    return [sys.executable, "-m", "parallel.torchrun", "--standalone", f"--nproc-per-node={ranks}", str(script)]


def launch(folder: Path, body: str, *, ranks: int = 2) -> tuple[int, list[str]]:
    """Exit code, and what was printed."""
    script = folder / "rank.py"
    script.write_text(f"import os, signal, sys, time\nrank = int(os.environ['RANK'])\n{body}\n")
    done = subprocess.run(
        command(script, ranks), cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=120, check=False
    )
    return done.returncode, (done.stdout + done.stderr).splitlines()


@pytest.mark.parametrize(
    ("body", "code", "line"),
    [
        ("sys.exit('the sentence' if rank == 1 else time.sleep(60))", 1, f"rank 1 on {HOST}: exit code 1"),
        (
            "print('the sentence', flush=True) if rank else time.sleep(60); sys.exit(75)",
            75,
            f"rank 1 on {HOST}: exit code 75",
        ),
        (
            "time.sleep(60 * (1 - rank)); print('the sentence', flush=True); os.kill(os.getpid(), signal.SIGKILL)",
            137,
            f"rank 1 on {HOST}: killed by SIGKILL",
        ),
    ],
    ids=["one fails", "one was stopped", "one is killed"],
)
def test_how_the_first_rank_ended_is_told_in_one_line(tmp_path, body, code, line):
    found, printed = launch(tmp_path, body)
    assert found == code, printed
    assert {*printed} == {"the sentence", line}


def test_a_run_that_ends_well_says_nothing(tmp_path):
    assert launch(tmp_path, "print('done')", ranks=1) == (0, ["done"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1], ids=lambda number: number.name)
def test_ranks_hear_of_a_signal_and_say_what_comes_of_it(tmp_path, number):
    script = tmp_path / "rank.py"
    script.write_text(
        "import signal, sys, time\n"
        f"signal.signal({int(number)}, lambda *_: (time.sleep(1), sys.exit(75)))\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    started = subprocess.Popen(
        command(script, 1), cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert started.stdout.readline() == "ready\n"
    os.kill(started.pid, number)
    said = started.communicate(timeout=60)[0]
    assert (started.returncode, said) == (75, f"rank 0 on {HOST}: exit code 75\n")


def test_nodes_that_do_not_meet_are_one_sentence(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["--nnodes=2", "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=x"]
    words += ["--rdzv-conf=is_host=0,read_timeout=2", "rank.py"]
    done = subprocess.run(
        [sys.executable, "-m", "parallel.torchrun", *words],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"error: {HOST} did not meet the other nodes ("), done.stderr
