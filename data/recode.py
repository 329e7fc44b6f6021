"""Turn stretches of a video into small mp4 clips, in one decoding pass that also finds the shots."""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from data.decode import DecodeError, is_sideways
from data.scenes import SceneConfig, Signature, TinyFrames, sign, split_shots

_TIME_TOLERANCE_S = 0.005
_LONGEST_GAP_S = 60.0
"""A longer one between two frames is a broken time stamp."""
_PLAIN_RATE = Fraction(24)
"""What the encoder is told where a file names no rate; time stamps rule."""


@dataclass(frozen=True, kw_only=True)
class RecodeConfig:
    """How small the clips are. Short groups of pictures make any frame cheap to reach."""

    short_side: int = 144
    crf: int = 16
    keyframe_interval: int = 8
    preset: str = "veryfast"


@dataclass(frozen=True, kw_only=True)
class Shot:
    """A shot that was found; seconds of the source, `end_s` excluded."""

    start_s: float
    end_s: float


@dataclass(frozen=True, kw_only=True)
class Recoded:
    """One clip of a stretch: mp4 bytes, and what its json says. The rate is that of its frames' times."""

    media: bytes
    fps: float
    width: int
    height: int
    frames: int


@dataclass(frozen=True, kw_only=True)
class SmallFrame:
    """A frame at its clip's size, with its time in the source and what the cut detector keeps of it."""

    frame: av.VideoFrame
    pts: int
    start_s: float
    end_s: float
    signature: Signature
    source_height: int
    """Of the upright picture in the file, in square pixels."""
    source_width: int


class ClipWriter:
    """Encodes frames to an mp4 in memory, from time 0. One thread: the same frames give the same bytes anywhere."""

    def __init__(self, first: SmallFrame, rate: Fraction, config: RecodeConfig) -> None:
        self._bytes = BytesIO()
        self._container = av.open(self._bytes, mode="w", format="mp4")
        self._stream = self._container.add_stream("libx264", rate=rate)
        frame = first.frame
        self._stream.width, self._stream.height, self._stream.pix_fmt = frame.width, frame.height, "yuv420p"
        self._stream.gop_size = config.keyframe_interval
        self._stream.options = {"crf": str(config.crf), "preset": config.preset}
        assert frame.time_base is not None
        context = self._stream.codec_context
        context.time_base = frame.time_base
        context.thread_count = 1
        context.colorspace, context.color_range = frame.colorspace, frame.color_range
        self._first, self._last, self.frames = first, first, 0

    def write(self, small: SmallFrame) -> None:
        """Append a frame; the caller may write the same one to several clips."""
        small.frame.pts = small.pts - self._first.pts
        small.frame.pict_type = av.video.frame.PictureType.NONE
        self._container.mux(self._stream.encode(small.frame))
        self._last = small
        self.frames += 1

    def close(self) -> Recoded:
        self._container.mux(self._stream.encode(None))
        self._container.close()
        # The last frame's length is not told by all containers.
        span = self._last.start_s - self._first.start_s if self.frames > 1 else self._last.end_s - self._first.start_s
        return Recoded(
            media=self._bytes.getvalue(),
            fps=round(max(self.frames - 1, 1) / span, 4),
            width=self._stream.width,
            height=self._stream.height,
            frames=self.frames,
        )


def source_rate(stream: av.VideoStream) -> Fraction:
    """What a file says of its rate; a hint for the encoder, nothing more."""
    return stream.average_rate or _PLAIN_RATE


def small_frames(
    stream: av.VideoStream, frames: Iterator[av.VideoFrame], config: RecodeConfig, scenes: SceneConfig
) -> Iterator[SmallFrame]:
    """Upright frames scaled down to `short_side` (never up), with square pixels and even sides; times start at 0.

    Raises DecodeError where time stamps are missing or broken, or the size changes.
    """
    aspect = float(stream.sample_aspect_ratio or 1) or 1.0
    shrink, tiny = VideoReformatter(), TinyFrames()
    first_s, before_s, hold_s = None, -1.0, 1 / float(source_rate(stream))
    size: tuple[int, int] | None = None
    for frame in frames:
        if frame.time is None or frame.time_base is None or frame.pts is None:
            raise DecodeError("no time stamps")
        first_s = frame.time if first_s is None else first_s
        start_s = frame.time - first_s
        if start_s == before_s:
            continue  # the later one of two at the same time would never be seen
        if before_s >= 0 and not 0 < start_s - before_s <= _LONGEST_GAP_S:
            raise DecodeError(f"broken time stamps: {start_s:.3f} s follows {before_s:.3f} s")
        if size is not None and (frame.height, frame.width) != size:
            raise DecodeError(f"frame size changes: {size[1]}x{size[0]} to {frame.width}x{frame.height}")
        size = (frame.height, frame.width)
        hold_s = start_s - before_s if before_s >= 0 else hold_s
        small = _small(frame, shrink, aspect, config)
        wide = (frame.height, round(frame.width * aspect))
        before_s = start_s
        yield SmallFrame(
            frame=small,
            pts=frame.pts,
            start_s=start_s,
            end_s=start_s + (float(frame.duration * frame.time_base) or hold_s),
            signature=sign(tiny(small), scenes),
            source_height=wide[1] if is_sideways(frame) else wide[0],
            source_width=wide[0] if is_sideways(frame) else wide[1],
        )


