"""The lattice of sizes that codec and patching allow, and how a clip comes to lie on it."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

Frame = TypeVar("Frame")

_RESOLUTION_WEIGHT = 0.25
"""Losing 4 % of the resolution weighs as much as losing 1 % of the picture."""


@dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """How clips are cut to frames a codec takes."""

    fps: float | None
    """All videos are resampled to this rate, by time. None keeps each one's own, the median of its frame intervals."""
    max_frames: int
    """Longer clips are cut into consecutive windows of at most this many frames, 1 + 4k."""
    min_frames: int = 5
    """Shorter videos, and tails of windows, are dropped and reported. Images are one-frame clips whatever it says."""
    max_area: int | None = None
    """Pixels per frame above which a clip is downscaled."""
    max_tokens: int | None = None
    """Tokens of a window above which its clip is downscaled."""
    square: int | None = None
    """For comparison with training on squares: crop the largest centred one and scale it to this side, up or down."""
    strides: tuple[int, int, int] = (4, 8, 8)
    """Frames, rows and columns of video per latent value."""
    patch_size: tuple[int, int, int] = (1, 2, 2)

    def __post_init__(self) -> None:
        if self.fps is not None and not self.fps > 0:
            raise ValueError(f"clip.fps={self.fps} must be above 0, or null to keep the clips' own rates")
        if self.patch_size[0] != 1:
            raise ValueError(
                f"clip.patch_size={self.patch_size} must be 1 in time, since a clip has 1 + k latent frames"
            )
        for name in ("min_frames", "max_frames"):
            frames = getattr(self, name)
            if frames < 1 or self.snap_frames(frames) != frames:
                below = self.snap_frames(max(frames, 1))
                raise ValueError(
                    f"clip.{name}={frames} must be 1 + {self.strides[0]}k: take {below} or {below + self.strides[0]}"
                )
        if self.min_frames > self.max_frames:
            raise ValueError(f"clip.min_frames={self.min_frames} must not be above clip.max_frames={self.max_frames}")
        self._check_sizes()

    def _check_sizes(self) -> None:
        height, width = self.cell
        if self.square is not None:
            multiple = math.lcm(height, width)
            if self.square < 1 or self.square % multiple:
                below = max(self.square // multiple, 1) * multiple
                raise ValueError(
                    f"clip.square={self.square} must be a multiple of {multiple}: take {below} or {below + multiple}"
                )
            height = width = self.square
        tokens = self.tokens(self.max_frames, height, width)
        for name, least in (("max_area", height * width), ("max_tokens", tokens)):
            limit = getattr(self, name)
            if limit is not None and limit < least:
                raise ValueError(
                    f"clip.{name}={limit} must be at least {least}, which clip.max_frames={self.max_frames} frames "
                    f"of {height} x {width} pixels take"
                )

    @property
    def cell(self) -> tuple[int, int]:
        """Pixels (rows, columns) under one token."""
        return self.strides[1] * self.patch_size[1], self.strides[2] * self.patch_size[2]

    def snap_frames(self, frames: int) -> int:
        """The largest 1 + k * stride that is not above `frames` (at least 1)."""
        return 1 + (frames - 1) // self.strides[0] * self.strides[0]

    def tokens(self, frames: int, height: int, width: int) -> int:
        """Tokens of a clip on the lattice."""
        return (1 + (frames - 1) // self.strides[0]) * (height // self.cell[0]) * (width // self.cell[1])


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Scale a frame to (scaled_height, scaled_width), then crop its middle to (height, width)."""

    height: int
    width: int
    scaled_height: int
    scaled_width: int


def fit_frame(height: int, width: int, *, frames: int, config: ClipConfig) -> Fit:
    """Where a frame of `height` x `width` square pixels lands on the lattice, in a window of `frames` frames.

    Never enlarged, and within `max_area` and `max_tokens` not scaled at all: less than a cell is cropped in height and
    in width. Above them it is downscaled to cover the lattice size that loses least picture and resolution of those
    that crop less than a cell; the aspect ratio is kept. With `square`, see there.
    Raises ValueError for a frame that no lattice size fits.
    """
    if config.square is not None:
        return cover_frame(height, width, (config.square, config.square))
    rows, columns = config.cell
    limit = _area_limit(height, width, frames, config)
    whole = (height // rows * rows, width // columns * columns)
    if min(whole) > 0 and whole[0] * whole[1] <= limit:
        return Fit(height=whole[0], width=whole[1], scaled_height=height, scaled_width=width)
    ideal = min(1.0, math.sqrt(limit / (height * width)))
    best: tuple[float, Fit] | None = None
    for size in _sizes_near(height, width, ideal, config):
        if size[1] > width or size[0] * size[1] > limit:
            continue
        fit = cover_frame(height, width, size)
        if fit.scaled_height - fit.height >= rows or fit.scaled_width - fit.width >= columns:
            continue
        cost = _loss(height, width, size, ideal)
        if best is None or cost < best[0]:
            best = (cost, fit)
    if best is None:
        raise ValueError(
            f"too small: {width} x {height} pixels within {limit} pixels a frame hold no "
            f"multiple of {columns} x {rows} at this aspect ratio"
        )
    return best[1]


def _sizes_near(height: int, width: int, ideal: float, config: ClipConfig) -> Iterator[tuple[int, int]]:
    """Lattice sizes whose aspect ratio is about that of the frame, from half of the ideal height on."""
    rows, columns = config.cell
    highest = min(height // rows, math.ceil(height * ideal / rows))
    for h in range(max(1, highest // 2), highest + 1):
        across = h * rows / height * width / columns
        for w in sorted({max(1, math.floor(across)), math.ceil(across)}):
            yield h * rows, w * columns


def _area_limit(height: int, width: int, frames: int, config: ClipConfig) -> int:
    limits = [height * width]
    if config.max_area is not None:
        limits.append(config.max_area)
    if config.max_tokens is not None:
        latent_frames = 1 + (frames - 1) // config.strides[0]
        limits.append(config.max_tokens // latent_frames * config.cell[0] * config.cell[1])
    return min(limits)


def cover_frame(height: int, width: int, size: tuple[int, int]) -> Fit:
    """The smallest scaling of `height` x `width` square pixels that covers `size`, up or down."""
    scale = max(size[0] / height, size[1] / width)
    scaled = (max(size[0], round(height * scale)), max(size[1], round(width * scale)))
    return Fit(height=size[0], width=size[1], scaled_height=scaled[0], scaled_width=scaled[1])


def _loss(height: int, width: int, size: tuple[int, int], ideal: float) -> float:
    """What is lost of picture and resolution where `size` is covered."""
    scale = max(size[0] / height, size[1] / width)
    cropped = 1 - size[0] * size[1] / (height * width * scale**2)
    blurred = max(0.0, 1 - (scale / ideal) ** 2)
    return cropped + _RESOLUTION_WEIGHT * blurred


def cut_windows(frames: int, config: ClipConfig, *, is_image: bool = False) -> list[tuple[int, int]]:
    """Consecutive windows (first frame, frames) of a clip, each 1 + 4k long; a tail below `min_frames` is dropped."""
    shortest = 1 if is_image else config.min_frames
    windows, start = [], 0
    while frames - start >= shortest:
        length = min(config.max_frames, config.snap_frames(frames - start))
        windows.append((start, length))
        start += length
    return windows


@dataclass(frozen=True, kw_only=True)
class Window(Generic[Frame]):
    """Consecutive frames of a clip, 1 + 4k of them."""

    first: int
    """Number of its first frame in the clip."""
    frames: list[Frame]
    is_only: bool
    """Whether the clip has no other window."""


def stream_windows(frames: Iterable[Frame], config: ClipConfig, *, is_image: bool = False) -> Iterator[Window[Frame]]:
    """The windows that `cut_windows` names, as the frames come; `max_frames + min_frames` of them are held at most."""
    shortest = 1 if is_image else config.min_frames
    held: list[Frame] = []
    first = 0
    for frame in frames:
        held.append(frame)
        # Only now is another window sure to follow, which the name of the first one depends on.
        if len(held) == config.max_frames + shortest:
            yield Window(first=first, frames=_taken(held, config.max_frames), is_only=False)
            first += config.max_frames
    windows = cut_windows(len(held), config, is_image=is_image)
    for _, length in windows:
        yield Window(first=first, frames=_taken(held, length), is_only=first == 0 and len(windows) == 1)
        first += length


def _taken(held: list[Frame], count: int) -> list[Frame]:
    taken = held[:count]
    del held[:count]
    return taken
