"""The order of samples in an epoch: a pure function of (seed, manifest, window), one window at a time.

A window is a few whole shards, drawn in a shuffled order of all shards until it holds `window` samples; its samples
are shuffled together. Cost and memory of one window do not grow with the data set, except for one number per shard.
"""

import hashlib

import numpy as np


def keyed_permutation(length: int, *key: int | str) -> np.ndarray:
    """A permutation of `range(length)` that depends on `key` alone.

    Sorts the raw stream of a counter-based generator, which numpy keeps fixed over its versions (NEP 19), unlike
    `Generator.permutation`.
    """
    digest = hashlib.sha256("\x1f".join(f"{type(part).__name__}:{part}" for part in key).encode()).digest()
    words = np.random.Philox(key=int.from_bytes(digest[:16], "big")).random_raw(length)
    return np.argsort(words, kind="stable")


class EpochOrder:
    """Windows of row indices for any epoch. `shard_of_row` is sorted by shard or not; rows keep their numbers."""

    def __init__(self, shard_of_row: np.ndarray, *, seed: int, identity: str, window: int) -> None:
        """`identity` is the hash of the manifest and of the settings that shape the order."""
        if window < 1:
            raise ValueError(f"data.window={window} must be at least 1")
        assert len(shard_of_row) > 0
        self.seed, self.identity, self.window = seed, identity, window
        self._rows = np.argsort(shard_of_row, kind="stable")
        counts = np.bincount(shard_of_row)
        self._ends = np.cumsum(counts)
        self._starts = self._ends - counts
        self._windows: tuple[int, list[np.ndarray]] = (-1, [])

    def num_windows(self, epoch: int) -> int:
        """Windows of an epoch; it varies a little where shards differ in length."""
        return len(self._shard_windows(epoch))

    def rows(self, epoch: int, window: int) -> np.ndarray:
        """Row indices of one window of an epoch, in order."""
        shards = self._shard_windows(epoch)[window]
        rows = np.concatenate([self._rows[self._starts[s] : self._ends[s]] for s in shards])
        return rows[keyed_permutation(len(rows), "samples", self.seed, self.identity, epoch, window)]

    def _shard_windows(self, epoch: int) -> list[np.ndarray]:
        """Shards of each window of an epoch; the last epoch asked for is kept."""
        if self._windows[0] != epoch:
            shards = keyed_permutation(len(self._ends), "shards", self.seed, self.identity, epoch)
            counts = (self._ends - self._starts)[shards]
            self._windows = (epoch, np.split(shards, _window_ends(counts, self.window)[:-1]))
        return self._windows[1]


def _window_ends(counts: np.ndarray, window: int) -> list[int]:
    """Close a window as soon as it holds `window` samples; the last one may hold fewer."""
    totals = np.cumsum(counts)
    ends, done = [], 0
    while done < totals[-1]:
        end = int(np.searchsorted(totals, done + window))
        ends.append(min(end + 1, len(counts)))
        done = int(totals[ends[-1] - 1])
    return ends
