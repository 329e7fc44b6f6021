"""Pieces of a video: every shot, or part of one, that lies in a captioned stretch of time, as a clip of its own."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

from data.recode import ClipWriter, RecodeConfig, Recoded, SmallFrame

_TIME_TOLERANCE_S = 0.005


@dataclass(frozen=True, kw_only=True)
class Span:
    """A stretch of time of the source in seconds, `end_s` excluded. Spans may overlap."""

    start_s: float
    end_s: float


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One piece of a span; pieces of each span count from 0. `clip` None where it is too short to be one."""

    span: int
    number: int
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
    last_s = max(span.end_s for span in spans)
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
