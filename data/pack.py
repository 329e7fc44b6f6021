"""Packs: samples laid end to end up to a token budget, planned window by window without reading anything."""

import bisect
import hashlib
from collections import OrderedDict
from dataclasses import dataclass, replace

import numpy as np

from data.balance import PackCost, balanced_order
from data.epoch import EpochOrder, keyed_permutation
from data.manifest import Manifest
from data.mixture import DataSet, MixConfig, mix_hash

ORDER_VERSION = 2
"""Raise it where the same data and settings come in another order than before: runs of the earlier one are told."""
_WINDOW_STRIDE = 1 << 20
"""More packs than any window holds, so that one integer says window and pack."""
_WINDOWS_KEPT = 4


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where the next pack comes from. All that has to be saved of a data stream, whatever the number of ranks."""

    epoch: int = 0
    pack: int = 0
    """A cursor, not a count: window * 2^20 + pack inside the window, so that resuming replays nothing."""
    stage: int = 0
    """Of the curriculum; each begins with an epoch 0 of its own."""
    step: int = 0
    tokens: int = 0
    """Steps and video tokens before this position, by which a curriculum goes on."""

    @property
    def window(self) -> int:
        return self.pack // _WINDOW_STRIDE

    @property
    def index(self) -> int:
        """Pack inside the window."""
        return self.pack % _WINDOW_STRIDE


@dataclass(frozen=True, kw_only=True)
class PlannedPack:
    """Samples of one pack: rows of the data set."""

    epoch: int
    rows: tuple[int, ...]
    visits: tuple[int, ...]
    """How often each came before: what is drawn for a sample differs from visit to visit."""
    video_tokens: int
    cost: float


class PackPlan:
    """Which samples are in which pack, for ever: epoch after epoch, each as often as its weight says.

    A pure function of (data set, seed, tokens_per_pack, window, mixture); knows nothing of ranks.
    """

    def __init__(
        self,
        data: DataSet,
        *,
        seed: int,
        tokens_per_pack: int,
        window: int = 4096,
        mix: MixConfig | None = None,
        cost: PackCost | None = None,
    ) -> None:
        """ValueError where there is no sample, or one that no pack can hold."""
        if len(data) == 0:
            raise ValueError(f"{data.where} has no sample in this split: encode more clips, or change the split")
        self.data, self.seed, self.tokens_per_pack = data, seed, tokens_per_pack
        self.mix, self.cost = mix or MixConfig(), cost or PackCost()
        if self.mix.max_tokens is None or self.mix.max_tokens > tokens_per_pack:
            _require_room(data, tokens_per_pack)
        shaping = f"best-fit {tokens_per_pack=} {window=} {mix_hash(self.mix)}"
        self.settings_hash = hashlib.sha256(shaping.encode()).hexdigest()
        self._identity = f"{data.outline} {self.settings_hash}"
        self._order = EpochOrder(data.stretches(self.mix), seed=seed, identity=self._identity, window=window)
        self._windows: OrderedDict[tuple[int, int], list[PlannedPack]] = OrderedDict()

    def step(self, position: Position, packs_per_step: int) -> tuple[list[PlannedPack], Position]:
        """The next `packs_per_step` packs and the position after them. A step may run over the end of an epoch.

        Equal parts of the packs in order cost about the same; see `data.balance`.
        """
        packs: list[PlannedPack] = []
        epoch, window, index = position.epoch, position.window, position.index
        while len(packs) < packs_per_step:
            here = self.window_packs(epoch, window)
            if index > len(here):
                raise ValueError(f"{position} is not a position of this data plan: was it saved with another one?")
            take = here[index : index + packs_per_step - len(packs)]
            packs += take
            index += len(take)
            if index == len(here):
                window, index = window + 1, 0
            if window == self._order.num_windows(epoch):
                epoch, window = epoch + 1, 0
        after = replace(
            position,
            epoch=epoch,
            pack=window * _WINDOW_STRIDE + index,
            step=position.step + 1,
            tokens=position.tokens + sum(pack.video_tokens for pack in packs),
        )
        return [packs[number] for number in balanced_order([pack.cost for pack in packs])], after

    def window_packs(self, epoch: int, window: int) -> list[PlannedPack]:
        """All packs of one window, in the order they are trained on; the last few windows are kept."""
        if window >= self._order.num_windows(epoch):
            raise ValueError(
                f"epoch {epoch} has {self._order.num_windows(epoch)} windows, so window {window} is not a position "
                "of this data plan: was it saved with another one?"
            )
        if (epoch, window) not in self._windows:
            self._windows[epoch, window] = self._plan_window(epoch, window)
            while len(self._windows) > _WINDOWS_KEPT:
                self._windows.popitem(last=False)
        return self._windows[epoch, window]

    def _plan_window(self, epoch: int, window: int) -> list[PlannedPack]:
        rows, visits = self._order.draw(epoch, window)
        tokens = self.data.column("video_tokens", rows)
        if self.mix.max_tokens is not None:
            kept = tokens <= self.mix.max_tokens
            rows, visits, tokens = rows[kept], visits[kept], tokens[kept]
        text = self.data.column("text_tokens", rows)
        packs = best_fit(tokens, self.tokens_per_pack)
        if not packs:  # samples of small weight may all stay away
            return []
        shuffled = keyed_permutation(len(packs), "packs", self.seed, self._identity, epoch, window).tolist()
        ends = np.cumsum([len(packs[number]) for number in shuffled]).tolist()
        # All packs at once: numpy is slow on many small arrays.
        items = np.array([item for number in shuffled for item in packs[number]], dtype=np.int64)
        starts = [0, *ends[:-1]]
        all_rows, all_visits = rows[items].tolist(), visits[items].tolist()
        sums = np.add.reduceat(tokens[items], starts, dtype=np.int64).tolist()
        costs = np.add.reduceat(self.cost.of_samples(tokens, text)[items], starts).tolist()
        return [
            PlannedPack(
                epoch=epoch,
                rows=tuple(all_rows[start:end]),
                visits=tuple(all_visits[start:end]),
                video_tokens=video_tokens,
                cost=cost,
            )
            for start, end, video_tokens, cost in zip(starts, ends, sums, costs, strict=True)
        ]

    def packs_in_epoch(self, epoch: int = 0) -> int:
        """Number of packs of a whole epoch; plans all of it."""
        return sum(len(self.window_packs(epoch, window)) for window in range(self._order.num_windows(epoch)))


def _require_room(data: DataSet, tokens_per_pack: int) -> None:
    """ValueError naming the largest sample that no pack can hold."""
    for manifest in data.manifests:
        found = too_large(manifest, tokens_per_pack).values()
        if not found:
            continue
        _, key, tokens = max(found, key=lambda bucket: bucket[2])
        raise ValueError(
            f"sample {key} has {tokens} tokens, above data.tokens_per_pack={tokens_per_pack} (so have "
            f"{sum(count for count, *_ in found)} of {len(manifest)} samples in {manifest.folder}): raise it to at "
            f"least {tokens}, encode with clip.max_tokens={tokens_per_pack}, or leave them out with "
            f"data.mix.max_tokens={tokens_per_pack}"
        )


def too_large(manifest: Manifest, tokens_per_pack: int) -> dict[str, tuple[int, str, int]]:
    """Buckets with samples that no pack can hold: how many, and the key and tokens of the largest."""
    found: dict[str, tuple[int, str, int]] = {}
    chunks = manifest.chunks.take(manifest.chunks.most_tokens > tokens_per_pack)
    for first, count, bucket in zip(chunks.first, chunks.count, chunks.bucket, strict=True):
        rows = np.arange(first, first + count)
        tokens = manifest.column("video_tokens", rows)
        largest = int(tokens.argmax())
        name = manifest.bucket_names[bucket]
        before = found.get(name, (0, "", 0))
        here = (str(manifest.keys([rows[largest]])[0]), int(tokens[largest]))
        found[name] = (before[0] + int((tokens > tokens_per_pack).sum()), *max(before[1:], here, key=lambda it: it[1]))
    return found


def best_fit(tokens: np.ndarray, budget: int) -> list[list[int]]:
    """Put each item, largest first, into the fullest pack that has room for it; returns item indices per pack."""
    sizes = tokens.tolist()
    packs: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (room left, pack), sorted
    for item in np.argsort(-tokens, kind="stable").tolist():
        place = bisect.bisect_left(rooms, (sizes[item], -1))
        if place == len(rooms):
            room, pack = budget, len(packs)
            packs.append([])
        else:
            room, pack = rooms.pop(place)
        packs[pack].append(item)
        bisect.insort(rooms, (room - sizes[item], pack))
    return packs
