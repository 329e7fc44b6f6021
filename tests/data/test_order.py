import re

import pytest

from data.balance import PackCost
from data.mixture import MixConfig
from data.order import main
from data.plan import PlanConfig, step_of_run
from tests.data.latent_set import sample, write_latents


@pytest.fixture
def run(tmp_path):
    manifest = write_latents(tmp_path / "set", [sample(i) for i in range(50)])
    config = PlanConfig(
        folders={manifest.folder: 1.0},
        seed=0,
        tokens_per_pack=100,
        packs_per_step=4,
        window=20,
        limit_samples=None,
        mix=MixConfig(),
        curriculum=(),
        cost=PackCost(),
    )
    (tmp_path / "run").mkdir()
    config.write(tmp_path / "run", shards=manifest.hash)
    return tmp_path / "run"


def test_a_step_is_printed_rank_by_rank(run, capsys):
    assert main([str(run), "--step", "5", "--ranks", "2"]) == 0
    said = capsys.readouterr().out
    shards, _, packs, _ = step_of_run(run, 5)
    rows = [row for pack in packs for row in pack.rows]
    assert re.findall(r"^  (film/clip\d+)  ", said, re.M) == shards.keys(rows)
    assert re.findall(r"^rank (\d) pack (\d): epoch \d+, \d+ samples", said, re.M) == [
        *(("0", "0"), ("0", "1"), ("1", "2"), ("1", "3"))
    ]
    assert f"{len(rows)} samples in 4 packs, {sum(pack.video_tokens for pack in packs)} tokens, fill 0." in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--step", "0"], "error: --step 0 must be at least 1"),
        (["--step", "1", "--ranks", "3"], "error: --ranks 3 must divide the 4 packs of a step"),
    ],
)
def test_mistakes_are_one_sentence(run, capsys, arguments, message):
    assert main([str(run), *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("sheet", "message"),
    [
        ("nowhere/sheet.png", "nowhere/sheet.png: there is no such folder to write it into; make "),
        ("sheet.jpg", "sheet.jpg must end in .png: a sheet is a PNG"),
        ("sheet", "sheet must end in .png: a sheet is a PNG"),
        ("folder.png", "folder.png is a folder: give the name of a file"),
    ],
)
def test_a_sheet_that_cannot_be_written_is_told_before_the_step_is(run, tmp_path, capsys, sheet, message):
    (tmp_path / "folder.png").mkdir()
    assert main([str(run), "--step", "1", "--decode", str(tmp_path / sheet)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    [line] = said.err.splitlines()
    assert line.startswith(f"error: --decode {tmp_path}")
    assert message in line


def test_a_folder_that_is_no_run_is_told(tmp_path, capsys):
    assert main([str(tmp_path), "--step", "1"]) == 2
    assert "has no data_plan.json: is it the folder of a training run" in capsys.readouterr().err
