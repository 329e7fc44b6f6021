import os
import signal
import subprocess
import sys
import time
from functools import partial

import pytest

from data import processes
from data.processes import default_workers, in_processes


@pytest.mark.parametrize("workers", [1, 2])
def test_results_are_in_order_for_any_number_of_processes(workers):
    assert list(in_processes(partial(pow, 2), range(20), workers)) == [2**n for n in range(20)]


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_in_a_process_reaches_the_caller(workers):
    with pytest.raises(ValueError, match="invalid literal"):
        list(in_processes(int, ["1", "x", "2"], workers))


def test_a_process_that_dies_is_told():
    with pytest.raises(ChildProcessError, match="exit code -9 at its work"):
        list(in_processes(signal.raise_signal, [signal.SIGKILL] * 2, 2))


def test_few_items_wait_at_a_time():
    taken = []
    results = in_processes(abs, (taken.append(n) or n for n in range(50)), 2)
    assert next(results) == 0
    assert len(taken) <= 2 * processes._WAITING_PER_PROCESS + 1
    results.close()


def test_little_to_read_is_read_here(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8))
    assert [default_workers(gigabytes << 30) for gigabytes in (0, 1, 2, 100)] == [1, 3, 5, 8]


SCRIPT = """
import time
from data.processes import in_processes
if __name__ == "__main__":
    print("ready", flush=True)
    try:
        list(in_processes(time.sleep, [300] * 4, 2))
    except KeyboardInterrupt:
        print("stopped")
"""


@pytest.mark.parametrize("after_s", [0.1, 3.0])
def test_an_interrupt_ends_all_processes_without_a_word_of_theirs(tmp_path, after_s):
    (tmp_path / "script.py").write_text(SCRIPT)
    command, environment = [sys.executable, str(tmp_path / "script.py")], os.environ | {"PYTHONPATH": os.getcwd()}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, start_new_session=True, **pipes) as process:
        assert process.stdout.readline() == "ready\n"
        time.sleep(after_s)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
        said, complaints = process.communicate(timeout=60)
    assert (process.returncode, said, complaints) == (0, "stopped\n", "")
