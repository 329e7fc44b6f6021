"""A client that blocks, that refuses or that is killed costs a run neither time nor a row."""

import json
import logging
import os
import signal
import socket
import time
from pathlib import Path
from statistics import median

import pytest

from bench.wandb_server import WandbServer
from tests.trainer.wandb_case import expected_history, numbers_of, read_offline, sync
from trainer.metrics import Metrics, read_metrics
from trainer.mirror import WandbConfig, describe_run

STEP_S = 0.01


@pytest.fixture
def silent_server(monkeypatch):
    """A W&B that takes connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(50)
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
        yield


def written(folder, config, rows=50, meanwhile=lambda row: None):
    """Write rows as a run does, and close; the seconds a row took, and those of closing."""
    took = []
    metrics = Metrics(folder, speaks=True, resume_step=0, config_yaml="name: x\n")
    metrics.start_wandb(config, name="x", settings={"seed": 1})
    for step in range(1, rows + 1):
        meanwhile(step)
        begins = time.perf_counter()
        metrics.write(step, {"loss": 1.0 / step, "nested": {"a": step}})
        took.append(time.perf_counter() - begins)
    begins = time.perf_counter()
    metrics.close(0)
    return took, time.perf_counter() - begins


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_a_server_that_never_answers_costs_no_time_and_no_row(tmp_path, silent_server, caplog):
    config = WandbConfig(mode="online", finish_s=1.0)
    took, closing = written(tmp_path, config)
    assert median(took) < 0.05 * STEP_S, "a step is far longer than this"
    assert closing < 1.0 + 10, "and at the end, finish_s, and a busy machine's pause"
    (told,) = warnings(caplog)
    assert told == (
        f"W&B did not take everything within wandb.finish_s=1; metrics.jsonl has everything, and python -m "
        f"trainer.wandb_sync {tmp_path} shows it"
    )
    rows = read_metrics(tmp_path)
    assert [row["step"] for row in rows] == list(range(1, 51))
    assert sync(tmp_path, "--mode", "offline").returncode == 0
    assert numbers_of(read_offline(tmp_path).history) == expected_history(rows)


def test_a_client_that_refuses_is_told_of_once_with_its_reason(tmp_path, monkeypatch, caplog):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    written(tmp_path / "run", WandbConfig(mode="online"), rows=100, meanwhile=lambda row: time.sleep(0.1))
    (told,) = warnings(caplog)
    assert told.startswith("W&B stopped (error: ") and "API key" in told
    assert f"python -m trainer.wandb_sync {tmp_path}/run shows it" in told
    assert len(read_metrics(tmp_path / "run")) == 100


def test_wandb_that_is_killed_while_the_run_goes_on_is_told_of_and_nothing_is_lost(tmp_path, caplog):
    def kill(step):
        if step != 10:
            return
        end = time.monotonic() + 60
        while not list(tmp_path.glob("wandb/offline-run-*/*.wandb")):
            assert time.monotonic() < end
            time.sleep(0.05)
        (mirror,) = children()
        os.killpg(mirror, signal.SIGKILL)
        time.sleep(0.2)

    written(tmp_path, WandbConfig(), rows=20, meanwhile=kill)
    (told,) = warnings(caplog)
    assert told.startswith("W&B stopped (")
    assert sync(tmp_path).returncode == 0
    assert numbers_of(read_offline(tmp_path).history) == expected_history(read_metrics(tmp_path))


def children():
    """Process ids of this process's children that mirror a run."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except FileNotFoundError:
                continue
            if parent == os.getpid() and b"trainer.wandb_sync" in words:
                found.append(int(entry.name))
    return found


def test_a_run_without_w_and_b_can_be_shown_later(tmp_path):
    written(tmp_path, WandbConfig(mode="disabled", tags=("late",)))
    assert not (tmp_path / "wandb").exists()
    assert sync(tmp_path).returncode == 0
    told = read_offline(tmp_path)
    assert list(told.run.tags) == ["late"]
    assert numbers_of(told.history) == expected_history(read_metrics(tmp_path))


def test_what_describes_a_run_is_written_anew_and_its_id_is_kept(tmp_path):
    describe_run(tmp_path, WandbConfig(), name="a", settings={"seed": 1})
    first = (tmp_path / "wandb_id").read_text()
    describe_run(tmp_path, WandbConfig(group="g"), name="b", settings={"seed": 1})
    assert (tmp_path / "wandb_id").read_text() == first
    described = json.loads((tmp_path / "run.json").read_text())
    assert (described["name"], described["wandb"]["group"]) == ("b", "g")


def test_a_mirror_left_over_from_an_earlier_start_shows_nothing(tmp_path):
    written(tmp_path, WandbConfig())
    before = numbers_of(read_offline(tmp_path).history)
    stamp = (tmp_path / "wandb/newest").read_text()
    assert stamp
    assert sync(tmp_path, "--follow", "an-older-one").returncode == 0
    assert numbers_of(read_offline(tmp_path).history) == before


def test_the_page_of_a_run_is_told_of_once_it_is_known_and_training_goes_first(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    with WandbServer() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
        nice = []

        def until_known(step):
            nice.extend(os.getpriority(os.PRIO_PROCESS, child) for child in children()[: step == 1])
            end = time.monotonic() + 60
            while step == 2 and not (tmp_path / "wandb/url").exists():
                assert time.monotonic() < end
                time.sleep(0.05)

        written(tmp_path, WandbConfig(mode="online"), rows=4, meanwhile=until_known)
    page = f"W&B: {server.url}/local/tessera/runs/{(tmp_path / 'wandb_id').read_text()}"
    assert [record.getMessage() for record in caplog.records].count(page) == 1
    assert nice == [10]


def test_a_negative_patience_is_refused():
    with pytest.raises(ValueError, match=r"wandb\.finish_s=-1\.0 must be a number of seconds"):
        WandbConfig(finish_s=-1.0)


def test_signals_that_slurm_sends_to_all_do_not_end_it_in_its_first_moment(tmp_path, caplog):
    metrics = Metrics(tmp_path, speaks=True, resume_step=0, config_yaml="name: x\n")
    metrics.start_wandb(WandbConfig(mode="offline"), name="x", settings={})
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        os.killpg(metrics._mirror._process.pid, number)
    metrics.write(1, {"loss": 0.5})
    metrics.close(75)
    assert warnings(caplog) == []
    assert numbers_of(read_offline(tmp_path).history) == expected_history(read_metrics(tmp_path))
