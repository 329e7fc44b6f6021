import json

import pytest
import yaml
from omegaconf import OmegaConf

from model.dit import DiTConfig
from model.flops import parameter_count
from scaling.cell import Cell, sound_and_broken, write_cells
from scaling.run_cell import cell_of_run, identity_of, read_runs
from tests.scaling.sweep_case import compose_train

MODEL = {"num_heads": 4, "head_dim": 16, "ffn_dim": 128, "num_blocks": 2, "text_dim": 8}
END = {"step": 10, "tokens": 5000, "flops": 10**9, "heldout/loss": 0.7, "heldout/ratio_to_zero": 0.4}


def write_run(folder, rows, torn=""):
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"model": MODEL, "run": {"steps": 10}}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + torn)


def test_a_finished_run_is_a_cell(tmp_path):
    write_run(tmp_path / "a", [{"step": 5, "loss": 1.0, "tokens": 2500, "flops": 10**8}, END])
    cell = cell_of_run(tmp_path / "a")
    assert (cell.name, cell.tokens, cell.flops, cell.loss) == ("a", 5000, 1e9, 0.7)
    assert cell.parameters == parameter_count(DiTConfig(**MODEL)).non_embedding


@pytest.mark.parametrize(
    ("rows", "torn", "why"),
    [
        ([], "", "stopped at step 0 of 10"),
        ([END | {"step": 5}], json.dumps(END)[:30], "stopped at step 5 of 10"),
        ([{key: value for key, value in END.items() if key != "heldout/loss"}], "", "no finite held-out loss"),
        ([END | {"heldout/ratio_to_zero": 1.3}], "", "diverged"),
    ],
)
def test_a_run_that_broke_says_why(tmp_path, rows, torn, why):
    write_run(tmp_path / "a", rows, torn)
    assert why in cell_of_run(tmp_path / "a").broken


def test_a_folder_of_runs_is_read_whole(tmp_path):
    write_run(tmp_path / "sweep" / "a", [END])
    write_run(tmp_path / "sweep" / "b", [])
    (tmp_path / "sweep" / "c").mkdir()
    sound, broken = sound_and_broken(read_runs([tmp_path / "sweep"]))
    assert [cell.name for cell in sound] == ["a"]
    assert [cell.name for cell in broken] == ["b", "c"]
    with pytest.raises(ValueError, match="holds no run"):
        read_runs([tmp_path / "sweep" / "c"])


def test_settings_of_another_program_break_a_cell_by_name(tmp_path):
    write_run(tmp_path / "a", [END])
    (tmp_path / "a" / "config.yaml").write_text("model: {codec: wan}\n")
    assert "settings are not those of a training run" in cell_of_run(tmp_path / "a").broken


def test_a_sweeps_folder_gives_what_it_collected(tmp_path):
    cell = Cell(name="b", parameters=1.0, tokens=2.0, flops=12.0, loss=0.5)
    write_cells(tmp_path / "cells.jsonl", [cell])
    write_run(tmp_path / "a", [END])
    assert read_runs([tmp_path]) == [cell]


@pytest.mark.parametrize(
    ("file", "content", "why"),
    [
        ("config.yaml", b"model: {num_heads: 4, head", "its config.yaml cannot be read"),
        ("config.yaml", b"", "its config.yaml holds no settings: it is empty"),
        ("config.yaml", b"- 1\n", "its config.yaml holds no settings"),
        ("config.yaml", b"model: tiny\nrun: {steps: 10}\n", "its settings are not those of a training run"),
        ("config.yaml", b"model: \xff\xfe\n", "its config.yaml cannot be read"),
        ("metrics.jsonl", b'{"step": 1}\n[1, 2]\n', "line 2 of its metrics.jsonl is no row of a run: [1, 2]"),
        ("metrics.jsonl", b'{"step": 1}\n{"loss": 1.0}\n', 'is no row of a run: {"loss": 1.0}'),
        ("metrics.jsonl", b'{"step": 1}\n\xff\xfe\n', "its metrics.jsonl cannot be read"),
        (
            "metrics.jsonl",
            json.dumps(END | {"tokens": "many"}).encode(),
            "step 10 has tokens 'many', which",
        ),
        ("metrics.jsonl", json.dumps(END | {"flops": None}).encode(), "step 10 has flops None, which is no number"),
    ],
)
def test_a_damaged_file_breaks_its_run_by_name_and_no_other(tmp_path, file, content, why):
    for name in ("a", "b"):
        write_run(tmp_path / "runs" / name, [END])
    (tmp_path / "runs" / "a" / file).write_bytes(content)
    sound, broken = sound_and_broken(read_runs([tmp_path / "runs"]))
    assert [cell.name for cell in sound] == ["b"]
    assert [cell.name for cell in broken] == ["a"]
    assert why in broken[0].broken


def test_seeds_of_a_run_share_a_variant_and_other_settings_do_not():
    """Steps and warm-up follow from the packs that a seed draws, and tell nothing apart."""

    def identity(**changes):
        words = [f"{key.replace('__', '.')}={value}" for key, value in changes.items()]
        composed = compose_train(["data.folder=runs/a", "data.codec=runs/codec", *words])
        return identity_of(OmegaConf.to_container(composed, resolve=True))

    seed, variant = identity(seed=3)
    assert (seed, variant[:9]) == (3, "lr 0.001,")
    assert identity(seed=4, run__steps=77, schedule__warmup_steps=7, data__folder="runs/b") == (4, variant)
    for changes in ({"schedule__lr": 2e-3}, {"optim__beta2": 0.9}, {"data__packs_per_step": 8}, {"flow__shift": 2.0}):
        assert identity(**changes)[1] != variant
    assert identity_of({"model": MODEL, "run": {"steps": 10}}) == (None, "")
