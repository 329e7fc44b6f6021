"""Every legal kind of layout against plain torch in one process, through the command that users run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from parallel.parity import Distance

ROOT = Path(__file__).parents[2]
LAYOUTS = (
    "tensor=2 sequence=false",
    "tensor=2",
    "tensor=4",
    "context=2",
    "context=4",
    "tensor=2 context=2",
    "pipeline=2",
    "pipeline=4",
    "pipeline=3 blocks_per_stage=[1,2,1]",
    "pipeline=2 virtual_pipeline=2",
    "data=2 zero_stage=0",
    "data=2",
    "data=2 zero_stage=2",
    "data=2 zero_stage=3",
    "tensor=2 data=2",
    "tensor=2 data=2 zero_stage=2",
    "tensor=2 data=2 zero_stage=3",
    "context=2 data=2 zero_stage=3",
    "tensor=2 pipeline=2",
    "tensor=2 pipeline=2 data=2",
    "context=2 pipeline=2",
)
RECOMPUTING = (
    "tensor=2 sequence=false recompute=full",
    "tensor=2 recompute=full",
    "context=2 recompute=full",
    "pipeline=2 recompute=full",
    "pipeline=2 virtual_pipeline=2 recompute=full",
    "data=2 recompute=full",
    "data=2 zero_stage=2 recompute=full",
    "data=2 zero_stage=3 recompute=full",
    "tensor=2 pipeline=2 data=2 recompute=full",
    "context=2 pipeline=2 recompute=full",
    "tensor=2 pipeline=2 recompute=selective",
    "data=2 zero_stage=3 recompute=full recompute_blocks=2",
)
PLAIN = ("", *LAYOUTS)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def table(folder, layouts, *overrides):
    """The command's rows, by layout."""
    report = folder / "report.json"
    environment = {name: v for name, v in os.environ.items() if not name.startswith(("SLURM_", "TORCHELASTIC_"))}
    command = [
        *(sys.executable, "-m", "trainer.parity", f"layouts={json.dumps(layouts)}", f"report={report}"),
        *("tokens_per_pack=24", "packs_per_step=4", *overrides),
    ]
    environment["OMP_NUM_THREADS"] = "1"
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1500, check=False)
    print(run.stdout)
    assert report.exists(), run.stderr[-4000:]
    return {row["layout"]: row for row in json.loads(report.read_text())}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return table(tmp_path_factory.mktemp("plain"), PLAIN, "microbatches=[1,2,3,8]", "bf16_seeds=3", "steps=20")


@pytest.fixture(scope="module")
def recomputing(tmp_path_factory):
    return table(tmp_path_factory.mktemp("recomputing"), RECOMPUTING, "microbatches=[3]", "bf16_seeds=0", "steps=5")


def check(row, *, has_bf16):
    limits = {"loss": 1e-10, "gradient": 1e-10, "loss in training": 2e-5, "global norm": 2e-5, "weight": 2e-5}
    assert row["verdict"] == "equal"
    assert set(row["distances"]) == limits.keys() | ({"bf16"} if has_bf16 else set())
    for name, limit in limits.items():
        assert row["distances"][name]["value"] <= limit
    assert not has_bf16 or 0.5 <= row["distances"]["bf16"]["value"] <= 1.5


@pytest.mark.parametrize("layout", PLAIN)
def test_a_layout_gives_the_same_run(plain, layout):
    check(plain[layout], has_bf16="zero_stage=0" not in layout)


@pytest.mark.parametrize("layout", RECOMPUTING)
def test_a_layout_that_recomputes_gives_the_same_run(recomputing, layout):
    check(recomputing[layout], has_bf16=False)


def test_mup_s_groups_give_the_same_run_in_every_engine(tmp_path):
    layouts = ("", "data=2 zero_stage=0", "data=2", "data=2 zero_stage=2", "data=2 zero_stage=3", "tensor=2 pipeline=2")
    rows = table(tmp_path, layouts, "+model.mup_base_dim=8", "microbatches=[1]", "bf16_seeds=2", "steps=5")
    for layout in layouts:
        check(rows[layout], has_bf16="zero_stage=0" not in layout)


def test_no_threads_or_files_are_left_behind(plain, recomputing):
    """Rank 0 takes part in every layout, several groups and engines each."""
    assert len(plain) + len(recomputing) >= 25
    for rows in (plain, recomputing):
        counts = [(row["threads"], row["files"]) for row in rows.values()]
        early, late = counts[2:7], counts[-5:]
        for which in (0, 1):
            assert max(count[which] for count in late) <= max(count[which] for count in early) + 2


def test_the_worst_of_distances_is_the_one_that_is_no_number():
    distances = [Distance(value=value, what="") for value in (1.0, float("nan"), 3.0)]
    assert str(Distance.worst(distances)) == "nan"
