"""Small clips cut out of a video: frames, times, sizes, colours."""

from dataclasses import replace
from fractions import Fraction
from io import BytesIO
from pathlib import Path

import av
import numpy as np
import pytest

from data.decode import DecodeError, checked, opened, video_stream
from data.recode import Piece, RecodeConfig, Recoded, Shot, Span, Stretch, cut_pieces, recode, small_frames, source_rate
from data.scenes import SceneConfig, split_shots
from tests.data.films import FPS, film

COLOURS = [(200, 60, 60), (60, 190, 80), (70, 80, 210)]
CONFIG = RecodeConfig(short_side=72)


def picture(colour: tuple[int, int, int], *, height: int, width: int, bright: float) -> np.ndarray:
    """A colour that darkens from left to right and brightens with time."""
    ramp = np.linspace(1.0, 0.6, width)[None, :, None] * bright
    return np.clip(np.array(colour) * np.broadcast_to(ramp, (height, width, 1)), 0, 255).astype(np.uint8)


def make_video(
    *,
    frames_per_scene: int = 30,
    height: int = 180,
    width: int = 320,
    aspect: Fraction = Fraction(1),
    first_pts: int = 0,
) -> bytes:
    """Three scenes, one a colour, as an mp4 in memory."""
    target = BytesIO()
    with av.open(target, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"crf": "10"}
        stream.codec_context.sample_aspect_ratio = aspect
        stream.codec_context.thread_count = 1
        for number in range(3 * frames_per_scene):
            colour, bright = COLOURS[number // frames_per_scene], 0.8 + 0.004 * (number % frames_per_scene)
            frame = av.VideoFrame.from_ndarray(picture(colour, height=height, width=width, bright=bright))
            frame.pts, frame.time_base = number + first_pts, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return target.getvalue()


def run(
    video: bytes, stretches: list[Stretch], config: RecodeConfig = CONFIG
) -> tuple[list[Shot], list[Recoded | None]]:
    return recode(video, stretches, config=config, scenes=SceneConfig(), progress=lambda seconds: None)


def stretch(shot: int, start: int, end: int) -> Stretch:
    """A stretch given in frames."""
    return Stretch(shot=shot, start_s=round(start / FPS, 3), end_s=round(end / FPS, 3))


def decoded(clip: Recoded | None) -> list[av.VideoFrame]:
    assert clip is not None
    with av.open(BytesIO(clip.media)) as container:
        return list(container.decode(video=0))


def test_shots_and_their_clips_have_the_right_frames():
    shots, clips = run(make_video(), [stretch(0, 0, 30), stretch(1, 35, 47), stretch(1, 47, 60), stretch(2, 60, 90)])
    assert [(round(s.start_s * FPS), round(s.end_s * FPS)) for s in shots] == [(0, 30), (30, 60), (60, 90)]
    assert [len(decoded(clip)) for clip in clips] == [30, 12, 13, 30]
    assert [clip.frames for clip in clips] == [30, 12, 13, 30]
    for clip, colour in zip(clips, [0, 1, 1, 2]):
        frames = decoded(clip)
        assert [round(frame.time * FPS) for frame in frames] == list(range(len(frames)))
        mean = frames[0].to_ndarray(format="rgb24").mean((0, 1))
        assert int(mean.argmax()) == colour
        assert (clip.fps, clip.height, clip.width) == (FPS, 72, 128)


def test_pictures_survive():
    _, (clip,) = run(make_video(), [stretch(1, 40, 60)])
    for number, frame in enumerate(decoded(clip)):
        want = picture(COLOURS[1], height=72, width=128, bright=0.8 + 0.004 * (10 + number))
        error = frame.to_ndarray(format="rgb24").astype(float) - want
        assert np.sqrt((error**2).mean()) < 4


def test_what_lies_between_stretches_or_in_no_shot_is_dropped():
    _, clips = run(make_video(), [stretch(0, 10, 20), stretch(1, 25, 40)])
    assert [clip.frames for clip in clips] == [10, 10]  # frames 25-29 are of shot 0


def test_a_stretch_of_another_shot_has_no_clip():
    _, clips = run(make_video(), [stretch(2, 5, 25)])
    assert clips == [None]


def test_times_count_from_the_first_frame():
    shots, clips = run(make_video(first_pts=48), [stretch(0, 0, 30)])
    assert shots[0].start_s == 0.0
    assert clips[0].frames == 30


def test_small_videos_are_not_enlarged():
    _, (clip,) = run(make_video(height=50, width=64), [stretch(0, 0, 24)])
    assert (clip.height, clip.width) == (50, 64)


def test_pixels_become_square():
    _, (clip,) = run(make_video(height=144, width=176, aspect=Fraction(128, 117)), [stretch(0, 0, 24)])
    assert (clip.height, clip.width) == (72, 96)
    assert decoded(clip)[0].width == 96


def test_keyframes_are_close_together():
    _, (clip,) = run(make_video(), [stretch(0, 0, 30)])
    keys = [number for number, frame in enumerate(decoded(clip)) if frame.key_frame]
    assert keys[0] == 0
    assert max(np.diff([*keys, 30])) <= CONFIG.keyframe_interval


def test_the_same_video_gives_the_same_bytes():
    video = make_video()
    first, second = (run(video, [stretch(0, 0, 30), stretch(2, 62, 90)])[1] for _ in range(2))
    assert first == second
    assert run(video, [stretch(0, 0, 30), stretch(2, 62, 90)], replace(CONFIG, crf=30))[1] != first


def test_progress_is_told():
    heard: list[float] = []
    recode(make_video(), [], config=CONFIG, scenes=SceneConfig(), progress=heard.append)
    assert len(heard) == 90
    assert heard[-1] == pytest.approx(90 / FPS)


def with_rotation(media: bytes, degrees: int) -> bytes:
    """The same file, asking players to turn it: the matrix in its track header is another."""
    cos, sin = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    plain = b"".join(v.to_bytes(4, "big") for v in (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30))
    turned = [cos << 16, sin << 16, 0, -sin << 16, cos << 16, 0, 0, 0, 1 << 30]
    at = media.index(plain, media.index(b"tkhd"))
    return media[:at] + b"".join(v.to_bytes(4, "big", signed=True) for v in turned) + media[at + len(plain) :]


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_sideways_videos_are_turned_upright(degrees: int):
    """The colours darken from left to right in the file."""
    _, (clip,) = run(with_rotation(make_video(), degrees), [stretch(0, 0, 30)])
    frame = decoded(clip)[5].to_ndarray(format="rgb24").astype(float)
    assert frame.shape == ((72, 128, 3) if degrees == 180 else (128, 72, 3))
    left, right, top, bottom = frame[:, :9].mean(), frame[:, -9:].mean(), frame[:9].mean(), frame[-9:].mean()
    dark_end = {90: bottom, 180: left, 270: top}[degrees]
    assert dark_end == min(left, right, top, bottom)


def test_a_file_without_times_or_with_broken_ones_says_so():
    video = make_video(frames_per_scene=5)
    with av.open(BytesIO(video)) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        for pts, reason in ((None, "no time stamps"), (0, "broken time stamps"), (10**9, "broken time stamps")):
            frames[7].pts = pts
            with pytest.raises(DecodeError, match=reason):
                list(small_frames(stream, iter(frames), CONFIG, SceneConfig()))
        frames[7].pts = frames[6].pts
        small = list(small_frames(stream, iter(frames), CONFIG, SceneConfig()))
        assert len(small) == 14


TINY = RecodeConfig(short_side=48)
ALL = Span(start_s=0.0, end_s=1e9)


def pieces(media: bytes, spans: list[Span], *, cuts: bool = True, min_s: float = 0.5, max_s: float = 100.0):
    with opened(media, "mp4") as container:
        stream = video_stream(container)
        frames = small_frames(stream, checked(container.decode(stream)), TINY, SceneConfig())
        shots = split_shots(frames, SceneConfig()) if cuts else ((0, small) for small in frames)
        rate = source_rate(stream)
        return list(cut_pieces(shots, spans, config=TINY, rate=rate, min_s=min_s, max_s=max_s))


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
            for small in small_frames(stream, container.decode(stream), TINY, SceneConfig()):
                asked.append(small)
                yield 0, small

    spans = [Span(start_s=0.0, end_s=20 / FPS)]
    rate = source_rate_of(film((90,)))
    found = list(cut_pieces(frames(film((90,))), spans, config=TINY, rate=rate, min_s=0.1, max_s=9.0))
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
        frames = small_frames(stream, container.decode(stream), TINY, SceneConfig())
        shots = ((shot, asked.append(shot) or small) for shot, small in split_shots(frames, SceneConfig()))
        cut = cut_pieces(shots, [ALL], config=TINY, rate=source_rate(stream), min_s=0.1, max_s=9.0)
        next(cut)
        assert len(asked) == 31
