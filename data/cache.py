"""A folder of small files named by what they were made from, which runs and ranks share.

An entry holds some members of a sample. It appears whole or not at all, is checked each time it is used, and of two
processes that make the same one the first wins, so that both read the same bytes.
"""

import contextlib
import json
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import xxhash

from data.shards import Member

log = logging.getLogger(__name__)

_ALIGNED = 64
"""Members begin at a multiple of this, so that tensors can view them where they were read to."""
_LENGTH_BYTES = 8
_ENTRY = re.compile(r"[0-9a-f]{64}")
_SCRATCH = ".entry-"
_IN_USE_S = 3600.0
"""An entry used so lately may be about to be read."""


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A member of a sample in a file of its own, or beside others."""

    path: str
    place: Member


Supply = Callable[[str, Sequence[str]], dict[str, Kept]]
"""Key of a sample and names of members -> where these lie, made if need be. ValueError names the clip and its shard."""


class Cache:
    """Entries of a folder, by keys of hexadecimal digits."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def path(self, key: str) -> Path:
        """Where an entry lies, if it is there."""
        return self.folder / key[:2] / key

    def find(self, key: str) -> dict[str, Kept] | None:
        """The members of an entry, every byte checked; None where there is none. A damaged one is removed."""
        path = self.path(key)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            found = _parse(key, data)
        except (ValueError, KeyError, TypeError) as error:
            log.warning("%s is damaged (%s): it is made again", path, error)
            path.unlink(missing_ok=True)
            return None
        with contextlib.suppress(FileNotFoundError):  # made room by another process: it is made again when read
            os.utime(path)
        return {name: Kept(path=str(path.absolute()), place=place) for name, place in found.items()}

    def store(self, key: str, members: Mapping[str, bytes]) -> dict[str, Kept]:
        """Keep members, unless another process did meanwhile; returns what is there. OSError where it cannot be."""
        path = self.path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, scratch = tempfile.mkstemp(dir=path.parent, prefix=_SCRATCH)
        try:
            with open(descriptor, "wb") as file:
                file.write(_packed(key, members))
            os.chmod(scratch, 0o644)
            try:
                os.link(scratch, path)
            except FileExistsError:
                pass  # the first one stands
            except OSError:  # a file system without links
                os.replace(scratch, path)
        finally:
            Path(scratch).unlink(missing_ok=True)
        found = self.find(key)
        if found is None:
            raise OSError(f"{path} was written and cannot be read back")
        return found

    def lacks(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """Those of some entries (key -> bytes) that are not there."""
        return {key: size for key, size in sizes.items() if not self.path(key).exists()}

    def make_room(self, sizes: Mapping[str, int], *, limit: int) -> None:
        """Remove other entries, the longest unused first, until these (key -> bytes) fit beside the rest.

        ValueError where they cannot: above the limit, or above what the disk has.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        needed, missing = sum(sizes.values()), sum(self.lacks(sizes).values())
        now, others = time.time(), []
        for path, stat in _files(self.folder):
            if path.name not in sizes:
                others.append((stat.st_mtime, stat.st_size, path))
        held = sum(size for _, size, _ in others)
        for used, size, path in sorted(others):
            is_scratch = path.name.startswith(_SCRATCH)
            if now - used < _IN_USE_S or (held + needed <= limit and not is_scratch):
                continue
            path.unlink(missing_ok=True)
            held -= size
        if held + needed > limit:
            beside = f" beside {_mib(held)} of other runs of the last hour" if held else ""
            raise ValueError(
                f"data.online.cache_bytes={limit} ({_mib(limit)}) is too little for these clips, whose latents and "
                f"texts take {_mib(needed)}{beside}: raise it, or take fewer clips"
            )
        free = shutil.disk_usage(self.folder).free
        if missing > free:
            raise ValueError(
                f"data.online.cache={self.folder}: what is to be made takes {_mib(missing)}, but the disk has "
                f"{_mib(free)} left: make room, or give another folder"
            )


def _files(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Entries, and what is left of half-written ones; nothing else that lies there is ours."""
    for path in folder.glob("[0-9a-f][0-9a-f]/*"):
        is_entry = _ENTRY.fullmatch(path.name) and path.name[:2] == path.parent.name
        with contextlib.suppress(FileNotFoundError):  # another process removed it just now
            if is_entry or path.name.startswith(_SCRATCH):
                yield path, path.stat()


def _packed(key: str, members: Mapping[str, bytes]) -> bytes:
    """An entry: the length of its header, the header, and the members at the places that the header says."""
    sizes = [len(data) for data in members.values()]
    length = _up(_LENGTH_BYTES + len(_header(key, members, [2**40] * len(sizes), 0)))
    offsets = [length + sum(_up(size) for size in sizes[:number]) for number in range(len(sizes))]
    parts = [_header(key, members, offsets, length)]
    parts += [data.ljust(_up(len(data)), b"\0") for data in members.values()]
    return b"".join(parts)


def _header(key: str, members: Mapping[str, bytes], offsets: Iterable[int], length: int) -> bytes:
    places = {
        name: asdict(Member(offset=offset, size=len(data), xxh3=xxhash.xxh3_64_intdigest(data)))
        for (name, data), offset in zip(members.items(), offsets, strict=True)
    }
    text = json.dumps({"key": key, "members": places}).encode().ljust(max(0, length - _LENGTH_BYTES))
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text


def _parse(key: str, data: bytes) -> dict[str, Member]:
    """Of an entry's bytes; ValueError, KeyError or TypeError where they are not what was written."""
    length = int.from_bytes(data[:_LENGTH_BYTES], "little")
    described = json.loads(data[_LENGTH_BYTES : _LENGTH_BYTES + length])
    if described["key"] != key:
        raise ValueError("an entry of another key")
    places = {name: Member(**place) for name, place in described["members"].items()}
    view = memoryview(data)
    for name, place in places.items():
        part = view[place.offset : place.offset + place.size]
        if len(part) != place.size or xxhash.xxh3_64_intdigest(part) != place.xxh3:
            raise ValueError(f"wrong checksum of its {name}")
    return places


def _up(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"
