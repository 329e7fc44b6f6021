"""Bytes of a video or an image to frames at an even rate, on the lattice. By time stamps, never by frame numbers.

Frames come one after another while the file is decoded; none is kept.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO
from itertools import islice, pairwise
from pathlib import Path

import av
import numpy as np
import torch
from av.container import InputContainer
from av.video.reformatter import VideoReformatter
from torch import Tensor

from data.lattice import ClipConfig, Fit, cover_frame, fit_frame

_VIDEO_FORMATS = {
    "mp4": "mov",
    "m4v": "mov",
    "mov": "mov",
    "webm": "matroska",
    "mkv": "matroska",
    "avi": "avi",
    "gif": "gif",
    "mpg": "mpeg",
    "mpeg": "mpeg",
    "ts": "mpegts",
    "flv": "flv",
    "wmv": "asf",
}
_IMAGE_FORMATS = {"png": "png_pipe", "jpg": "jpeg_pipe", "jpeg": "jpeg_pipe", "webp": "webp_pipe"}
VIDEO_EXTENSIONS, IMAGE_EXTENSIONS = tuple(_VIDEO_FORMATS), tuple(_IMAGE_FORMATS)
_TIME_TOLERANCE_S = 0.002
"""Containers may round time stamps to milliseconds."""
_LONGEST_HOLD_S = 60.0
"""A longer gap between two frames is a broken time stamp, not a still picture."""
_STILL_FPS = 1.0
"""Stands for the rate of what has none of its own: a single picture."""


class DecodeError(ValueError):
    """Why a clip cannot be used; the message is a reason for the report."""


class DecodedClip(Iterator[Tensor]):
    """The frames of a clip as they are decoded: uint8 `[3, H, W]` each, upright and all of one size."""

    def __init__(
        self,
        shown: Iterator[av.VideoFrame],
        *,
        fps: float,
        pixel_aspect: float,
        fit_of: Callable[[int, int], Fit],
    ) -> None:
        """`fit_of` says where an upright picture of so many rows and columns of square pixels lands."""
        self.fps = fps
        self._shown, self._pixel_aspect, self._fit_of = shown, pixel_aspect, fit_of
        self._reformatter = VideoReformatter()
        self._fit: Fit | None = None
        self._previous: tuple[av.VideoFrame, Tensor] | None = None
        self.native_height = self.native_width = 0
        """As stored, before it is turned upright; 0 before the first frame."""
        self.count = 0
        """Frames handed out so far."""

    def __next__(self) -> Tensor:
        """The next frame; one that is shown again is not converted again."""
        frame = next(self._shown)
        if self._fit is None:
            self.native_height, self.native_width = frame.height, frame.width
            self._fit = _fit(frame, self._pixel_aspect, self._fit_of)
        if (frame.height, frame.width) != (self.native_height, self.native_width):
            raise DecodeError(
                f"frame size changes: {self.native_width}x{self.native_height} to {frame.width}x{frame.height}"
            )
        if self._previous is None or self._previous[0] is not frame:
            self._previous = None
            picture_HW3 = _picture(frame, self._fit, self._reformatter)
            self._previous = frame, torch.from_numpy(picture_HW3).permute(2, 0, 1).contiguous()
        self.count += 1
        return self._previous[1]


@contextmanager
def decoded_clip(
    data: bytes, config: ClipConfig, *, extension: str, longest: int | None = None
) -> Iterator[DecodedClip]:
    """Decode, resample to `config.fps` or to the clip's own rate by time, scale and crop.

    `longest` is the number of frames of its longest window, which its size depends on; None foretells it from time
    stamps. A clip's own rate is known when all of it was decoded once, so then it is decoded twice.
    Raises DecodeError with the reason, here or while frames are taken.
    """
    fps, foretold = config.fps or _STILL_FPS, 1
    if extension not in IMAGE_EXTENSIONS:
        times = _packet_times(data, extension) if config.fps else _frame_times(data, extension)
        fps = config.fps or native_rate(times.at) or _STILL_FPS
        foretold = min(config.max_frames, config.snap_frames(times.count(fps) or config.max_frames))
    with opened(data, extension) as container:
        yield DecodedClip(
            _shown(container, extension, fps),
            fps=fps,
            pixel_aspect=_pixel_aspect(container),
            fit_of=lambda height, width: fit_frame(height, width, frames=longest or foretold, config=config),
        )


def decode_first_frames(data: bytes, size: tuple[int, int, int], *, fps: float, extension: str) -> Tensor:
    """The first frames, at most as many as asked for, scaled to cover (frames, height, width) and cropped.

    uint8 `[T, 3, H, W]`; what comes after them is not decoded. Raises DecodeError with the reason.
    """
    frames, height, width = size
    with opened(data, extension) as container:
        decoded = DecodedClip(
            islice(_shown(container, extension, fps), frames),
            fps=fps,
            pixel_aspect=_pixel_aspect(container),
            fit_of=lambda h, w: cover_frame(h, w, (height, width)),
        )
        pictures = list(decoded)
    if not pictures:
        raise DecodeError("no frames")
    return torch.stack(pictures)


@contextmanager
def opened(media: bytes | Path, extension: str) -> Iterator[InputContainer]:
    """A file, or the bytes of one, of the kind that its extension names. Raises DecodeError where it is not.

    The bytes may not choose the kind: some kinds are scripts that name other files, or sockets.
    """
    kind = (_VIDEO_FORMATS | _IMAGE_FORMATS).get(extension)
    if kind is None:
        raise DecodeError(f"unknown extension: .{extension} is none of {VIDEO_EXTENSIONS + IMAGE_EXTENSIONS}")
    try:
        with (
            BytesIO(media) if isinstance(media, bytes) else open(media, "rb") as file,
            av.open(file, "r", format=kind, options={"protocol_whitelist": ""}) as container,
        ):
            yield container
    except av.FFmpegError as error:
        what = f"{type(error).__name__} {error.strerror}"
        raise DecodeError(f"cannot be decoded: damaged, or of another kind than .{extension} ({what})") from error


def video_stream(container: InputContainer) -> av.VideoStream:
    """The first one; DecodeError where there is none."""
    if not container.streams.video:
        raise DecodeError("no video stream")
    return container.streams.video[0]


def _shown(container: InputContainer, extension: str, fps: float) -> Iterator[av.VideoFrame]:
    """The one frame of an image; a video's frames at the rate asked for."""
    stream = video_stream(container)
    frames = container.decode(stream)
    if extension in IMAGE_EXTENSIONS:
        return islice(frames, 1)
    return on_screen(checked(frames), fps=fps, default_rate=float(stream.average_rate or fps))


