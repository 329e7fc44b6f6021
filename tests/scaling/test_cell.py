import math
from dataclasses import replace

import pytest

from scaling.cell import Cell, Columns, places, read_cells, read_csv, sound_and_broken, write_cells

GOOD = Cell(name="a", parameters=1e6, tokens=2e7, flops=1.2e14, loss=0.5, standard_error=0.01, curve=((1.0, 2.0, 3.0),))


def test_cells_come_back_as_written(tmp_path):
    cells = [GOOD, Cell(name="b", broken="killed")]
    write_cells(tmp_path / "cells.jsonl", cells)
    back = read_cells(tmp_path / "cells.jsonl")
    assert back[0] == GOOD
    assert (back[1].name, back[1].broken) == ("b", "killed")
    assert math.isnan(back[1].loss)


def test_a_torn_line_and_a_foreign_one_are_broken_cells_by_name(tmp_path):
    path = tmp_path / "cells.jsonl"
    write_cells(path, [GOOD])
    path.write_text(path.read_text() + '{"name": "x", "size": 3}\n[1, 2]\n{"name": "b", "los')
    sound, broken = sound_and_broken(read_cells(path))
    assert sound == [GOOD]
    assert [cell.name for cell in broken] == ["cells.jsonl line 2", "cells.jsonl line 3", "cells.jsonl line 4"]
    assert "unknown keys ['size']" in broken[0].broken


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0, -1.0])
def test_numbers_that_cannot_be_fitted_break_their_cell(value):
    sound, broken = sound_and_broken([GOOD, Cell(**(vars(GOOD) | {"name": "b", "loss": value}))])
    assert [cell.name for cell in sound] == ["a"]
    assert broken[0].broken.startswith("loss is ")


def test_a_name_given_twice_is_refused():
    with pytest.raises(ValueError, match="cell a is given twice"):
        sound_and_broken([GOOD, GOOD])


def test_rows_of_a_table_follow_from_two_of_three_columns(tmp_path):
    path = tmp_path / "points.csv"
    path.write_text("Model Size,C,D,loss\n1e9,6e19,1e10,2.5\nlarge,6e19,1e10,2.5\n1e9,nan,,2.5\n0,6e19,1e10,2.5\n")
    by_flops = read_csv(path, Columns(parameters="Model Size", flops="C", loss="loss"))
    by_tokens = read_csv(path, Columns(parameters="Model Size", tokens="D", loss="loss"))
    assert by_flops[0] == by_tokens[0]
    assert by_flops[0].tokens == 1e10
    sound, broken = sound_and_broken(by_flops)
    assert [cell.name for cell in sound] == ["row 1"]
    assert [cell.name for cell in broken] == ["row 2", "row 3", "row 4"]
    assert broken[0].broken == "Model Size is 'large', not a number"


def test_a_column_that_is_not_there_is_named(tmp_path):
    path = tmp_path / "points.csv"
    path.write_text("n,loss\n1,2\n")
    with pytest.raises(ValueError, match="no column 'C': it has 'n', 'loss'"):
        read_csv(path, Columns(parameters="n", flops="C", loss="loss"))


@pytest.mark.parametrize(
    ("line", "name", "why"),
    [
        (b'{"name": "b", "parameters": "1e6", "loss": 1}', "b", "parameters is '1e6', not a number"),
        (b'{"name": "b", "loss": true}', "b", "loss is True, not a number"),
        (b'{"name": "b", "curve": [[1, 2]]}', "b", "cannot be read"),
        (
            b'{"name": "b", "curve": [[1e9, 6e18, -2]], "parameters": 1, "tokens": 1, "flops": 1, "loss": 1}',
            "b",
            "-2, not",
        ),
        (b'{"name": "b", "loss": 1' + b"0" * 400 + b"}", "b", "cannot be read"),
        (b'{"name": 7}', "cells.jsonl line 2", "name is 7, not a text"),
        (b'{"name": "\xff"}', "cells.jsonl line 2", "cannot be read"),
        (b"3", "cells.jsonl line 2", "cannot be read"),
    ],
)
def test_a_line_with_a_wrong_value_breaks_its_cell(tmp_path, line, name, why):
    path = tmp_path / "cells.jsonl"
    write_cells(path, [GOOD])
    path.write_bytes(path.read_bytes() + line + b"\n")
    sound, broken = sound_and_broken(read_cells(path))
    assert sound == [GOOD]
    assert [cell.name for cell in broken] == [name]
    assert why in broken[0].broken


