"""Packs: samples laid end to end up to a token budget, planned window by window without reading anything."""

import hashlib
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from data.manifest import Manifest
from data.order import EpochOrder, keyed_permutation

_WINDOW_STRIDE = 1 << 20
"""More packs than any window holds, so that one integer says window and pack."""
_WINDOWS_KEPT = 4


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where the next pack comes from. All that has to be saved of a data stream, whatever the number of ranks."""

    epoch: int = 0
    pack: int = 0
    """A cursor, not a count: window * 2^20 + pack inside the window, so that resuming replays nothing."""

    @property
    def window(self) -> int:
        return self.pack // _WINDOW_STRIDE

    @property
    def index(self) -> int:
        """Pack inside the window."""
        return self.pack % _WINDOW_STRIDE


@dataclass(frozen=True, kw_only=True)
class PlannedPack:
    """Samples of one pack (rows of the manifest), and the epoch they are drawn in."""

    epoch: int
    rows: tuple[int, ...]


class PackPlan:
    """Which samples are in which pack, for ever: epoch after epoch, each sample exactly once in each.

    A pure function of (manifest, seed, tokens_per_pack, window); knows nothing of ranks.
    """

    def __init__(self, manifest: Manifest, *, seed: int, tokens_per_pack: int, window: int = 4096) -> None:
        if len(manifest) == 0:
            raise ValueError(f"{manifest.folder} has no sample in this split: encode more clips, or change the split")
        self.manifest, self.seed, self.tokens_per_pack = manifest, seed, tokens_per_pack
        self._tokens = manifest.video_tokens
        largest = int(np.argmax(self._tokens))
        if self._tokens[largest] > tokens_per_pack:
            too_long = int((self._tokens > tokens_per_pack).sum())
            raise ValueError(
                f"sample {manifest.keys([largest])[0]} has {self._tokens[largest]} tokens, above "
                f"data.tokens_per_pack={tokens_per_pack} (so have {too_long} of {len(manifest)} samples): raise it to "
                f"at least {self._tokens[largest]}, or encode with clip.max_tokens={tokens_per_pack}"
            )
        self.settings_hash = hashlib.sha256(f"first-fit {tokens_per_pack=} {window=}".encode()).hexdigest()
        self._identity = f"{manifest.hash} {self.settings_hash}"
        self._order = EpochOrder(manifest.shard_of_row, seed=seed, identity=self._identity, window=window)
        self._windows: OrderedDict[tuple[int, int], list[tuple[int, ...]]] = OrderedDict()

    def step(self, position: Position, packs_per_step: int) -> tuple[list[PlannedPack], Position]:
        """The next `packs_per_step` packs and the position after them. A step may run over the end of an epoch."""
        packs: list[PlannedPack] = []
        epoch, window, index = position.epoch, position.window, position.index
        while len(packs) < packs_per_step:
            here = self.window_packs(epoch, window)
            if index > len(here):
                raise ValueError(f"{position} is not a position of this data plan: was it saved with another one?")
            take = here[index : index + packs_per_step - len(packs)]
            packs += [PlannedPack(epoch=epoch, rows=rows) for rows in take]
            index += len(take)
            if index == len(here):
                window, index = window + 1, 0
            if window == self._order.num_windows(epoch):
                epoch, window = epoch + 1, 0
        return packs, Position(epoch=epoch, pack=window * _WINDOW_STRIDE + index)

    def window_packs(self, epoch: int, window: int) -> list[tuple[int, ...]]:
        """All packs of one window, in the order they are trained on; the last few windows are kept."""
        if window >= self._order.num_windows(epoch):
            raise ValueError(
                f"epoch {epoch} has {self._order.num_windows(epoch)} windows, so window {window} is not a position "
                "of this data plan: was it saved with another one?"
            )
        if (epoch, window) not in self._windows:
            rows = self._order.rows(epoch, window)
            packs = first_fit(self._tokens[rows], self.tokens_per_pack)
            shuffled = keyed_permutation(len(packs), "packs", self.seed, self._identity, epoch, window)
            self._windows[epoch, window] = [tuple(int(row) for row in rows[packs[p]]) for p in shuffled]
            while len(self._windows) > _WINDOWS_KEPT:
                self._windows.popitem(last=False)
        return self._windows[epoch, window]

    def tokens(self, pack: PlannedPack) -> int:
        """Tokens of a pack, padding not counted."""
        return int(self._tokens[list(pack.rows)].sum())

    def packs_in_epoch(self, epoch: int = 0) -> int:
        """Number of packs of a whole epoch; plans all of it."""
        return sum(len(self.window_packs(epoch, window)) for window in range(self._order.num_windows(epoch)))


def first_fit(tokens: np.ndarray, budget: int) -> list[list[int]]:
    """Put each item, in order, into the first pack that has room for it; returns item indices per pack."""
    packs: list[list[int]] = []
    room = np.empty(len(tokens), dtype=np.int64)
    smallest, first_open = int(tokens.min()), 0
    for item, size in enumerate(tokens.tolist()):
        fitting = room[first_open : len(packs)] >= size
        offset = int(fitting.argmax()) if len(fitting) else 0
        if len(fitting) and fitting[offset]:
            pack = first_open + offset
        else:
            pack = len(packs)
            packs.append([])
            room[pack] = budget
        packs[pack].append(item)
        room[pack] -= size
        while first_open < len(packs) and room[first_open] < smallest:
            first_open += 1
    return packs
