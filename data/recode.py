"""Turn stretches of a video into small mp4 clips, in one decoding pass that also finds the shots."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO

import av
from av.video.reformatter import VideoReformatter

from data.scenes import SceneConfig, Signature, TinyFrames, sign, split_shots

_TIME_TOLERANCE_S = 0.005


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
    """One clip of a stretch: mp4 bytes, and what its json says."""

    media: bytes
    fps: float
    width: int
    height: int
    frames: int


@dataclass(frozen=True, kw_only=True)
class _SmallFrame:
    frame: av.VideoFrame
    start_s: float
    end_s: float
    signature: Signature


class _ClipWriter:
    """Encodes frames to an mp4 in memory, from time 0. One thread: the same frames give the same bytes anywhere."""

    def __init__(self, first: av.VideoFrame, rate: Fraction, config: RecodeConfig) -> None:
        self._bytes = BytesIO()
        self._container = av.open(self._bytes, mode="w", format="mp4")
        self._stream = self._container.add_stream("libx264", rate=rate)
        self._stream.width, self._stream.height, self._stream.pix_fmt = first.width, first.height, "yuv420p"
        self._stream.gop_size = config.keyframe_interval
        self._stream.options = {"crf": str(config.crf), "preset": config.preset}
        assert first.pts is not None and first.time_base is not None
        context = self._stream.codec_context
        context.time_base = first.time_base
        context.thread_count = 1
        context.colorspace, context.color_range = first.colorspace, first.color_range
        self._offset, self._rate, self.frames = first.pts, rate, 0

    def write(self, frame: av.VideoFrame) -> None:
        assert frame.pts is not None
        frame.pts -= self._offset
        frame.pict_type = av.video.frame.PictureType.NONE
        self._container.mux(self._stream.encode(frame))
        self.frames += 1

    def close(self) -> Recoded:
        self._container.mux(self._stream.encode(None))
        self._container.close()
        return Recoded(
            media=self._bytes.getvalue(),
            fps=float(self._rate),
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
    writer: _ClipWriter | None = None
    current = 0
    with av.open(BytesIO(video), mode="r") as container:
        rate = container.streams.video[0].average_rate
        assert rate is not None, "a video without a frame rate"
        for number, small in split_shots(_small_frames(container, config, scenes), scenes):
            if number == len(shots):
                shots.append(Shot(start_s=small.start_s, end_s=small.end_s))
            shots[number] = Shot(start_s=shots[number].start_s, end_s=small.end_s)
            while current < len(stretches) and small.start_s > stretches[current].end_s - _TIME_TOLERANCE_S:
                clips[current] = writer.close() if writer else None
                current, writer = current + 1, None
            if current < len(stretches) and _lies_in(small, number, stretches[current]):
                writer = writer or _ClipWriter(small.frame, rate, config)
                writer.write(small.frame)
            progress(small.end_s)
    if writer:
        clips[current] = writer.close()
    return shots, clips


def _lies_in(small: _SmallFrame, shot: int, stretch: Stretch) -> bool:
    return shot == stretch.shot and small.start_s > stretch.start_s - _TIME_TOLERANCE_S


def _small_frames(
    container: av.container.InputContainer, config: RecodeConfig, scenes: SceneConfig
) -> Iterator[_SmallFrame]:
    """Frames scaled down to `short_side` (never up), with square pixels and even sides; times start at 0."""
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    aspect = float(stream.sample_aspect_ratio or 1) or 1.0
    shrink, tiny = VideoReformatter(), TinyFrames()
    first_s: float | None = None
    for frame in container.decode(stream):
        assert frame.time is not None and frame.time_base is not None, "a frame without a time stamp"
        first_s = frame.time if first_s is None else first_s
        height, width = frame.height, frame.width * aspect
        scale = min(1.0, config.short_side / min(height, width))
        small = shrink.reformat(
            frame,
            width=2 * round(width * scale / 2),
            height=2 * round(height * scale / 2),
            format="yuv420p",
            interpolation="AREA",
        )
        start_s = frame.time - first_s
        yield _SmallFrame(
            frame=small,
            start_s=start_s,
            end_s=start_s + float(frame.duration * frame.time_base),
            signature=sign(tiny(small), scenes),
        )
