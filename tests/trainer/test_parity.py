"""The parity command's table: what it refuses, what it says of a layout that differs or fails."""

import json
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from parallel import parity
from parallel.dims import ParallelDims
from tests.fresh import in_a_fresh_interpreter
from trainer import parity as command
from trainer.compose import parse_layout, to_dataclass

CONF = Path(__file__).parents[2] / "conf"


def config(*overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return to_dataclass(command.ParityConfig, compose("parity", list(overrides)))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (['layouts=["tensor=3"]'], r"layouts: 'tensor=3': parallel.tensor=3 does not divide model.num_heads=4 .*"),
        (['layouts=["tensr=2"]'], r"tensr is no setting: did you mean tensor\?"),
        (['layouts=["tensor"]'], r"tensor=null must be a whole number"),
        (["report=nowhere/table.json"], r"report=nowhere/table.json: there is no such folder"),
        (["steps=-1"], r"steps=-1 must be at least 0"),
        (["timeout_s=0"], r"timeout_s=0.0 must be above 0"),
        (["microbatches=[0]"], r"microbatches=\[0\]: each must be at least 1"),
        (["microbatches=[]"], r"microbatches: none are given, such as microbatches=\[1,2,3\]"),
        (
            ['layouts=["pipeline=2 virtual_pipeline=2"]', "microbatches=[1]"],
            r"needs 2 packs on each replica, but microbatches is \[1\]: add 2 to it",
        ),
        (["layouts=[]"], r"layouts: none are given, such as"),
        (['layouts=["pipeline=2"]', "model.num_blocks=1"], r"pipeline=2 makes 2 stages"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_any_process_starts(overrides, message, monkeypatch):
    monkeypatch.setattr(command, "open_worlds", lambda *_: pytest.fail("processes were started"))
    with pytest.raises(ValueError, match=message):
        command.run(config(*overrides))


def test_a_launcher_is_refused(monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=r"trainer.parity is for one process, but 2 were started"):
        command.run(config())


def test_too_few_gpus_are_told_with_the_way_out(monkeypatch):
    monkeypatch.setattr(command.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(command.torch.cuda, "device_count", lambda: 2)
    assert command.legal_layouts(config()), "the default layouts are legal where precision is bf16 by default"
    with pytest.raises(
        ValueError, match=r"the largest takes 8 processes, but 2 GPUs are here: .*CUDA_VISIBLE_DEVICES="
    ):
        command.open_worlds(config(), 8)


def test_a_layout_in_words():
    assert parse_layout("") == ParallelDims()
    assert parse_layout("tensor=2 sequence=false blocks_per_stage=[1,3] pipeline=2") == ParallelDims(
        tensor=2, sequence=False, blocks_per_stage=(1, 3), pipeline=2
    )


@in_a_fresh_interpreter
def test_layouts_that_differ_or_fail_are_told_and_the_rest_goes_on(tmp_path, monkeypatch, capsys):
    """The processes are forked from here, and take what is broken here with them."""
    real = parity._sum_of_shares

    def broken(share, grid):
        if grid.tensor_size == 2:
            raise RuntimeError("a rank that breaks")
        return real(share, grid) * (1 + 1e-9 * (grid.context_size - 1))

    monkeypatch.setattr(parity, "_sum_of_shares", broken)
    small = ["tokens_per_pack=16", "packs_per_step=1", "microbatches=[1]", "steps=0", "bf16_seeds=0"]
    report = tmp_path / "report.json"
    code = command.run(config('layouts=["context=2","tensor=2","pipeline=2"]', f"report={report}", *small))
    rows = {row["layout"]: row for row in json.loads(report.read_text())}
    assert code == command.EXIT_DIFFERENT
    assert rows["context=2"]["verdict"].startswith("DIFFERS: loss 1e-09")
    assert rows["tensor=2"]["verdict"] == "FAILED: RuntimeError: a rank that breaks"
    assert rows["pipeline=2"]["verdict"] == "equal"
    assert "1 of 3 layouts give the same run" in capsys.readouterr().out