def _pixel_aspect(container: InputContainer) -> float:
    return float(video_stream(container).sample_aspect_ratio or 1)


@dataclass(frozen=True, kw_only=True)
class _Times:
    """When frames are shown, in seconds and in order, and how long the last one stays."""

    at: list[Fraction]
    hold: Fraction

    @staticmethod
    def of(shown: Iterable[av.VideoFrame | av.Packet]) -> "_Times":
        spans = sorted(
            (one.pts * one.time_base, (one.duration or 0) * one.time_base)
            for one in shown
            if one.pts is not None and one.time_base
        )
        at = [start for start, _ in spans]
        hold = spans[-1][1] if spans else Fraction(0)
        return _Times(at=at, hold=hold or (at[-1] - at[-2] if len(at) > 1 else Fraction(0)))

    def count(self, fps: float) -> int:
        """Frames that `on_screen` makes of them; 0 where nothing has a time stamp."""
        if not self.at:
            return 0
        end = float(self.at[-1] - self.at[0]) + min(float(self.hold), _LONGEST_HOLD_S)
        return max(1, math.ceil((end - _TIME_TOLERANCE_S) * fps))


def _packet_times(data: bytes, extension: str) -> _Times:
    """Those of all packets; nothing is decoded."""
    with opened(data, extension) as container:
        return _Times.of(container.demux(video_stream(container)))


