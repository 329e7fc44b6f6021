"""Cut a decoded video into shots by the colour histograms of tiny frames.

A cut is a jump between neighbouring histograms that is both large and lonely: camera moves and zooms change the
histogram too, but in every frame around them, so a jump is compared with the mean of its four neighbours. Blank frames
(a fade's black) belong to no shot. A dissolve is no cut: it stays inside one shot.

Shapes: H, W height and width of the tiny frame, K histogram values.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

import av
import numpy as np
from av.video.reformatter import VideoReformatter

TINY_WIDTH, TINY_HEIGHT = 64, 36
_BINS_OF_CHANNEL = (24, 48, 48)  # Y, U, V: the chroma planes of real footage fill a fraction of their range
_LOOK = 2  # neighbours on each side that say whether a jump is lonely


@dataclass(frozen=True, kw_only=True)
class SceneConfig:
    """Thresholds in units of histogram distance (0 equal, 1 disjoint)."""

    min_jump: float = 0.1
    min_ratio: float = 3.8
    ratio_floor: float = 0.01
    blank_luma_std: float = 3.0


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


def _is_cut(jumps: list[float], config: SceneConfig) -> bool:
    """Whether the middle one of 2 * _LOOK + 1 successive jumps is a cut."""
    jump = jumps[_LOOK]
    neighbours = (sum(jumps) - jump) / (2 * _LOOK)
    return jump >= config.min_jump and jump >= config.min_ratio * (neighbours + config.ratio_floor)


def split_shots(frames: Iterable[SignedT], config: SceneConfig) -> Iterator[tuple[int, SignedT]]:
    """(shot number, frame) for every frame that is not blank, in order and `_LOOK` frames late. Shots count from 0."""
    jumps: deque[float] = deque([0.0] * (2 * _LOOK), maxlen=2 * _LOOK + 1)
    waiting: deque[SignedT] = deque()
    shot, previous, seen_blank = -1, None, True

    def settle() -> Iterator[tuple[int, SignedT]]:
        nonlocal shot, seen_blank
        frame = waiting.popleft()
        if frame.signature.is_blank:
            seen_blank = True
            return
        shot += seen_blank or _is_cut(list(jumps), config)
        seen_blank = False
        yield shot, frame

    for frame in frames:
        jumps.append(0.0 if previous is None else _distance(previous, frame.signature))
        previous = frame.signature
        waiting.append(frame)
        if len(waiting) > _LOOK:
            yield from settle()
    while waiting:
        jumps.append(0.0)
        yield from settle()
