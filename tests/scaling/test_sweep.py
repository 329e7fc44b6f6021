"""`python -m scaling.sweep` as a user meets it: what it foretells, runs, repeats, leaves out and writes down."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from scaling.cell import read_cells
from scaling.grid import word
from scaling.sweep import SweepConfig, compose_train
from tests.scaling.sweep_case import ROOT, settings
from tests.trainer.run_case import environment
from trainer.compose import to_dataclass
from trainer.metrics import read_metrics


def words(inputs, folder, **changes):
    shared = {
        "train": settings(inputs),
        "folder": str(folder),
        "name": "small",
        "ladder.head_dim": 8,
        "ladder.base_size": 4e3,
        "ladder.lr": 1e-2,
        "grid.sizes": ["2k", "8k"],
        "grid.budgets": [1e8, 2e8],
        "grid.train_samples": 8,
        "grid.evaluations": 2,
        "most_gap_growth": 0.5,
    }
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    return [word(key, value) for key, value in {**shared, **changes}.items()]


def start(inputs, folder, **changes):
    command = [sys.executable, "-m", "scaling.sweep", *words(inputs, folder, **changes)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, cwd=ROOT, env=environment(), text=True, **pipes)


def sweep(inputs, folder, **changes):
    process = start(inputs, folder, **changes)
    printed, _ = process.communicate(timeout=600)
    return process.returncode, printed


def rows_of(printed):
    return {line.split()[0]: line.split() for line in printed.splitlines() if re.match(r"\dk-c", line)}


def trainers(folder):
    """Processes of runs that write below `folder`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = path.read_bytes().split(b"\0")
        except OSError:  # it has ended
            continue
        if b"trainer.train" in arguments and any(str(folder).encode() in argument for argument in arguments):
            found.append(int(path.parent.name))
    return found


def test_cells_are_composed_also_where_the_sweep_was_composed_before():
    """As in a job: `scaling.sweep --config FILE` goes past Hydra."""
    assert compose_train(["seed=3"]).seed == 3


def test_a_dry_run_says_all_of_each_cell_and_writes_nothing(commands, inputs, tmp_path):
    shown = words(inputs, tmp_path / "sweep", dry_run=True, flops_per_s=1e8)
    printed = commands.run(shown, cwd=tmp_path, module="scaling.sweep").ok().err
    table = rows_of(printed)
    assert sorted(table) == ["2k-c1e08", "2k-c2e08", "8k-c1e08", "8k-c2e08"]
    for name, row in table.items():
        size, tokens, epochs, steps, flops = (float(value) for value in row[1:6])
        assert flops == pytest.approx(float(name.partition("-c")[2]), rel=0.05)
        assert tokens > 100 and epochs > 1 and steps > 8 and size > 500
        assert "missing" in row and "ZeRO-1," in row
    assert "4 cells, 4 of them to be run, in about" in printed
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"grid__sizes": ["large"]}, "error: size 'large' is none"),
        ({"jobs": 0}, "error: jobs=0 must be at least 1"),
        ({"train": {"data.folder": "nowhere", "data.codec": "x"}}, "error: nowhere has no manifest.parquet"),
    ],
)
def test_mistakes_get_one_sentence(commands, inputs, tmp_path, changes, sentence):
    ended = commands.run(words(inputs, tmp_path / "sweep", **changes), cwd=tmp_path, module="scaling.sweep")
    assert ended.codes == [2] and ended.err.startswith(sentence) and len(ended.err.splitlines()) == 1, ended.err


