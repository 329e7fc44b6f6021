"""Turn stretches of a video into small mp4 clips, in one decoding pass that also finds the shots."""

from collections.abc import Callable, Iterator, Sequence
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
class Stretch:
    """A part of one shot that becomes one clip; seconds of the source, `end_s` excluded."""

    shot: int
    start_s: float
    end_s: float


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


def recode(
    video: bytes,
    stretches: Sequence[Stretch],
    *,
    config: RecodeConfig,
    scenes: SceneConfig,
    progress: Callable[[float], None],
) -> tuple[list[Shot], list[Recoded | None]]:
    """The shots of a video, and one clip for each stretch (None where no frame of its shot lies in it).

    Stretches must be in order and must not overlap. `progress` hears the seconds of video done.
    """
    shots: list[Shot] = []
    clips: list[Recoded | None] = [None] * len(stretches)
    writer: ClipWriter | None = None
    current = 0
    with av.open(BytesIO(video), mode="r") as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        rate = source_rate(stream)
        for number, small in split_shots(small_frames(stream, container.decode(stream), config, scenes), scenes):
            if number == len(shots):
                shots.append(Shot(start_s=small.start_s, end_s=small.end_s))
            shots[number] = Shot(start_s=shots[number].start_s, end_s=small.end_s)
            while current < len(stretches) and small.start_s > stretches[current].end_s - _TIME_TOLERANCE_S:
                clips[current] = writer.close() if writer else None
                current, writer = current + 1, None
            if current < len(stretches) and _lies_in(small, number, stretches[current]):
                writer = writer or ClipWriter(small, rate, config)
                writer.write(small)
            progress(small.end_s)
    if writer:
        clips[current] = writer.close()
    return shots, clips


def source_rate(stream: av.VideoStream) -> Fraction:
    """What a file says of its rate; a hint for the encoder, nothing more."""
    return stream.average_rate or _PLAIN_RATE


def _lies_in(small: SmallFrame, shot: int, stretch: Stretch) -> bool:
    return shot == stretch.shot and small.start_s > stretch.start_s - _TIME_TOLERANCE_S


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