def _frame_times(data: bytes, extension: str) -> _Times:
    """Those of all frames as they are decoded."""
    with opened(data, extension) as container:
        return _Times.of(checked(container.decode(video_stream(container))))


def native_rate(times: list[Fraction]) -> float | None:
    """Frames a second from the median interval between frames; None where there is no interval.

    Intervals that differ from the median by no more than rounding are averaged, since containers that round time
    stamps to milliseconds make 41 and 42 ms of 24 frames/s.
    """
    steps = sorted(after - before for before, after in pairwise(times) if after > before)
    if not steps:
        return None
    median = steps[len(steps) // 2]
    rounding = min(Fraction(_TIME_TOLERANCE_S), median / 4)
    near = [step for step in steps if abs(step - median) <= rounding]
    return float(len(near) / sum(near))


def checked(frames: Iterator[av.VideoFrame]) -> Iterator[av.VideoFrame]:
    """Refuse what the decoder patched up."""
    for number, frame in enumerate(frames):
        if frame.is_corrupt:
            raise DecodeError(f"damaged frame: number {number} at {frame.time} s")
        yield frame


def on_screen(frames: Iterator[av.VideoFrame], *, fps: float, default_rate: float) -> Iterator[av.VideoFrame]:
    """The frame on screen at 0, 1/fps, 2/fps, ... after the first, whatever the rate of `frames`, even or not.

    The last frame stays as long as its own duration says, else as long as the one before, else 1/default_rate.
    """
    shown: av.VideoFrame | None = None
    start, ticks = 0.0, 0
    hold = 1.0 / float(default_rate)
    for frame in frames:
        if frame.time is None:
            raise DecodeError("no time stamps")
        if shown is None:
            start = frame.time
        else:
            hold = frame.time - shown.time
            if not 0.0 <= hold <= _LONGEST_HOLD_S:
                raise DecodeError(f"broken time stamps: {frame.time:.3f} s follows {shown.time:.3f} s")
            while ticks / fps < frame.time - start - _TIME_TOLERANCE_S:
                yield shown
                ticks += 1
        shown = frame
    if shown is None:
        raise DecodeError("no frames")
    if shown.duration and shown.time_base:
        hold = min(float(shown.duration * shown.time_base), _LONGEST_HOLD_S)
    end = shown.time - start + hold
    while ticks / fps < end - _TIME_TOLERANCE_S or ticks == 0:
        yield shown
        ticks += 1


def is_sideways(frame: av.VideoFrame) -> bool:
    """Whether a player turns its rows into columns."""
    return frame.rotation % 180 != 0


def _fit(frame: av.VideoFrame, pixel_aspect: float, fit_of: Callable[[int, int], Fit]) -> Fit:
    height, width = frame.height, round(frame.width * pixel_aspect)
    if is_sideways(frame):
        height, width = width, height
    try:
        return fit_of(height, width)
    except ValueError as error:
        raise DecodeError(str(error)) from error


def _picture(frame: av.VideoFrame, fit: Fit, reformatter: VideoReformatter) -> np.ndarray:
    """One upright frame `[H, W, 3]` uint8."""
    height, width = fit.scaled_height, fit.scaled_width
    if is_sideways(frame):
        height, width = width, height
    scaled = reformatter.reformat(frame, width=width, height=height, format="rgb24", interpolation="BICUBIC")
    # `rotation` is what the file asks the player to turn it by, counterclockwise.
    upright_HW3 = np.rot90(scaled.to_ndarray(), k=round(frame.rotation / 90) % 4)
    top, left = (fit.scaled_height - fit.height) // 2, (fit.scaled_width - fit.width) // 2
    return np.ascontiguousarray(upright_HW3[top : top + fit.height, left : left + fit.width])
