"""Cut a decoded video into shots by the colour histograms of tiny frames.

A cut is a jump between neighbouring histograms that is both large and lonely: camera moves and zooms change the
histogram too, but in every frame around them, so a jump is compared with the mean of its four neighbours. A flash is no
cut: after a few frames the picture is what it was. Blank frames (a fade's black) belong to no shot. A dissolve is no
cut: it stays inside one shot.

Shapes: H, W height and width of the tiny frame, K histogram values.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, TypeVar

import av
import numpy as np
from av.video.reformatter import VideoReformatter

TINY_WIDTH, TINY_HEIGHT = 64, 36
_BINS_OF_CHANNEL = (24, 48, 48)  # Y, U, V: the chroma planes of real footage fill a fraction of their range
_LOOK = 2  # neighbours on each side that say whether a jump is lonely
_LONGEST_FLASH = 4  # frames; the detector is as many frames late, and one more


@dataclass(frozen=True, kw_only=True)
class SceneConfig:
    """Thresholds in units of histogram distance (0 equal, 1 disjoint)."""

    min_jump: float = 0.1
    min_ratio: float = 3.8
    ratio_floor: float = 0.01
    blank_luma_std: float = 2.0
    max_flash_return: float = 0.4
    """What before and after a flash may still differ by, as a share of its jump."""


@dataclass(frozen=True, kw_only=True)
class Signature:
    """What the detector keeps of a frame: a smoothed colour histogram (sums to 1) and whether nothing is to be seen."""

    histogram_K: np.ndarray
    is_blank: bool


class Signed(Protocol):
    """Anything that carries a signature (a frame waiting to be encoded; a bare signature in a test)."""

    @property
    def signature(self) -> Signature: ...


SignedT = TypeVar("SignedT", bound=Signed)


def sign(yuv_3HW: np.ndarray, config: SceneConfig) -> Signature:
    """Signature of one uint8 YUV 4:4:4 frame."""
    planes = []
    for plane_HW, bins in zip(yuv_3HW, _BINS_OF_CHANNEL, strict=True):
        counts = np.bincount((plane_HW.ravel().astype(np.uint16) * bins) >> 8, minlength=bins)
        # Smoothing keeps a small drift of brightness across a bin's edge from looking like a jump.
        padded = np.concatenate([counts[:1], counts, counts[-1:]])
        planes.append((padded[:-2] + 2 * padded[1:-1] + padded[2:]) / (12 * plane_HW.size))
    return Signature(
        histogram_K=np.concatenate(planes), is_blank=bool(yuv_3HW[0].std(dtype=np.float64) < config.blank_luma_std)
    )


class TinyFrames:
    """Shrinks decoded frames to the detector's size."""

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        """uint8 [3, H, W] of YUV 4:4:4."""
        tiny = self._reformatter.reformat(
            frame, width=TINY_WIDTH, height=TINY_HEIGHT, format="yuv444p", interpolation="AREA"
        )
        return tiny.to_ndarray()


def _distance(before: Signature, after: Signature) -> float:
    return 0.5 * float(np.abs(before.histogram_K - after.histogram_K).sum())


def _is_cut(past: Sequence[Signature], coming: Sequence[Signature], config: SceneConfig) -> bool:
    """Whether a shot begins with the first of `coming`, both in order of time."""
    jump = _distance(past[-1], coming[0])
    if jump < config.min_jump:
        return False
    around = [*past[-1 - _LOOK :], *coming[: 1 + _LOOK]]
    neighbours = (sum(_distance(a, b) for a, b in pairwise(around)) - jump) / (2 * _LOOK)
    if jump < config.min_ratio * (neighbours + config.ratio_floor):
        return False
    # Either side of a flash: the same picture is to be seen beyond it.
    returns = [_distance(past[-1], later) for later in coming[1 : 1 + _LONGEST_FLASH]]
    returns += [_distance(earlier, coming[0]) for earlier in past[-1 - _LONGEST_FLASH : -1]]
    return not any(distance < config.max_flash_return * jump for distance in returns)


def _is_white_of_a_flash(past: Sequence[Signature], coming: Sequence[Signature], config: SceneConfig) -> bool:
    """Whether the blank first of `coming` stands between two pictures that are the same, not far apart."""
    for back, earlier in enumerate(reversed(past)):
        if not earlier.is_blank:
            later = [signature for signature in coming[1 : 1 + _LONGEST_FLASH - back] if not signature.is_blank]
            return any(_distance(earlier, signature) < config.min_jump for signature in later[:1])
    return False


def split_shots(frames: Iterable[SignedT], config: SceneConfig) -> Iterator[tuple[int, SignedT]]:
    """(shot number, frame) for every frame that is not blank, in order and a few frames late. Shots count from 0."""
    past: deque[Signature] = deque(maxlen=1 + _LONGEST_FLASH)
    waiting: deque[SignedT] = deque()
    shot, seen_blank = -1, True

    def settle() -> Iterator[tuple[int, SignedT]]:
        nonlocal shot, seen_blank
        coming = [frame.signature for frame in waiting]
        frame = waiting.popleft()
        if coming[0].is_blank and (seen_blank or not _is_white_of_a_flash(tuple(past), coming, config)):
            seen_blank = True
        else:
            shot += seen_blank or _is_cut(tuple(past), coming, config)
            seen_blank = False
            yield shot, frame
        past.append(coming[0])

    for frame in frames:
        waiting.append(frame)
        if len(waiting) > 1 + _LONGEST_FLASH:
            yield from settle()
    while waiting:
        yield from settle()
