"""A step of a run as pictures."""

import pytest
from PIL import Image

from data.order import main as order
from data.plan import step_of_run
from tests.trainer.run_case import overrides
from trainer.look import look


def test_a_step_of_a_run_is_decoded_into_a_sheet(commands, inputs, monkeypatch, capsys):
    commands.run(overrides(folder="looked_at", run__steps=3), cwd=inputs).ok()
    monkeypatch.chdir(inputs)
    run = inputs / "looked_at"
    shards, _, packs, _ = step_of_run(run, 2)
    keys = shards.keys([row for pack in packs for row in pack.rows])
    assert look(run, 2, inputs / "sheet.png") == keys
    with Image.open(inputs / "sheet.png") as picture:
        assert picture.width > 400 and picture.height > 100 * len(keys) / 2
    assert order([str(run), "--step", "2"]) == 0
    assert all(f"  {key}  " in capsys.readouterr().out for key in keys[:1])
    with pytest.raises(ValueError, match="nowhere/sheet.png: there is no such folder"):
        look(run, 2, inputs / "nowhere" / "sheet.png")
    with pytest.raises(ValueError, match="--sheet .*sheet.jpg must end in .png"):
        look(run, 2, inputs / "sheet.jpg")