@pytest.mark.slow
def test_four_runs_are_made_once_one_killed_is_finished_and_a_torn_one_left_out(inputs, tmp_path):
    folder = tmp_path / "sweep"
    process = start(inputs, folder, jobs=2)
    victim, end = folder / "runs/2k-c2e08", time.monotonic() + 600
    while len(read_metrics(victim)) < 4:
        assert process.poll() is None and time.monotonic() < end, process.communicate()[0]
        time.sleep(0.02)
    for pid in trainers(victim):
        os.kill(pid, signal.SIGKILL)
    printed = process.communicate(timeout=600)[0]
    assert process.returncode == 0, printed
    assert re.search(r"2k-c2e08: failed with exit code -9, it stopped at step \d+ of \d+; it is tried again", printed)
    assert "4 of 4 cells in" in printed

    cells = {one.name: one for one in read_cells(folder / "cells.jsonl")}
    table = {row["name"]: row for row in map(json.loads, (folder / "table.jsonl").read_text().splitlines())}
    assert len(cells) == 4 and not any(one.broken for one in cells.values())
    for name, one in cells.items():
        budget = float(name.partition("-c")[2])
        assert one.flops == pytest.approx(budget, rel=0.05)
        assert one.flops == pytest.approx(table[name]["planned_flops"], rel=0.01)
        assert one.tokens == table[name]["planned_tokens"]
        assert 0 < one.standard_error < one.loss and table[name]["gap"] is not None
    rows = [row for row in read_metrics(victim) if "lr" in row]
    assert [row["lr"] for row in rows][-1] == pytest.approx(0.05 * max(row["lr"] for row in rows), rel=0.05)
    run = (victim / "config.yaml").read_text()
    assert "group: small" in run and "job_type: sweep" in run and "name: 2k-c2e08" in run

    before = {path: path.stat().st_mtime for path in (folder / "runs").rglob("metrics.jsonl")}
    code, printed = sweep(inputs, folder)
    assert code == 0 and "4 cells, 0 of them to be run" in printed, printed
    assert {path: path.stat().st_mtime for path in before} == before

    log = folder / "runs/8k-c2e08/metrics.jsonl"
    log.write_bytes(log.read_bytes()[: log.stat().st_size // 2])
    code, printed = sweep(inputs, folder, retries=0)
    assert code == 0 and re.search(
        r"left out: 8k-c2e08: it failed 1 time, last: it stopped at step \d+ of \d+", printed
    ), printed
    assert "3 of 4 cells in" in printed
    assert [one.name for one in read_cells(folder / "cells.jsonl") if one.broken] == ["8k-c2e08"]


@pytest.mark.slow
def test_ctrl_c_saves_the_runs_and_the_same_command_goes_on(inputs, tmp_path):
    folder = tmp_path / "sweep"
    process = start(inputs, folder, grid__sizes=["2k"], grid__budgets=[2e9])
    run, end = folder / "runs/2k-c2e09", time.monotonic() + 600
    while len(read_metrics(run)) < 4:
        assert process.poll() is None and time.monotonic() < end, process.communicate()[0]
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    printed = process.communicate(timeout=120)[0]
    assert process.returncode == 130 and "the same command" in printed and "Traceback" not in printed
    assert not trainers(folder)
    assert list((run / "checkpoints").glob("step_*/COMMIT"))


@pytest.mark.slow
def test_a_killed_sweep_takes_its_run_along_and_the_next_waits_for_it_to_save(commands, inputs, tmp_path):
    """The run is held still while its sweep is killed, so that the next one surely meets it."""
    folder = tmp_path / "sweep"
    shown = words(inputs, folder, grid__sizes=["2k"], grid__budgets=[1e8], flops_per_s=1e8)
    first, run = commands.start(shown, cwd=tmp_path, module="scaling.sweep"), folder / "runs/2k-c1e08"
    first.until(lambda: len(read_metrics(run)) >= 4, seconds=300)
    (held,) = trainers(run)
    os.kill(held, signal.SIGSTOP)
    first.signal(signal.SIGKILL)
    assert first.wait().codes == [-signal.SIGKILL]
    second = commands.start(shown, cwd=tmp_path, module="scaling.sweep")
    log = second.logs[0][1]

    def says(sentence):
        return log.is_file() and sentence in log.read_text()

    try:
        second.until(lambda: says("an earlier start still run it; waiting"), seconds=300)
        assert trainers(run) == [held]
    finally:
        os.kill(held, signal.SIGCONT)
    second.until(lambda: says("1 of 1 cells in"), seconds=600)
    assert second.wait().ok()
    assert "SIGTERM: saving after this step" in (run / "console.txt").read_text()
    starts = [json.loads(line)["step"] for line in (run / "starts.jsonl").read_text().splitlines()]
    assert len(starts) == 2 and starts[0] == 0 and starts[1] >= 2, "the next began where the first had saved"
    steps = [row["step"] for row in read_metrics(run) if "loss" in row]
    assert steps == sorted(set(steps)), "each was taken once"


def commands_on_top(path):
    """Of a sweep's file."""
    lines = [line.removeprefix("# ") for line in path.read_text().splitlines() if line.startswith("# python -m ")]
    return [shlex.split(line) for line in lines]


@pytest.mark.parametrize("path", sorted((ROOT / "conf" / "sweep").glob("*.yaml")), ids=lambda path: path.stem)
def test_commands_on_top_of_a_sweeps_file_are_accepted(path):
    commands = commands_on_top(path)
    assert commands
    for command in commands:
        assert command[:2] == ["python", "-m"] and command[2] in ("scaling.sweep", "scaling.bet")
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            config = to_dataclass(SweepConfig, compose("sweep", command[3:]))
        assert config.name.startswith(path.stem)
        assert config.grid.sizes
        assert config.grid.budgets or config.grid.tokens_per_parameter
