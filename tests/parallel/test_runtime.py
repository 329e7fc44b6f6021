"""What the grid of a run can do, and that it leaves nothing behind."""

from layout_reference import read_ranks


def test_collectives_of_the_grid(layouts):
    ranks = read_ranks(layouts / "initial_tp2_pp2_dp2")
    assert len(ranks) == 8
    for _, notes in ranks:
        assert notes["gathered"] == [{"rank": rank, "text": "é" * rank} for rank in range(8)]
        assert notes["any"] == [False, True]
        assert notes["data_sum"] == 3.0


def test_no_threads_or_files_are_left_behind(layouts):
    """Rank 0 took part in every case: the last must not stand much above an early one."""
    notes = [(path.stat().st_mtime, ranks[0][1]) for path in layouts.iterdir() if (ranks := read_ranks(path))]
    ordered = [note for _, note in sorted(notes, key=lambda item: item[0])]
    assert len(ordered) > 30
    early, late = ordered[5:10], ordered[-5:]
    for what in ("threads", "files"):
        assert max(note[what] for note in late) <= max(note[what] for note in early) + 4, what
