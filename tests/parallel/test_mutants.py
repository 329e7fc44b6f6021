"""Each fault put into the program is caught; each collective has such a fault."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from collective_sites import all_sites, is_covered
from mutant_runs import NO_FAULT
from mutants import MUTANTS, is_as_it_should, table
from run_layouts import LAYOUTS

HERE = Path(__file__).parent
WITHOUT_MUTANT = {
    "parallel/runtime.py Grid.barrier: dist.barrier(device_ids=[self.device.index])": "the same barrier, on a GPU",
    "parallel/tensor.py RowLinear.forward: linear_with_grad_accumulation_and_async_allreduce(": "what it is asked for "
    "are its keywords, which have mutants",
    "parallel/tensor.py MegatronLayers.project: linear_with_grad_accumulation_and_async_allreduce(": "as above",
    "parallel/runtime.py Grid.warm_up: dist.all_reduce(": "changes no number; `test_runtime` counts who meets whom",
    "parallel/runtime.py Grid._meet_neighbours: ": "as above",
    "parallel/zero.py ZeroOptimizer.__init__: deepspeed.initialize(": "sends weights that are equal already, and its "
    "`mpu=` has a mutant",
}
"""Beginnings of sites, and why nothing has to break there."""


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mutants")
    command = [sys.executable, str(HERE / "mutants.py"), str(folder)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=1000, check=False)
    assert (folder / "rows.json").exists(), run.stdout[-2000:] + run.stderr[-4000:]
    return json.loads((folder / "rows.json").read_text())


@pytest.mark.slow
@pytest.mark.timeout(1100)
def test_every_mutant_is_caught_and_nothing_else(rows, capsys):
    with capsys.disabled():
        print(f"\n{table([row for row in rows if row['name'] != NO_FAULT])}")
    assert {row["name"] for row in rows} == {NO_FAULT, *(mutant.name for mutant in MUTANTS)}
    assert not [row for row in rows if not is_as_it_should(row)]


@pytest.mark.slow
@pytest.mark.timeout(1100)
def test_missing_sums_over_stages_are_caught_in_bf16(rows):
    in_bf16 = [row for row in rows if row["layout"] == "pp2_bf16" and row["name"] != NO_FAULT]
    assert len(in_bf16) == 2
    assert all(row["caught_by"].startswith("bf16 gradient vector") for row in in_bf16)


def test_every_collective_has_a_mutant():
    sites = all_sites()
    assert len(sites) > 50
    lonely = {str(site) for site in sites if not any(is_covered(site, mutant) for mutant in MUTANTS)}
    excused = {site for site in lonely if site.startswith(tuple(WITHOUT_MUTANT))}
    assert lonely == excused, "give these a mutant in one of the tables"
    assert all(any(site.startswith(known) for site in excused) for known in WITHOUT_MUTANT)


def test_mutants_are_named_and_their_text_is_a_program():
    names = [mutant.name for mutant in MUTANTS]
    assert len(set(names)) == len(names)
    assert {mutant.layout for mutant in MUTANTS} <= LAYOUTS.keys()
    for mutant in MUTANTS:
        compile(mutant.text(), mutant.file, "exec")
