import pytest

from data.split import split_of


def test_the_share_is_about_right_and_only_grows():
    sources = [f"film/shot{i:04d}" for i in range(4000)]
    few = {source for source in sources if split_of(source, 0.05) == "heldout"}
    more = {source for source in sources if split_of(source, 0.2) == "heldout"}
    assert 150 < len(few) < 250 and 700 < len(more) < 900
    assert few < more


def test_a_source_never_changes_sides():
    # Written down: a new hash would move shots between train and held-out.
    assert [split_of(f"s{i}", 0.5) for i in range(6)] == ["train"] * 3 + ["heldout"] * 3


def test_zero_holds_nothing_out():
    assert {split_of(str(i), 0.0) for i in range(100)} == {"train"}


def test_a_fraction_of_one_is_refused():
    with pytest.raises(ValueError, match=r"heldout_fraction=1.0 must be in \[0, 1\)"):
        split_of("a", 1.0)