def test_of_runs_that_differ_in_their_rate_the_best_is_the_cell():
    rates = [replace(GOOD, name=f"lr{k}", loss=loss) for k, loss in enumerate((0.6, 0.4, 0.5))]
    sound, broken = sound_and_broken([GOOD, *rates, replace(GOOD, name="other", flops=2e14)])
    assert [cell.name for cell in sound] == ["lr1", "other"]
    assert [cell.name for cell in broken] == ["a", "lr0", "lr2"]
    assert broken[0].broken == "lr1 is of the same size and FLOPs and has the lower loss (0.4)"


def seeds_of(variant, losses, **changes):
    return [
        replace(GOOD, name=f"{variant}-s{k}", seed=k, variant=variant, loss=loss, **changes)
        for k, loss in enumerate(losses)
    ]


def test_seeds_are_all_kept_and_of_variants_the_best_mean_is():
    slow, fast = seeds_of("lr x0.5", [0.60, 0.62, 0.61]), seeds_of("lr x1", [0.50, 0.80])
    sound, broken = sound_and_broken([*fast, *slow])
    assert sound == slow
    assert [cell.name for cell in broken] == ["lr x1-s0", "lr x1-s1"]
    assert broken[0].broken == (
        "lr x0.5-s0 is of the same size and FLOPs and has the lower mean loss of 3 seeds (0.6099)"
    )


def test_a_run_given_twice_under_two_names_counts_once():
    first, second = seeds_of("", [0.5, 0.51])
    sound, broken = sound_and_broken([first, second, replace(second, name="again")])
    assert sound == [first, second]
    assert [cell.name for cell in broken] == ["again"]
    assert broken[0].broken == "-s1 is that run: it has the same size, FLOPs, seed (1) and loss"


def test_a_run_given_twice_has_one_voice_in_the_mean():
    first, second = seeds_of("lr x1", [0.50, 0.60])  # 0.548 in the mean, 0.531 with the first one twice
    other = seeds_of("lr x2", [0.54, 0.54])
    sound, broken = sound_and_broken([first, replace(first, name="again"), second, *other])
    assert sound == other
    assert {cell.name for cell in broken} == {first.name, "again", second.name}


def test_a_seed_that_ends_elsewhere_is_of_another_run():
    here, there = seeds_of("", [0.50, 0.51]), seeds_of("", [0.60, 0.61])
    sound, broken = sound_and_broken([*here, *(replace(cell, name=f"there{cell.name}") for cell in there)])
    assert sound == here
    assert broken[0].broken == "-s0 is of the same size and FLOPs and has the lower mean loss of 2 seeds (0.505)"


def test_seeds_share_a_place_although_their_packs_differ():
    cells = [replace(cell, flops=GOOD.flops * factor) for cell, factor in zip(seeds_of("", [0.5] * 3), (1, 1.01, 1.02))]
    assert places(cells) == [cells]
    unknown = [replace(cell, seed=None) for cell in cells]
    assert places(unknown) == [[cell] for cell in unknown]
    assert places([replace(cells[0], parameters=2e6), cells[1]]) == [[cells[1]], [replace(cells[0], parameters=2e6)]]


def test_a_seed_and_a_variant_come_back(tmp_path):
    path = tmp_path / "cells.jsonl"
    cell = replace(GOOD, seed=3, variant="lr x2")
    write_cells(path, [cell])
    assert read_cells(path) == [cell]
    path.write_text(path.read_text().replace('"seed": 3', '"seed": 3.5'))
    assert "seed is 3.5, not a whole number" in read_cells(path)[0].broken
