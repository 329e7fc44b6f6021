"""A sweep through a real SLURM: one array of what is missing, found again while it waits, counted once it has ended."""

import json
import re

import pytest
import yaml

from scaling.array import Array
from scaling.cell import read_cells
from scaling.fit import main as fit
from slurm.cluster import ClusterConfig
from tests.scaling.test_sweep import words
from tests.slurm.checkout_case import ENDED
from trainer.metrics import read_metrics


@pytest.fixture
def sweep(commands, checkout, inputs):
    """`python -m scaling.sweep` in the checkout: what it says."""
    environ = {**checkout.env, "SLURM_CONF": checkout.cluster.env["SLURM_CONF"]}

    def call(name, **changes):
        settings = {"launcher": "slurm", "flops_per_s": 1e8, "grid__budgets": [1e8]} | changes
        shown = words(inputs, f"runs/sweeps/{name}", name=name, **settings)
        ended = commands.run(shown, cwd=checkout.folder, module="scaling.sweep", event={"environ": environ})
        return ended.code, ended.out + ended.err

    return call


def states(printed):
    """Of each cell, as the table has it."""
    return {row[1]: row[2] for row in re.finditer(r"(?m)^(\dk-\S+) .* s  (\S.*\S)  1 tensor", printed)}


def job_of(printed):
    return re.search(r"(?m)^job (\d+): ", printed)[1]


@pytest.mark.slow
def test_what_is_missing_is_submitted_once_and_ends_in_cells(sweep, checkout, cluster, capsys):
    folder = checkout.folder / "runs/sweeps/small"
    held = {"cluster__options": ["--hold"]}
    code, printed = sweep("small", dry_run=True, **held)
    assert code == 0 and "#SBATCH --array=0-1\n" in printed and "#SBATCH --hold\n" in printed, printed
    assert not folder.exists()

    code, printed = sweep("small", **held)
    assert code == 0 and "2 cells, 2 of them to be run" in printed, printed
    job, names = job_of(printed), list(states(printed))
    runs = {name: folder / "runs" / name for name in names}
    assert [json.loads((run / "jobs.jsonl").read_text())["task"] for run in runs.values()] == [0, 1]
    assert all((run / "submit.yaml").is_file() for run in runs.values())

    code, printed = sweep("small", **held)
    assert code == 0 and "2 cells, 0 of them to be run" in printed and "\njob " not in printed, printed
    assert states(printed) == dict.fromkeys(names, "queued")
    assert "0 of 2 cells in" in printed and "2 queued or running" in printed and "left out" not in printed

    cluster.run("scontrol", "release", job)
    for number, name in enumerate(names):
        checkout.finish(f"{job}_{number}")
        ran, submitted = (yaml.safe_load((runs[name] / f"{which}.yaml").read_text()) for which in ("config", "submit"))
        assert ran == submitted
    before = [read_metrics(run) for run in runs.values()]
    code, printed = sweep("small")
    assert code == 0 and "2 cells, 0 of them to be run" in printed and "2 of 2 cells in" in printed, printed
    cells = {cell.name: cell for cell in read_cells(folder / "cells.jsonl")}
    assert states(printed) == {name: f"loss {cells[name].loss:.4f}" for name in names}
    assert not any(cell.broken for cell in cells.values())
    assert [read_metrics(run) for run in runs.values()] == before
    assert not (folder / "attempts.jsonl").exists()
    assert fit([str(folder), "--out", str(folder / "fit")]) == 2
    assert "error: " in capsys.readouterr().err, "two cells carry no law"


def test_a_job_that_fails_is_submitted_again_as_often_as_retries_say_and_one_cancelled_is_no_failure(
    sweep, checkout, cluster
):
    folder = checkout.folder / "runs/sweeps/bad"
    changes = {"grid__sizes": ["2k"], "cluster__prelude": ["exit 7"]}
    _, printed = sweep("bad", **changes, cluster__options=["--hold"])
    cluster.run("scancel", job_of(printed))
    cluster.wait(job_of(printed), ENDED, seconds=60)
    for told in ("stopped, it has no config.yaml: .*CANCELLED", r"failed, it has no config.yaml: .*exit code 7:0\)"):
        code, printed = sweep("bad", **changes)
        assert code == 0 and "1 of them to be run" in printed, printed
        assert re.search(f"2k-c1e08: {told}", printed), printed
        cluster.wait(job_of(printed), ENDED, seconds=60)
    code, printed = sweep("bad", **changes)
    assert code == 1 and "0 of them to be run" in printed and "\njob " not in printed, printed
    assert list(states(printed).values()) == ["left out"]
    assert re.search(r"left out: 2k-c1e08: .*it failed 2 times, last: .*; a larger retries= tries again", printed)
    kinds = [json.loads(line)["kind"] for line in (folder / "attempts.jsonl").read_text().splitlines()]
    assert kinds == ["stopped", "failed", "failed"]


@pytest.mark.parametrize(
    ("gpus", "ranks", "exclusive", "asked"),
    [(0, 2, False, (1, 2, 0)), (8, 16, True, (2, 8, 8)), (8, 2, False, (1, 2, 2)), (8, 2, True, (1, 2, 8))],
)
def test_ranks_of_a_cell_fill_whole_nodes_or_a_part_of_one(gpus, ranks, exclusive, asked):
    cluster = ClusterConfig(gpus_per_node=gpus, exclusive=exclusive)
    job = Array(cluster, ranks=ranks, at_once=None).job
    assert (job.nodes, job.ranks, job.cluster.gpus_per_node) == asked


def test_ranks_that_leave_a_node_half_empty_are_refused():
    with pytest.raises(ValueError, match="ranks=12 do not fill nodes of cluster.gpus_per_node=8"):
        Array(ClusterConfig(gpus_per_node=8), ranks=12, at_once=None)
