import json

from PIL import Image

from scaling.cell import Cell, write_cells
from scaling.report import main
from tests.scaling.published import noisy_cells


def write_sweep(folder, cells):
    folder.mkdir()
    broken = Cell(name="torn", broken="it stopped at step 3 of 9")
    write_cells(folder / "cells.jsonl", [*cells, broken])
    for cell in cells[:2]:
        run = folder / "runs" / cell.name
        (run / "samples").mkdir(parents=True)
        end = {
            "step": 9,
            "tokens": cell.tokens,
            "flops": cell.flops,
            "heldout/loss": cell.loss,
            "heldout/loss_t0.5": 0.25,
        }
        rows = [{"step": 9, "loss": 3.0, "flops": cell.flops, "s_per_step": 400.0}, end]
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        Image.new("RGB", (4, 4)).save(run / "samples" / "step_00000009.png")


def named(cells):
    return [Cell(**(vars(cell) | {"name": f"cell_{i}"})) for i, cell in enumerate(cells)]


def test_a_page_holds_the_whole_sweep(tmp_path, capsys):
    write_sweep(tmp_path / "sweep", named(noisy_cells([1e19, 3e19, 1e20], 4, noise=0.001)))
    assert main([str(tmp_path / "sweep")]) == 0
    page = (tmp_path / "sweep" / "report.html").read_text()
    assert "<td>torn</td><td>it stopped at step 3 of 9</td>" in page
    assert "For a budget of" in page
    assert page.count("data:image/png;base64,") >= 2
    assert "<th>t0.5</th>" in page
    assert "<td>1</td></tr>" in page  # nine steps of 400 s
    assert page.count("Plotly.newPlot(") >= 2
    assert '<script src="http' not in page


def test_a_sweep_without_a_law_yet_shows_what_there_is(tmp_path, capsys):
    write_sweep(tmp_path / "sweep", named(noisy_cells([1e19], 4, noise=0)))
    assert main([str(tmp_path / "sweep")]) == 0
    page = (tmp_path / "sweep" / "report.html").read_text()
    assert "No law yet: 1 budgets show a minimum over sizes and 3 are needed" in page
    assert "cell_3" in page
    assert main([str(tmp_path / "nowhere")]) == 2
    assert "is no folder" in capsys.readouterr().err
