import pytest

from data.step import RankShare, ReadAhead


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"steps": 0}, r"data\.prefetch_steps=0 must be at least 1"),
        ({"num_bytes": 0}, r"data\.prefetch_bytes=0 must be at least 1"),
        ({"workers": -1}, r"data\.workers=-1 must be 0 or more"),
        ({"timeout_s": 0.0}, r"data\.read_timeout_s=0\.0 must be above 0"),
    ],
)
def test_a_reading_that_cannot_be_is_refused(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        ReadAhead(**changes)


def test_a_share_lies_among_its_ranks():
    assert RankShare(data_rank=2, data_size=3).reads
    with pytest.raises(AssertionError):
        RankShare(data_rank=3, data_size=3)
