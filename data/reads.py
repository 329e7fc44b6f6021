"""Which byte ranges to read for some samples: neighbours by one read, most of a shard as a whole."""

from dataclasses import dataclass

import numpy as np

from data.places import Places, ShardPlace, shard_place

NEIGHBOURS = 1 << 10
"""Members that follow one another in a tar are no further apart than this, and nothing lies between them."""
LOCAL_GAP = 16 << 10
"""Bytes that take as long to read from a page cache as a read of its own."""
REMOTE_GAP = 1 << 20
"""The same for an object store."""
LONGEST_LOCAL, LONGEST_REMOTE = 4 << 20, 64 << 20
MOST_MEMBERS = 512
"""In one read: a worker hears of each."""
_MOST = 0.5
_ALIGNED = 64
"""Bytes lie in memory as they do in the file, up to a multiple of this, so that tensors can view them."""


@dataclass(frozen=True, kw_only=True)
class Reads:
    """Byte ranges of shards, where they come to lie in one piece of memory, and the members in them."""

    places: Places
    members: tuple[str, ...]
    shards: tuple[ShardPlace, ...]
    shard: np.ndarray
    """Of each read: index into `shards`."""
    start: np.ndarray
    size: np.ndarray
    at: np.ndarray
    """Place in memory, from 0."""
    count: np.ndarray
    """Members in it."""
    owner: np.ndarray
    """Of each member in the order of the reads: number of its sample in `places`, and of its kind in `members`."""
    kind: np.ndarray
    member_at: np.ndarray
    member_size: np.ndarray
    member_xxh3: np.ndarray
    num_bytes: int
    """Memory for all."""

    def __len__(self) -> int:
        return len(self.start)

    def starts(self) -> list[dict[str, int]]:
        """Place of each sample's members in memory."""
        table = np.empty((len(self.places), len(self.members)), dtype=np.int64)
        table[self.owner, self.kind] = self.member_at
        return [dict(zip(self.members, row, strict=True)) for row in table.tolist()]


def plan_reads(
    places: Places, members: tuple[str, ...], *, gap: int | None = None, urgency: np.ndarray | None = None
) -> Reads:
    """Reads of the members of all samples, those of low `urgency` (one number a sample) first.

    Ranges that are at most `gap` apart become one; by default that depends on where the shard lies.
    """
    count = len(places)
    owner, kind = np.repeat(np.arange(count), len(members)), np.tile(np.arange(len(members)), count)
    shards, shard = _files(places, members)
    columns = {
        what: np.stack([places.columns[f"{member}_{what}"] for member in members], axis=1).ravel()
        for what in ("offset", "size", "xxh3")
    }
    order = np.lexsort((columns["offset"], shard))
    owner, kind, shard = owner[order], kind[order], shard[order]
    offset, size, xxh3 = (columns[what][order] for what in ("offset", "size", "xxh3"))
    first = _breaks(shards, shard, offset, size, gap)
    read_of = np.cumsum(first) - 1
    begins = np.flatnonzero(first)
    start = offset[begins]
    length = np.maximum.reduceat(offset + size, begins) - start
    held = np.diff(np.append(begins, len(offset)))
    if urgency is not None:
        need = np.minimum.reduceat(urgency[owner], begins)
        turn = np.argsort(need, kind="stable")
        members_turn = np.argsort(np.argsort(turn)[read_of], kind="stable")
        owner, kind, xxh3 = owner[members_turn], kind[members_turn], xxh3[members_turn]
        offset, size = offset[members_turn], size[members_turn]
        begins, start, length, held = begins[turn], start[turn], length[turn], held[turn]
        read_of = np.repeat(np.arange(len(start)), held)
    room = _up(length + start % _ALIGNED)
    at = np.cumsum(room) - room + start % _ALIGNED
    return Reads(
        places=places,
        members=members,
        shards=shards,
        shard=shard[begins],
        start=start,
        size=length,
        at=at,
        count=held,
        owner=owner,
        kind=kind,
        member_at=at[read_of] + offset - start[read_of],
        member_size=size,
        member_xxh3=xxh3,
        num_bytes=int(room.sum()),
    )


def _files(places: Places, members: tuple[str, ...]) -> tuple[tuple[ShardPlace, ...], np.ndarray]:
    """What members lie in: shards, then files of their own; and for each member of each sample which of them."""
    numbers, shard = np.unique(np.repeat(places.shard, len(members)), return_inverse=True)
    shards = tuple(shard_place(places.data, int(number)) for number in numbers)
    if f"{members[0]}_file" not in places.columns:
        return shards, shard
    name = np.stack([places.columns[f"{member}_file"] for member in members], axis=1).ravel()
    names, own = np.unique(name, return_inverse=True)
    files = tuple(ShardPlace(root=None, name=file, bytes=0) for file in names.tolist())
    return shards + files, np.where(name == "", shard, len(shards) + own)


def packed_starts(places: Places, members: tuple[str, ...]) -> tuple[list[dict[str, int]], int]:
    """Where members lie that are laid one after another, sample by sample, and the bytes of all."""
    size = np.stack([places.columns[f"{member}_size"] for member in members], axis=1)
    room = _up(size.ravel())
    at = (np.cumsum(room) - room).reshape(size.shape)
    return [dict(zip(members, row, strict=True)) for row in at.tolist()], int(room.sum())


def _breaks(
    shards: tuple[ShardPlace, ...], shard: np.ndarray, offset: np.ndarray, size: np.ndarray, gap: int | None
) -> np.ndarray:
    """Of members sorted by shard and place: whether each begins a read of its own."""
    is_local = np.array([place.root is None for place in shards], dtype=bool)
    widest = np.where(is_local, LOCAL_GAP, REMOTE_GAP) if gap is None else np.full(len(shards), gap)
    longest = np.where(is_local, LONGEST_LOCAL, LONGEST_REMOTE)
    if gap is None:
        # Of a shard far away that most of is wanted, all: one request in place of many.
        wanted = np.bincount(shard, weights=size, minlength=len(shards))
        total = np.array([place.bytes for place in shards])
        whole = ~is_local & (wanted >= _MOST * total) & (total <= LONGEST_REMOTE)
        widest = np.where(whole, total, widest)
    end = offset + size
    first = np.ones(len(offset), dtype=bool)
    first[1:] = (shard[1:] != shard[:-1]) | (offset[1:] - end[:-1] > widest[shard[1:]])
    # A long run is cut, so that workers can share it.
    begins = np.flatnonzero(first)
    into = (end - np.repeat(offset[begins], np.diff(np.append(begins, len(first))))) // longest[shard]
    first[1:] |= into[1:] != into[:-1]
    begins = np.flatnonzero(first)
    held = np.arange(len(first)) - np.repeat(begins, np.diff(np.append(begins, len(first))))
    return first | (held % MOST_MEMBERS == 0)


def _up(size: np.ndarray) -> np.ndarray:
    return -(-size // _ALIGNED) * _ALIGNED


def damage(reads: Reads, member: int) -> str:
    """What is wrong with a member that does not have its checksum."""
    kind, where = reads.members[int(reads.kind[member])], reads.places.where(int(reads.owner[member]))
    return f"{where}: its {kind} is damaged (wrong checksum): restore the shard, or encode the clips again"
