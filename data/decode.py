"""Bytes of a video or an image to frames at one rate, on the lattice. By time stamps, never by frame numbers."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from pathlib import Path

import av
import numpy as np
import torch
from av.container import InputContainer
from av.video.reformatter import VideoReformatter
from torch import Tensor

from data.lattice import ClipConfig, Fit, cover_frame, cut_windows, fit_frame

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


class DecodeError(ValueError):
    """Why a clip cannot be used; the message is a reason for the report."""


@dataclass(frozen=True, kw_only=True)
class DecodedClip:
    """All frames of a clip at the target rate; `frames_T3HW` uint8, sizes on the lattice, T anything >= 1."""

    frames_T3HW: Tensor
    native_height: int
    native_width: int


def decode_clip(data: bytes, config: ClipConfig, *, extension: str) -> DecodedClip:
    """Decode, resample to `config.fps` by time, scale and crop. Raises DecodeError with the reason."""
    longest = 1 if extension in IMAGE_EXTENSIONS else _longest_window(data, config, extension)
    with opened(data, extension) as container:
        return _collect(
            _shown(container, extension, config.fps),
            video_stream(container),
            lambda height, width: fit_frame(height, width, frames=longest, config=config),
        )


def decode_first_frames(data: bytes, size: tuple[int, int, int], *, fps: float, extension: str) -> Tensor:
    """The first frames, at most as many as asked for, scaled to cover (frames, height, width) and cropped.

    uint8 `[T, 3, H, W]`; what comes after them is not decoded. Raises DecodeError with the reason.
    """
    frames, height, width = size
    with opened(data, extension) as container:
        shown = islice(_shown(container, extension, fps), frames)
        decoded = _collect(shown, video_stream(container), lambda h, w: cover_frame(h, w, (height, width)))
    return decoded.frames_T3HW


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


def _longest_window(data: bytes, config: ClipConfig, extension: str) -> int:
    """Frames of the longest window the clip will give, from its packets' time stamps; the headers may lie."""
    with opened(data, extension) as container:
        packets = container.demux(video_stream(container))
        times = sorted(float(p.pts * (p.time_base or 0)) for p in packets if p.pts is not None)
    if not times:
        return config.max_frames
    span = times[-1] - times[0]
    frames = span * config.fps * len(times) / max(len(times) - 1, 1)
    windows = cut_windows(round(min(frames, config.max_frames)) + 1, config, is_image=True)
    return windows[0][1]


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


def _collect(shown: Iterator[av.VideoFrame], stream: av.VideoStream, fit_of: Callable[[int, int], Fit]) -> DecodedClip:
    """Scale and crop each shown frame; one that is shown again is not converted again.

    `fit_of` says where an upright picture of so many rows and columns of square pixels lands.
    """
    reformatter, pixel_aspect = VideoReformatter(), float(stream.sample_aspect_ratio or 1)
    pictures: list[np.ndarray] = []
    fit: Fit | None = None
    native = (0, 0)
    previous: av.VideoFrame | None = None
    for frame in shown:
        if fit is None:
            native = (frame.height, frame.width)
            fit = _fit(frame, pixel_aspect, fit_of)
        if (frame.height, frame.width) != native:
            raise DecodeError(f"frame size changes: {native[1]}x{native[0]} to {frame.width}x{frame.height}")
        pictures.append(pictures[-1] if frame is previous else _picture(frame, fit, reformatter))
        previous = frame
    if not pictures:
        raise DecodeError("no frames")
    stacked_THW3 = torch.from_numpy(np.stack(pictures))
    return DecodedClip(
        frames_T3HW=stacked_THW3.permute(0, 3, 1, 2).contiguous(), native_height=native[0], native_width=native[1]
    )


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
