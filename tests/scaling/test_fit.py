import json
from dataclasses import replace

import numpy as np
import pytest

from scaling.fit import main, paragraph, study
from scaling.law import fit_law
from tests.scaling.published import noisy_cells

COLUMNS = ["--n", "Model Size", "--c", "Training FLOP", "--loss", "loss"]


def write_csv(path, cells, extra=""):
    rows = "".join(f"{cell.parameters},{cell.flops},{cell.loss}\n" for cell in cells)
    path.write_text("Model Size,Training FLOP,loss\n" + rows + extra)
    return path


def test_a_table_with_broken_rows_ends_in_a_law(tmp_path, capsys):
    cells = noisy_cells(np.geomspace(6e18, 3e21, 5), 5, noise=0.002)
    path = write_csv(tmp_path / "points.csv", cells, extra="1e9,1e20,nan\n1e9,1e20,9.9\n1e9,oops,2\n")
    arguments = ["--csv", str(path), *COLUMNS, "--drop-highest", "1", "--bootstraps", "100", "--budget", "1e22"]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "left out: row 26: loss is nan" in said
    assert "left out: row 27: loss 9.9 is one of the 1 highest" in said
    assert "left out: row 28: Training FLOP is 'oops'" in said
    assert "For a budget of 1e+22 FLOPs, train" in said
    assert "3.33 times the largest fitted budget" in said.replace("\n", " ")
    law = json.loads((tmp_path / "out" / "law.json").read_text())
    assert (law["kind"], law["cells"], len(law["left_out_cells"])) == ("parametric", 25, 3)
    assert len(law["residuals"]) == 25
    assert 0 < law["predictions"][0]["loss"]["low"] < law["predictions"][0]["loss"]["high"]
    assert law["highest_budget_left_out"]["relative_error"] < 0.02
    assert law["parabola_bias"]["true_exponent"] == pytest.approx(law["constants"]["N exponent"]["value"])
    assert (tmp_path / "out" / "law.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "out" / "law.html").read_text()
    assert "Plotly.newPlot" in page
    assert '<script src="http' not in page


def test_what_was_left_out_is_named_where_the_rest_carries_no_law(tmp_path, capsys):
    path = write_csv(tmp_path / "points.csv", noisy_cells([1e19], 3, noise=0), extra='"1,000,000",1e20,2\n')
    assert main(["--csv", str(path), *COLUMNS]) == 2
    told = capsys.readouterr().err
    assert "left out: row 4: Model Size is '1,000,000', not a number" in told
    assert "error: 3 sound cells carry no law" in told


def test_a_cell_far_off_the_rest_is_named(tmp_path, capsys):
    cells = noisy_cells(np.geomspace(6e18, 3e21, 5), 5, noise=0.002)
    cells[7] = replace(cells[7], loss=30.0)
    path = write_csv(tmp_path / "points.csv", cells)
    out = tmp_path / "out"
    assert main(["--csv", str(path), *COLUMNS, "--bootstraps", "100", "--out", str(out)]) == 0
    [note] = [note for note in json.loads((out / "law.json").read_text())["notes"] if "row 8" in note]
    assert note.endswith("look at that run, or leave it out")
    assert " ".join(note.split()[:4]) in " ".join(capsys.readouterr().out.split())


def test_few_cells_claim_less(tmp_path, capsys):
    path = write_csv(tmp_path / "points.csv", noisy_cells([1e19, 3e19, 1e20], 4, noise=0.001))
    assert main(["--csv", str(path), *COLUMNS, "--bootstraps", "200", "--out", str(tmp_path / "out")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "12 cells carry a law in compute only" in said
    assert "alpha" not in json.loads((tmp_path / "out" / "law.json").read_text())["constants"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "give one source of cells"),
        (["--csv", "points.csv", "--n", "n"], "--csv needs --n COLUMN, --loss COLUMN, and --c COLUMN or --d COLUMN"),
        (["--csv", "points.csv", *COLUMNS], "4 sound cells"),
        (["--csv", "points.csv", *COLUMNS, "--drop-highest", "9"], "--drop-highest 9 must lie between 0 and the 4"),
        (["--csv", "points.csv", *COLUMNS, "--bootstraps", "5"], "--bootstraps 5 must be 100 or more"),
        (["--cells", "nowhere.jsonl"], "nowhere.jsonl"),
    ],
)
def test_mistakes_get_one_sentence(tmp_path, monkeypatch, capsys, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    write_csv(tmp_path / "points.csv", noisy_cells([1e19], 4, noise=0))
    assert main(arguments) == 2
    assert "error: " in (told := capsys.readouterr().err)
    assert sentence in told or "1 budgets show a minimum" in told
    assert "Traceback" not in told


def test_where_a_budget_lies_is_told_at_both_ends():
    law = fit_law(noisy_cells([1e19, 3e19, 1e20], 4, noise=0.001), draws=100)
    for budget, words in (
        (1e19, "That is inside the fitted budgets."),
        (1e20, "That is inside the fitted budgets."),
        (5e18, "That is 0.5 times the smallest fitted budget, below all of them."),
        (1e15, "below all of them, and further than such laws are usually trusted."),
        (2e20, "That is 2 times the largest fitted budget."),
        (1e22, "further than such laws are usually trusted: train a run in between first."),
    ):
        assert words in paragraph(law, law.predict(budget))


def test_runs_with_several_rates_are_one_cell_and_the_others_are_named():
    cells = noisy_cells([1e19, 3e19, 1e20], 4, noise=0.001)
    worse = [replace(cell, name=f"{cell.name}-lr2", loss=cell.loss * 1.01) for cell in cells]
    alone, found = (study(given, draws=100) for given in (cells, cells + worse))
    assert found.law.table() == alone.law.table()
    assert [cell.name for cell in found.broken] == [cell.name for cell in worse]
    assert "passes through them by construction" in paragraph(found.law, found.predictions[0])