def _small(frame: av.VideoFrame, shrink: VideoReformatter, aspect: float, config: RecodeConfig) -> av.VideoFrame:
    height, width = frame.height, frame.width * aspect
    scale = min(1.0, config.short_side / min(height, width))
    small = shrink.reformat(
        frame,
        width=max(2, 2 * round(width * scale / 2)),
        height=max(2, 2 * round(height * scale / 2)),
        format="yuv420p",
        interpolation="AREA",
    )
    turns = round(frame.rotation / 90) % 4
    return _turned(small, turns) if turns else small


def _turned(frame: av.VideoFrame, turns: int) -> av.VideoFrame:
    """A yuv420p frame turned counterclockwise by quarters, as its file asks a player to."""
    planes = frame.to_ndarray().reshape(-1)
    luma, chroma = frame.height * frame.width, frame.height * frame.width // 4
    height, width = (frame.width, frame.height) if turns % 2 else (frame.height, frame.width)
    parts = [planes[:luma].reshape(frame.height, frame.width)]
    parts += [
        planes[start : start + chroma].reshape(frame.height // 2, frame.width // 2) for start in (luma, luma + chroma)
    ]
    turned = np.concatenate([np.rot90(part, k=turns).reshape(-1) for part in parts]).reshape(height * 3 // 2, width)
    upright = av.VideoFrame.from_ndarray(np.ascontiguousarray(turned), format="yuv420p")
    upright.pts, upright.time_base = frame.pts, frame.time_base
    upright.colorspace, upright.color_range = frame.colorspace, frame.color_range
    return upright


@dataclass(frozen=True, kw_only=True)
class Span:
    """A stretch of time of the source in seconds, `end_s` excluded. Spans may overlap."""

    start_s: float
    end_s: float


@dataclass(frozen=True, kw_only=True)
class Stretch(Span):
    """A part of one shot that becomes one clip."""

    shot: int


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One piece of a span; pieces of each span count from 0. `clip` None where it is too short to be one."""

    span: int
    number: int
    shot: int
    start_s: float
    end_s: float
    source_height: int
    source_width: int
    clip: Recoded | None


class _OpenPiece:
    """A piece that is being written."""

    def __init__(self, first: SmallFrame, *, shot: int, rate: Fraction, config: RecodeConfig) -> None:
        self.shot, self.first, self.last = shot, first, first
        self._writer = ClipWriter(first, rate, config)

    def write(self, small: SmallFrame) -> None:
        self._writer.write(small)
        self.last = small

    def close(self, *, span: int, number: int, min_s: float) -> Piece:
        is_long = self.last.end_s - self.first.start_s > min_s - _TIME_TOLERANCE_S
        clip = self._writer.close()
        return Piece(
            span=span,
            number=number,
            shot=self.shot,
            start_s=round(self.first.start_s, 4),
            end_s=round(self.last.end_s, 4),
            source_height=self.first.source_height,
            source_width=self.first.source_width,
            clip=clip if is_long else None,
        )


def cut_pieces(
    frames: Iterable[tuple[int, SmallFrame]],
    spans: Sequence[Span],
    *,
    config: RecodeConfig,
    rate: Fraction,
    min_s: float,
    max_s: float,
) -> Iterator[Piece]:
    """Cut (shot, frame) pairs into pieces of one shot and at most `max_s`, each yielded as soon as it is whole.

    Frames after the last span are not asked for. What is held is the bytes of one piece for each span at hand.
    """
    begun = [0] * len(spans)
    at_hand: dict[int, _OpenPiece] = {}
    last_s = max((span.end_s for span in spans), default=0.0)
    for shot, small in frames:
        for index in list(at_hand):
            piece = at_hand[index]
            is_full = small.end_s - piece.first.start_s > max_s + _TIME_TOLERANCE_S
            if is_full or piece.shot != shot or small.start_s > spans[index].end_s - _TIME_TOLERANCE_S:
                yield at_hand.pop(index).close(span=index, number=begun[index] - 1, min_s=min_s)
        for index, span in enumerate(spans):
            if span.start_s - _TIME_TOLERANCE_S < small.start_s < span.end_s - _TIME_TOLERANCE_S:
                if index not in at_hand:
                    at_hand[index] = _OpenPiece(small, shot=shot, rate=rate, config=config)
                    begun[index] += 1
                at_hand[index].write(small)
        if small.start_s > last_s:
            break
    for index, piece in at_hand.items():
        yield piece.close(span=index, number=begun[index] - 1, min_s=min_s)


def recode(
    video: bytes,
    stretches: Sequence[Stretch],
    *,
    config: RecodeConfig,
    scenes: SceneConfig,
    progress: Callable[[float], None],
) -> tuple[list[Shot], list[Recoded | None]]:
    """The shots of a video, and one clip for each stretch (None where no frame of its shot lies in it).

    `progress` hears the seconds of video done.
    """
    shots: list[Shot] = []
    clips: list[Recoded | None] = [None] * len(stretches)

    def heard(frames: Iterator[tuple[int, SmallFrame]]) -> Iterator[tuple[int, SmallFrame]]:
        for number, small in frames:
            if number == len(shots):
                shots.append(Shot(start_s=small.start_s, end_s=small.end_s))
            shots[number] = Shot(start_s=shots[number].start_s, end_s=small.end_s)
            progress(small.end_s)
            yield number, small

    with av.open(BytesIO(video), mode="r") as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        frames = heard(split_shots(small_frames(stream, container.decode(stream), config, scenes), scenes))
        rate = source_rate(stream)
        for piece in cut_pieces(frames, stretches, config=config, rate=rate, min_s=0.0, max_s=math.inf):
            if piece.shot == stretches[piece.span].shot:
                clips[piece.span] = piece.clip
        deque(frames, maxlen=0)  # for the shots after the last stretch
    return shots, clips
