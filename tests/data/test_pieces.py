"""Pieces: shots within stretches of time, overlapping ones too, and none of another length than asked for."""

from io import BytesIO
from pathlib import Path

import av
import pytest

from data.decode import checked, opened, video_stream
from data.pieces import Piece, Span, cut_pieces
from data.recode import RecodeConfig, small_frames, source_rate
from data.scenes import SceneConfig, split_shots
from tests.data.films import FPS, film

CONFIG = RecodeConfig(short_side=48)
ALL = Span(start_s=0.0, end_s=1e9)


def pieces(media: bytes, spans: list[Span], *, cuts: bool = True, min_s: float = 0.5, max_s: float = 100.0):
    with opened(media, "mp4") as container:
        stream = video_stream(container)
        frames = small_frames(stream, checked(container.decode(stream)), CONFIG, SceneConfig())
        shots = split_shots(frames, SceneConfig()) if cuts else ((0, small) for small in frames)
        rate = source_rate(stream)
        return list(cut_pieces(shots, spans, config=CONFIG, rate=rate, min_s=min_s, max_s=max_s))


def in_frames(piece: Piece) -> tuple[int, int, int, int]:
    return piece.span, piece.number, round(piece.start_s * FPS), round(piece.end_s * FPS)


def test_every_shot_is_a_piece_with_its_own_frames():
    found = pieces(film((30, 20, 40)), [ALL])
    assert [in_frames(piece) for piece in found] == [(0, 0, 0, 30), (0, 1, 30, 50), (0, 2, 50, 90)]
    for piece, frames in zip(found, (30, 20, 40)):
        assert piece.clip is not None
        assert (piece.clip.frames, piece.clip.fps, piece.clip.height, piece.clip.width) == (frames, FPS, 48, 72)
        assert (piece.source_height, piece.source_width) == (64, 96)
        with av.open(BytesIO(piece.clip.media)) as container:
            times = [frame.time for frame in container.decode(video=0)]
        assert times == pytest.approx([number / FPS for number in range(frames)])


def test_spans_that_overlap_each_get_all_their_frames():
    spans = [Span(start_s=10 / FPS, end_s=50 / FPS), Span(start_s=20 / FPS, end_s=70 / FPS)]
    found = pieces(film((90,)), spans)
    assert sorted(in_frames(piece) for piece in found) == [(0, 0, 10, 50), (1, 0, 20, 70)]
    alone = pieces(film((90,)), spans[1:])
    assert [piece.clip for piece in found if piece.span == 1] == [piece.clip for piece in alone]


def test_a_span_is_cut_at_the_shots_in_it_unless_kept_whole():
    span = Span(start_s=15 / FPS, end_s=60 / FPS)
    media = film((30, 20, 40))
    assert [in_frames(piece)[2:] for piece in pieces(media, [span], min_s=0)] == [(15, 30), (30, 50), (50, 60)]
    assert [in_frames(piece)[2:] for piece in pieces(media, [span], cuts=False)] == [(15, 60)]


def test_long_shots_are_cut_to_length_and_short_ends_are_no_clips():
    found = pieces(film((70,)), [ALL], min_s=0.5, max_s=30 / FPS)
    assert [(*in_frames(piece)[2:], piece.clip is not None) for piece in found] == [
        (0, 30, True),
        (30, 60, True),
        (60, 70, False),
    ]


def test_frames_after_the_last_span_are_not_asked_for():
    asked = []

    def frames(media: bytes):
        with opened(media, "mp4") as container:
            stream = video_stream(container)
            for small in small_frames(stream, container.decode(stream), CONFIG, SceneConfig()):
                asked.append(small)
                yield 0, small

    spans = [Span(start_s=0.0, end_s=20 / FPS)]
    rate = source_rate_of(film((90,)))
    found = list(cut_pieces(frames(film((90,))), spans, config=CONFIG, rate=rate, min_s=0.1, max_s=9.0))
    assert in_frames(found[0])[2:] == (0, 20)
    assert len(asked) < 25


def source_rate_of(media: bytes):
    with opened(media, "mp4") as container:
        return source_rate(video_stream(container))


def test_pieces_come_as_soon_as_they_are_whole(tmp_path: Path):
    path = tmp_path / "film.mp4"
    path.write_bytes(film((30, 30, 30)))
    with opened(path, "mp4") as container:
        stream = video_stream(container)
        asked = []
        frames = small_frames(stream, container.decode(stream), CONFIG, SceneConfig())
        shots = ((shot, asked.append(shot) or small) for shot, small in split_shots(frames, SceneConfig()))
        cut = cut_pieces(shots, [ALL], config=CONFIG, rate=source_rate(stream), min_s=0.1, max_s=9.0)
        next(cut)
        assert len(asked) == 31
