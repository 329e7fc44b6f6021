import pytest

from scaling.coverage import coverage, main


def test_intervals_of_some_data_sets_hold_the_truth():
    found = coverage(20, draws=100)
    assert set(found) >= {"alpha", "beta", "E", "N exponent", "best N at a further budget", "loss of a run there"}
    assert all(share >= 0.75 for share in found.values())  # of 19 expected; fewer than 15 once in 4,000 times


@pytest.mark.slow
def test_intervals_cover_as_often_as_they_say():
    """300 data sets: 95 % +- 3 standard errors of 1.3 %."""
    found = coverage(300)
    assert all(0.91 <= share <= 0.99 for share in found.values()), found


def test_no_data_sets_are_refused(capsys):
    assert main(["--sets", "0"]) == 2
    assert capsys.readouterr().err == "error: --sets 0 must be 1 or more\n"
