import base64
import json

import numpy as np
from PIL import Image

from scaling.bet import Prediction, settle, write_prediction, write_result
from scaling.cell import Cell, write_cells
from scaling.interval import Interval
from scaling.report import main, page
from tests.scaling.published import noisy_cells

PROMPT = "a grey rabbit"


def write_run(run, cell, *, began=0.0):
    """A run of nine steps whose samples are a sheet and a video."""
    (run / "samples").mkdir(parents=True)
    end = {
        "step": 9,
        "tokens": cell.tokens,
        "flops": cell.flops,
        "heldout/loss": cell.loss,
        "heldout/loss_t0.5": 0.25,
    }
    goodput = {"step": 9, "goodput/step_s": 3600.0, "goodput/start_s": 36.0, "goodput/lost_s": 180.0}
    rows = [
        {"step": 0, "time": began, "loss": 4.0, "flops": 1, "loss_bucket/video": 9.0},
        sample_row(0),
        {"step": 8, "loss": 3.1, "flops": cell.flops, "loss_bucket/video": 3.0, "loss_bucket/image": 2.5},
        {"step": 9, "loss": 3.0, "flops": cell.flops, "s_per_step": 400.0, "loss_bucket/video": 2.0},
        end,
        sample_row(9),
        goodput,
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run / "config.yaml").write_text(f"name: {cell.name}\n")
    for step in (0, 9):
        Image.new("RGB", (4, 4)).save(run / "samples" / f"step_{step}.png")
        (run / "samples" / f"step_{step}_0.mp4").write_bytes(f"{cell.name} at {step}".encode())


def sample_row(step):
    video = {"path": f"samples/step_{step}_0.mp4", "prompt": PROMPT, "seed": 7}
    return {"step": step, "samples": {"sheet": f"samples/step_{step}.png", "videos": [video]}}


def write_sweep(folder, cells, *, with_runs=2):
    folder.mkdir()
    broken = Cell(name="torn", broken="it stopped at step 3 of 9")
    write_cells(folder / "cells.jsonl", [*cells, broken])
    known = [{"name": cell.name, "epochs": 1.25, "unique_tokens": 31502, "gap": 0.0125} for cell in cells]
    (folder / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in known))
    tried = {"name": "torn", "code": 1, "why": "killed by a signal", "time": 0}
    (folder / "attempts.jsonl").write_text(json.dumps(tried) + "\n")
    for cell in cells[:with_runs]:
        write_run(folder / "runs" / cell.name, cell)


def embedded(text):
    return base64.b64encode(text.encode()).decode()


def named(cells):
    return [Cell(**(vars(cell) | {"name": f"cell_{i}"})) for i, cell in enumerate(cells)]


def test_a_page_holds_the_whole_sweep(tmp_path, capsys):
    without_loss = Cell(name="without", parameters=1e9, tokens=1e10, flops=1e20)
    cells = named(noisy_cells([1e19, 3e19, 1e20], 4, noise=0.001))
    write_sweep(tmp_path / "sweep", [*cells, without_loss])
    assert main([str(tmp_path / "sweep")]) == 0
    page = (tmp_path / "sweep" / "report.html").read_text()
    assert "<td>torn</td><td>it stopped at step 3 of 9</td>" in page
    assert "<td>without</td><td>loss is nan, not a positive number</td>" in page
    assert page.count("<td>without</td>") == 1
    assert "For a budget of" in page
    assert page.count("data:image/png;base64,") >= 2
    assert "<th>t0.5</th>" in page
    assert "<td>1.25</td><td>3.15e+04</td><td>0.0125</td>" in page  # epochs, unique tokens, gap
    assert "<td>torn</td><td>1</td><td>killed by a signal</td>" in page
    assert "None made" in page  # a bet
    # Two runs: an hour of steps each, 36 s of start, three minutes that an interruption undid.
    assert "<td>fitted or bet on</td><td>2</td>" in page
    assert "<td>2</td><td>0</td><td>0.02</td><td>0</td><td>0</td><td>0</td><td>0.1</td><td>2.12</td>" in page
    # The last fifth of a run: steps 8 and 9.
    assert "<tr><th>cell</th><th>image</th><th>video</th></tr><tr><td>cell_0</td><td>2.5</td><td>2.5</td></tr>" in page
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


def test_a_bet_stands_on_the_page_with_its_numbers(tmp_path):
    folder = tmp_path / "sweep"
    write_sweep(folder, named(noisy_cells(np.geomspace(1e19, 1e20, 3), 4, noise=0.001)))
    loss = Interval(value=2.31, low=2.29, high=2.33)
    told = Prediction(
        written_at=10.0,
        cells_sha256="cd" * 32,
        cells=12,
        kind="compute",
        budget=3.2e20,
        times_largest=3.2,
        seeds=(0,),
        recommended=Interval(value=1.5e9, low=1.4e9, high=1.6e9),
        size="1.5b",
        parameters=1.5e9,
        tokens=3.5e10,
        flops=3.2e20,
        steps=9,
        loss=loss,
        no_change=2.4,
    )
    write_prediction(folder / "bet", told)
    assert "a loss of 2.3100 (2.2900 to 2.3300)" in page(folder, draws=100)
    run = Cell(name="held", parameters=1.5e9, tokens=3.5e10, flops=3.2e20, loss=2.3)
    write_run(folder / "bet" / "runs" / "held", run, began=11.0)
    write_cells(folder / "bet" / "cells.jsonl", [run])
    result = settle(told, [run], {"held": 11.0})
    write_result(folder / "bet", result)
    found = page(folder, draws=100)
    assert "held: loss 2.3000, inside the interval" in found
    assert "the bet is won" in found
    assert "bet: observed" in found
    assert "12 cells," in found  # what was bet on is not fitted
    assert "For a budget of 3.2e+20 FLOPs" in found
    assert "32x compute: held" in found
