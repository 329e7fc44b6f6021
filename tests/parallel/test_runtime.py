"""What the grid of a run can do, and that it leaves nothing behind."""

from layout_reference import read_ranks


def test_collectives_of_the_grid(layouts):
    ranks = read_ranks(layouts / "initial_tp2_pp2_dp2")
    assert len(ranks) == 8
    for _, notes in ranks:
        assert notes["gathered"] == [{"rank": rank, "text": "é" * rank} for rank in range(8)]
        assert notes["any"] == [False, True]
        assert notes["data_sum"] == 3.0
