from scaling.cell import Cell
from scaling.report import page
from scaling.report_samples import nearest, samples_part
from tests.scaling.test_report import PROMPT, embedded, write_sweep


def test_samples_stand_side_by_side_over_compute_and_along_a_run(tmp_path):
    """1x, 4x and 32x of the least compute: of each budget the best run, and the largest along its training."""
    cells = [
        Cell(name=f"{name}-{k}", parameters=1e6, tokens=1e9, flops=1e18 * times, loss=loss)
        for name, times, losses in (
            ("a", 1, (2.0, 1.9)),
            ("b", 4.1, (1.7, 1.8)),
            ("c", 8, (1.6,)),
            ("d", 25, (1.4, 1.5)),
        )
        for k, loss in enumerate(losses)
    ]
    assert [cell.name for cell in nearest(cells)] == ["a-1", "b-0", "d-0"]
    assert [cell.name for cell in nearest(cells[:2])] == ["a-1"]
    write_sweep(tmp_path / "sweep", cells, with_runs=7)
    found = page(tmp_path / "sweep", draws=100)
    over, along = found.split("<h3>Over compute</h3>")[1].split("<h3>Along the run")
    for name in ("a-1", "b-0", "d-0"):
        assert embedded(f"{name} at 9") in over
    assert embedded("c-0 at 9") not in over
    assert "25x compute: d-0, loss 1.4" in over
    assert f"{PROMPT}<br>seed 7" in over
    assert over.count("data:image/png;base64,") == 3
    assert along.startswith(" d-0</h3>"), "the one that is fitted"
    assert embedded("d-0 at 0") in along
    assert embedded("d-0 at 9") in along
    assert "None written" in samples_part(cells, {}, {})
