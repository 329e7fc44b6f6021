"""The hand-written captions against the table of footage, and the checks that keep them beside the right shots."""

from collections import Counter
from itertools import pairwise

import pytest

from data.demo_captions import SHORTEST_S, CaptionRow, check_shots, clip_keys, read_captions, uncaptioned
from data.demo_sources import DEMO_FOOTAGE, LeftOut
from data.recode import Shot

ROWS = read_captions()
FILM = next(item for item in DEMO_FOOTAGE if item.name == "bbb")


def row(source: str, start_s: float, end_s: float) -> CaptionRow:
    return CaptionRow(source=source, start_s=start_s, end_s=end_s, short="a short one", descriptive="a longer one")


def test_every_footage_is_captioned_and_no_other():
    assert {row.footage for row in ROWS} == {item.name for item in DEMO_FOOTAGE}
    stills = {item.name for item in DEMO_FOOTAGE if item.is_still}
    assert Counter(row.source for row in ROWS if row.source in stills) == Counter(stills)


@pytest.mark.parametrize("caption", ROWS, ids=lambda row: f"{row.source}@{row.start_s}")
def test_captions_have_their_lengths(caption: CaptionRow):
    assert 4 <= len(caption.short.split()) <= 10
    assert 15 <= len(caption.descriptive.split()) <= 40
    for text in (caption.short, caption.descriptive):
        assert text == text.strip()
        assert "  " not in text


def test_parts_are_in_order_apart_and_long_enough():
    videos = [row for row in ROWS if "/shot-" in row.source]
    assert all(row.end_s - row.start_s > SHORTEST_S - 0.001 for row in videos)
    for first, second in pairwise(videos):
        if first.footage == second.footage:
            assert first.shot <= second.shot
            assert first.end_s <= second.start_s


def test_nothing_is_cut_from_what_is_left_out():
    for caption in ROWS:
        if caption.footage == FILM.name:
            for out in FILM.left_out:
                assert caption.end_s <= out.start_s + 0.001 or caption.start_s >= out.end_s - 0.001, (caption, out)


def test_the_film_is_captioned_from_end_to_end():
    shots = {row.shot for row in ROWS if row.footage == FILM.name}
    assert len(shots) == 121
    assert sum(row.end_s - row.start_s for row in ROWS if row.footage == FILM.name) > 480


def test_keys_are_unique_and_letter_the_parts():
    assert clip_keys([row("a/shot-001", 0, 1), row("a/shot-002", 1, 2), row("a/shot-002", 2, 3)]) == [
        "a-shot-001",
        "a-shot-002-a",
        "a-shot-002-b",
    ]
    keys = clip_keys(ROWS)
    assert len(set(keys)) == len(keys) == len(ROWS)


SHOTS = [Shot(start_s=0.0, end_s=4.0), Shot(start_s=4.0, end_s=9.0), Shot(start_s=9.0, end_s=9.5)]


def test_captions_within_a_fifth_of_a_second_of_their_shot_pass():
    check_shots([row("bbb/shot-000", 0.0, 4.19), row("bbb/shot-001", 3.81, 6.0), row("bbb/shot-001", 6.0, 8.0)], SHOTS)


@pytest.mark.parametrize(
    ("wrong", "found"),
    [
        (row("bbb/shot-001", 3.7, 8.0), "4.000-9.000 s"),
        (row("bbb/shot-000", 1.0, 4.3), "0.000-4.000 s"),
        (row("bbb/shot-003", 9.5, 11.0), "not found"),
    ],
)
def test_captions_of_other_cuts_are_refused(wrong: CaptionRow, found: str):
    with pytest.raises(ValueError, match=rf"{wrong.source} is captioned at .* but the shot is {found}"):
        check_shots([wrong], SHOTS)


def test_long_shots_without_a_caption_are_reported_unless_left_out():
    rows = [row("bbb/shot-000", 0.0, 4.0)]
    bare = FILM.__class__(**{**FILM.__dict__, "left_out": ()})
    out = FILM.__class__(**{**FILM.__dict__, "left_out": (LeftOut(start_s=4.0, end_s=9.0, why="credits"),)})
    assert uncaptioned(bare, rows, SHOTS) == [(1, 4.0, 9.0)]
    assert uncaptioned(out, rows, SHOTS) == []
