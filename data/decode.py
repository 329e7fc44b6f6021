"""Bytes of a video or an image to frames at one rate, on the lattice. By time stamps, never by frame numbers."""

from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO

import av
import numpy as np
import torch
from av.container import InputContainer
from av.video.reformatter import VideoReformatter
from torch import Tensor

from data.lattice import ClipConfig, Fit, cut_windows, fit_frame

VIDEO_EXTENSIONS = ("mp4", "webm", "mkv", "mov", "avi", "gif")
IMAGE_EXTENSIONS = ("png", "jpg", "jpeg", "webp")
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


def decode_clip(data: bytes, config: ClipConfig, *, is_image: bool) -> DecodedClip:
    """Decode, resample to `config.fps` by time, scale and crop. Raises DecodeError with the reason."""
    try:
        longest = 1 if is_image else _longest_window(data, config)
        with av.open(BytesIO(data), "r") as container:
            stream = _video_stream(container)
            frames = container.decode(stream)
            if is_image:
                shown = iter([next(frames)])
            else:
                rate = float(stream.average_rate or config.fps)
                shown = on_screen(_checked(frames), fps=config.fps, default_rate=rate)
            pixel_aspect = float(stream.sample_aspect_ratio or 1)
            return _collect(shown, pixel_aspect, frames=longest, config=config)
    except DecodeError:
        raise
    except (av.FFmpegError, StopIteration) as error:
        raise DecodeError(f"cannot be decoded: {type(error).__name__} {error}".strip()) from error


def _video_stream(container: InputContainer) -> av.VideoStream:
    if not container.streams.video:
        raise DecodeError("no video stream")
    return container.streams.video[0]


def _longest_window(data: bytes, config: ClipConfig) -> int:
    """Frames of the longest window the clip will give, from its packets' time stamps; the headers may lie."""
    with av.open(BytesIO(data), "r") as container:
        stream = _video_stream(container)
        times = sorted(float(p.pts * (p.time_base or 0)) for p in container.demux(stream) if p.pts is not None)
    if not times:
        return config.max_frames
    span = times[-1] - times[0]
    frames = span * config.fps * len(times) / max(len(times) - 1, 1)
    windows = cut_windows(round(min(frames, config.max_frames)) + 1, config, is_image=True)
    return windows[0][1]


def _checked(frames: Iterator[av.VideoFrame]) -> Iterator[av.VideoFrame]:
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


def _collect(shown: Iterator[av.VideoFrame], pixel_aspect: float, *, frames: int, config: ClipConfig) -> DecodedClip:
    """Scale and crop each shown frame; one that is shown again is not converted again."""
    reformatter = VideoReformatter()
    pictures: list[np.ndarray] = []
    fit: Fit | None = None
    native = (0, 0)
    previous: av.VideoFrame | None = None
    for frame in shown:
        if fit is None:
            native = (frame.height, frame.width)
            fit = _fit(frame, pixel_aspect, frames=frames, config=config)
        if (frame.height, frame.width) != native:
            raise DecodeError(f"frame size changes: {native[1]}x{native[0]} to {frame.width}x{frame.height}")
        pictures.append(pictures[-1] if frame is previous else _picture(frame, fit, reformatter))
        previous = frame
    stacked_THW3 = torch.from_numpy(np.stack(pictures))
    return DecodedClip(
        frames_T3HW=stacked_THW3.permute(0, 3, 1, 2).contiguous(), native_height=native[0], native_width=native[1]
    )


def _is_sideways(frame: av.VideoFrame) -> bool:
    return frame.rotation % 180 != 0


def _fit(frame: av.VideoFrame, pixel_aspect: float, *, frames: int, config: ClipConfig) -> Fit:
    """Lattice size of the upright picture with square pixels."""
    height, width = frame.height, round(frame.width * pixel_aspect)
    if _is_sideways(frame):
        height, width = width, height
    try:
        return fit_frame(height, width, frames=frames, config=config)
    except ValueError as error:
        raise DecodeError(str(error)) from error


def _picture(frame: av.VideoFrame, fit: Fit, reformatter: VideoReformatter) -> np.ndarray:
    """One upright frame `[H, W, 3]` uint8."""
    height, width = fit.scaled_height, fit.scaled_width
    if _is_sideways(frame):
        height, width = width, height
    scaled = reformatter.reformat(frame, width=width, height=height, format="rgb24", interpolation="BICUBIC")
    # `rotation` is what the file asks the player to turn it by, counterclockwise.
    upright_HW3 = np.rot90(scaled.to_ndarray(), k=round(frame.rotation / 90) % 4)
    top, left = (fit.scaled_height - fit.height) // 2, (fit.scaled_width - fit.width) // 2
    return np.ascontiguousarray(upright_HW3[top : top + fit.height, left : left + fit.width])
