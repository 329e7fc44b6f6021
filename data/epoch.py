"""The order of samples in an epoch: a pure function of (seed, what there is, window), one window at a time.

What is shuffled are pieces: a few neighbouring rows of one shard, so that reads stay sequential. Each bucket's pieces
are shuffled and spread evenly over the epoch; a window is the next pieces that together hold `window` samples, and its
samples are shuffled. So every window is a fair sample of the data set, and cost and memory of a window do not grow
with the data set, but for a few numbers a piece.
"""

import hashlib
from dataclasses import dataclass

import numpy as np

PIECES_PER_WINDOW = 32
LEAST_PIECE = 8
_UNIT = 1 << 32


def keyed_words(length: int, *key: int | str) -> np.ndarray:
    """Random uint64 words that depend on `key` alone.

    The raw stream of a counter-based generator, which numpy keeps fixed over its versions (NEP 19), unlike
    `Generator.permutation`.
    """
    digest = hashlib.sha256("\x1f".join(f"{type(part).__name__}:{part}" for part in key).encode()).digest()
    return np.random.Philox(key=int.from_bytes(digest[:16], "big")).random_raw(length)


def keyed_permutation(length: int, *key: int | str) -> np.ndarray:
    """A permutation of `range(length)` that depends on `key` alone."""
    return np.argsort(keyed_words(length, *key), kind="stable")


@dataclass(frozen=True, kw_only=True)
class Stretches:
    """What there is to be ordered: runs of rows, with a bucket and a weight each. Arrays of one length."""

    first: np.ndarray
    count: np.ndarray
    bucket: np.ndarray
    """Numbers; rows of one bucket are spread evenly."""
    weight: np.ndarray
    """How often each row comes in an epoch, on average."""


class EpochOrder:
    """Windows of row numbers for any epoch."""

    def __init__(self, stretches: Stretches, *, seed: int, identity: str, window: int) -> None:
        """`identity` is the hash of the data and of the settings that shape the order. Weights must be above 0."""
        if window < 1:
            raise ValueError(f"data.window={window} must be at least 1")
        assert len(stretches.first) > 0 and bool((stretches.weight > 0).all())
        self.seed, self.identity, self.window = seed, identity, window
        self._pieces = _cut(stretches, max(LEAST_PIECE, window // PIECES_PER_WINDOW))
        self._epoch, self._order, self._ends = -1, np.empty(0, np.int64), np.empty(0, np.int64)

    def num_windows(self, epoch: int) -> int:
        """Windows of an epoch; it varies a little where pieces differ in length."""
        self._turn_to(epoch)
        return len(self._ends)

    def draw(self, epoch: int, window: int) -> tuple[np.ndarray, np.ndarray]:
        """The rows of a window in order, and the visit that each is: how often it came before, in any epoch.

        A row of weight above 1 may come more than once.
        """
        self._turn_to(epoch)
        start = self._ends[window - 1] if window else 0
        pieces = self._order[start : self._ends[window]]
        first, count = self._pieces.first[pieces], self._pieces.count[pieces]
        rows = np.repeat(first - np.cumsum(count) + count, count) + np.arange(count.sum())
        visits = np.full(len(rows), epoch, dtype=np.int64)
        if bool((self._pieces.weight[pieces] != 1).any()):
            before, after = self._visits(pieces, epoch), self._visits(pieces, epoch + 1)
            copies = after - before
            rows = np.repeat(rows, copies)
            visits = np.repeat(before - np.cumsum(copies) + copies, copies) + np.arange(copies.sum())
        order = keyed_permutation(len(rows), "samples", self.seed, self.identity, epoch, window)
        return rows[order], visits[order]

    def _visits(self, pieces: np.ndarray, epochs: int) -> np.ndarray:
        """How often each row of these pieces comes in the first epochs: their number times its weight, within 1."""
        counts = []
        for piece in pieces.tolist():
            words = keyed_words(int(self._pieces.count[piece]), "copies", self.seed, self.identity, piece)
            # 32 bits, so that sums of them are exact and a whole weight gives whole numbers.
            phase = (words >> np.uint64(32)) / _UNIT
            counts.append(np.floor(float(self._pieces.weight[piece]) * epochs + phase))
        return np.concatenate(counts).astype(np.int64)

    def _turn_to(self, epoch: int) -> None:
        """Order the pieces of an epoch; the last epoch asked for is kept."""
        if self._epoch == epoch:
            return
        words = keyed_words(len(self._pieces.first), "pieces", self.seed, self.identity, epoch)
        self._order = _spread(self._pieces.bucket, words)
        sizes = (self._pieces.count * self._pieces.weight)[self._order]
        self._ends, self._epoch = _window_ends(np.cumsum(sizes), self.window), epoch


def _cut(stretches: Stretches, longest: int) -> Stretches:
    """The stretches in pieces of at most `longest` rows."""
    pieces = -(-stretches.count // longest)
    of = np.repeat(np.arange(len(pieces)), pieces)
    number = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    first = stretches.first[of] + number * longest
    return Stretches(
        first=first,
        count=np.minimum(longest, stretches.first[of] + stretches.count[of] - first),
        bucket=stretches.bucket[of],
        weight=stretches.weight[of],
    )


def _spread(bucket: np.ndarray, words: np.ndarray) -> np.ndarray:
    """An order of pieces: each bucket's shuffled, and at even distances from the first to the last.

    Piece j of n of a bucket lands somewhere in the j-th of n equal parts of the epoch.
    """
    within = np.lexsort((words, bucket))
    counts = np.bincount(bucket)
    rank = np.arange(len(bucket)) - np.repeat(np.cumsum(counts) - counts, counts)
    jitter = (words[within] & np.uint64(_UNIT - 1)) / _UNIT
    return within[np.argsort((rank + jitter) / np.repeat(counts, counts), kind="stable")]


def _window_ends(totals: np.ndarray, window: int) -> np.ndarray:
    """Close a window as soon as it holds `window` samples; the last one may hold fewer."""
    ends: list[int] = []
    done = 0.0
    while not ends or ends[-1] < len(totals):
        end = min(int(np.searchsorted(totals, done + window)) + 1, len(totals))
        ends.append(end)
        done = float(totals[end - 1])
    return np.asarray(ends, dtype=np.int64)
