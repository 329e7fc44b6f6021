"""What is read from run folders: finished cells are points, broken ones are named with their reason."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from scaling.cell import read_cells
from scaling.outcome import last_error, outcome_of, paired_errors, record
from tests.scaling.sweep_case import cell
from trainer.compose import to_yaml
from trainer.evaluation import standard_error

GROWTH = 0.02


def write_run(planned, folder, *, loss=0.5, ratio=0.7, until=None, gaps=(0.01, 0.012), sources=None, **settings):
    """A run folder as training leaves it after `until` steps."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(to_yaml(replace(planned.config, **settings)))
    rows, steps = [], planned.steps if until is None else until
    per_step = planned.flops / planned.steps
    rows = [{"step": step, "loss": 1.0, "s_per_step": 0.5, "tokens": 10 * step} for step in range(1, steps + 1)]
    for step, gap in ((planned.steps // 2, gaps[0]), (planned.steps, gaps[1])):
        heldout = {"heldout/loss": loss, "heldout/ratio_to_zero": ratio, "heldout/gap": gap * loss}
        heldout |= {"heldout/standard_error": 0.03, "tokens": 10 * step, "flops": per_step * step}
        rows.append({"step": step, **heldout})
    rows = sorted((row for row in rows if row["step"] <= steps), key=lambda row: row["step"])
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if sources is not None:
        (folder / "heldout.json").write_text(json.dumps(sources))
    return folder


@pytest.fixture(scope="module")
def planned(inputs):
    return cell(inputs)


def test_a_finished_run_is_a_point(planned, tmp_path):
    found = outcome_of(planned, write_run(planned, tmp_path / "run"), most_gap_growth=GROWTH)
    assert found.is_done and not found.is_left_out
    assert (found.cell.name, found.cell.parameters, found.cell.loss) == ("cell", planned.parameters, 0.5)
    assert (found.cell.tokens, found.cell.flops) == (10 * planned.steps, pytest.approx(planned.flops))
    assert found.seconds == 0.5 * planned.steps
    row = found.row()
    assert (row["gap"], row["smallest_gap"], row["unique_tokens"]) == (0.012, 0.01, planned.unique_tokens)
    assert (row["epochs"], row["lr"]) == (pytest.approx(planned.epochs, abs=1e-4), planned.config.schedule.lr)


def test_one_that_has_not_started_is_neither(planned, tmp_path):
    found = outcome_of(planned, tmp_path / "none", most_gap_growth=GROWTH)
    assert not found.has_started and not found.is_done and not found.is_left_out and found.step == 0


def test_a_killed_run_is_not_fitted(planned, tmp_path):
    found = outcome_of(planned, write_run(planned, tmp_path / "run", until=5), most_gap_growth=GROWTH)
    assert found.cell.broken == f"it stopped at step 5 of {planned.steps}"
    assert not found.is_done and not found.is_left_out


def test_nor_is_one_whose_log_is_torn(planned, tmp_path):
    """In the last line as a kill leaves it, or anywhere."""
    folder = write_run(planned, tmp_path / "run")
    whole = (folder / "metrics.jsonl").read_text()
    for cut in (len(whole) - 20, len(whole) // 2):
        (folder / "metrics.jsonl").write_text(whole[:cut] + whole[cut + 10 :] if cut < len(whole) // 2 else whole[:cut])
        found = outcome_of(planned, folder, most_gap_growth=GROWTH)
        assert found.cell.broken and not found.is_done


@pytest.mark.parametrize(
    ("file", "content", "why"),
    [
        ("config.yaml", b"model: {dim", "its config.yaml cannot be read"),
        ("metrics.jsonl", b"3\n", "line 1 of its metrics.jsonl is no row"),
        ("metrics.jsonl", b"\xff\n", "its metrics.jsonl cannot be read"),
    ],
)
def test_a_damaged_file_of_a_cell_says_so(planned, tmp_path, file, content, why):
    folder = write_run(planned, tmp_path / "run")
    (folder / file).write_bytes(content)
    found = outcome_of(planned, folder, most_gap_growth=GROWTH)
    assert found.cell.name == "cell"
    assert why in found.cell.broken
    assert not found.is_done and not found.is_left_out


def test_a_diverged_run_says_so_with_its_own_last_words(planned, tmp_path):
    folder = write_run(planned, tmp_path / "run", until=5)
    (folder / "log.txt").write_text("2026 step 5\n2026 error: step 6: loss or gradient is not finite\n")
    assert last_error(folder) == "step 6: loss or gradient is not finite"
    found = outcome_of(planned, folder, most_gap_growth=GROWTH)
    assert "stopped at step 5" in found.cell.broken and "not finite" in found.cell.broken
    found = outcome_of(planned, write_run(planned, tmp_path / "high", ratio=1.3), most_gap_growth=GROWTH)
    assert "diverged" in found.cell.broken and found.is_left_out


def test_a_gap_that_grows_leaves_a_cell_out_by_name(planned, tmp_path):
    found = outcome_of(planned, write_run(planned, tmp_path / "run", gaps=(0.01, 0.05)), most_gap_growth=GROWTH)
    assert found.is_left_out and "grows by 4.0% of the loss, from 1.0% to 5.0% (most: 2.0%)" in found.cell.broken
    assert outcome_of(planned, tmp_path / "run", most_gap_growth=0.1).is_done


def test_a_folder_of_another_run_is_not_taken_for_the_cell(planned, tmp_path):
    found = outcome_of(planned, write_run(planned, tmp_path / "run", seed=7), most_gap_growth=GROWTH)
    assert "run of other settings (seed: 7 -> 0)" in found.cell.broken


def outcomes(planned, folder, losses):
    """Of runs with these losses of clips, by source."""
    found = []
    for number, of_run in enumerate(losses):
        one = replace(planned, name=f"run{number}")
        sources = {f"shot{n}": values for n, values in enumerate(of_run)}
        path = write_run(planned, folder / one.name, loss=float(np.mean(np.concatenate(of_run))), sources=sources)
        found.append(outcome_of(one, path, most_gap_growth=GROWTH))
    return found


def test_errors_are_paired_over_cells_and_clustered_by_source(planned, tmp_path):
    """What all cells have in common is no error of any; one clip a source is the textbook's standard error."""
    draw = np.random.default_rng(0)
    common, own = draw.normal(5, 2, (1, 30)), draw.normal(0, 0.1, (4, 30))
    table = common + own
    found = paired_errors(outcomes(planned, tmp_path, [[[value] for value in row] for row in table]))
    for number, row in enumerate(table - table.mean(0)):
        assert found[f"run{number}"] == pytest.approx(stats.sem(row))
    assert max(found.values()) < 0.1 * stats.sem(table[0])


def test_two_clips_of_a_source_are_one_draw():
    values, sources = np.repeat([1.0, 2.0, 4.0, 3.0], 2), list("aabbccdd")
    assert standard_error(values, sources) == pytest.approx(stats.sem([1.0, 2.0, 4.0, 3.0]))
    assert np.isnan(standard_error(values[:2], ["a", "a"]))


def test_cells_without_the_same_clips_are_not_paired(planned, tmp_path):
    assert paired_errors(outcomes(planned, tmp_path, [[[1.0], [2.0]], [[1.0, 1.0], [2.0]]])) == {}


def test_what_is_recorded_is_read_back_with_reasons(planned, tmp_path):
    found = outcomes(planned, tmp_path / "runs", [[[1.0], [2.0], [4.0]], [[1.5], [2.0], [4.2]]])
    torn = outcome_of(
        replace(planned, name="torn"), write_run(planned, tmp_path / "t", until=3), most_gap_growth=GROWTH
    )
    none = outcome_of(replace(planned, name="none"), tmp_path / "nothing", most_gap_growth=GROWTH)
    record(tmp_path, [*found, torn, none])
    cells = {one.name: one for one in read_cells(tmp_path / "cells.jsonl")}
    assert list(cells) == ["run0", "run1", "torn"]
    assert cells["torn"].broken and not cells["run0"].broken
    assert cells["run0"].standard_error == pytest.approx(paired_errors(found)["run0"])
    rows = [json.loads(line) for line in (tmp_path / "table.jsonl").read_text().splitlines()]
    assert [row["name"] for row in rows] == list(cells)
    assert rows[0]["standard_error"] == cells["run0"].standard_error, "the table's is the paired one too"
