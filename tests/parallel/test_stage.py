"""Stages: every rank's replicas are compared, and told apart by name."""

import pytest
from layout_reference import read_ranks


@pytest.mark.parametrize("layout", ["dp2", "tp2_sp", "pp2"])
def test_unequal_replicas_are_named(layouts, layout):
    for _, notes in read_ranks(layouts / f"unequal_replicas_{layout}"):
        assert "conditioning.time_in.bias" in notes["error"]
        assert "[0, 1]" in notes["error"]
        assert "too few agree to tell which ranks are wrong" in notes["error"], "of two copies either may be"
