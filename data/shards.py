"""Tar shards: written so that every member's place is known, checked so that no damage is silent."""

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import webdataset
import xxhash

_BLOCK = 512
_KEY = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_/-]*")
LONGEST_KEY = 80  # with its extension it must fit the 100 characters of a plain tar header
_HASH_CHUNK = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Member:
    """Where the bytes of one member lie in its shard, and their checksum."""

    offset: int
    size: int
    xxh3: int


@dataclass(frozen=True, kw_only=True)
class ShardInfo:
    """One finished shard; `name` is relative to its folder."""

    name: str
    bytes: int
    count: int
    sha256: str
    """Empty where it is only planned: then it is no file, and its samples are made when they are needed."""

    @property
    def is_planned(self) -> bool:
        return not self.sha256


def check_key(key: str) -> None:
    """ValueError unless `key` may name a sample: no dots (WebDataset cuts there), no way out of the folder."""
    if not _KEY.fullmatch(key) or len(key) > LONGEST_KEY:
        raise ValueError(
            f"sample key {key!r} must be 1 to {LONGEST_KEY} letters, digits, '_', '-' or '/', not starting with '/'"
        )


class _HashingFile:
    """Counts and hashes what passes through to a file."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.size, self.sha256 = file, 0, hashlib.sha256()
        self._given_up = False

    def write(self, data: bytes) -> int:
        if self._given_up or self.file.closed:
            return len(data)  # the destructor of an unfinished tar, whose folder is on its way out
        try:
            self.file.write(data)
        except OSError:
            self._given_up = True
            raise
        self.sha256.update(data)
        self.size += len(data)
        return len(data)


class ShardWriter:
    """One tar that any WebDataset reader can use. The same samples give the same bytes."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name, self.count = name, 0
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "xb")  # noqa: SIM115 - closed by `close`
        self._hashing = _HashingFile(self._file)
        # An integer time: a fraction would cost an extended header of its own before every member.
        self._tar = webdataset.TarWriter(self._hashing, encoder=False, mtime=0)
        self._offset = 0

    def write(self, key: str, members: Mapping[str, bytes]) -> dict[str, Member]:
        """Append one sample of `extension -> bytes`; says where each member's bytes lie."""
        check_key(key)
        self._tar.write({"__key__": key, **members})
        places = {}
        for extension in sorted(members):  # the order in which webdataset writes them
            data = members[extension]
            places[extension] = Member(
                offset=self._offset + _BLOCK, size=len(data), xxh3=xxhash.xxh3_64_intdigest(data)
            )
            self._offset += _BLOCK + -(-len(data) // _BLOCK) * _BLOCK
        assert self._offset == self._tar.tarstream.offset, "webdataset writes members in another order or format"
        self.count += 1
        return places

    def close(self) -> ShardInfo:
        """Write the end marker and bring the bytes to the disk."""
        self._tar.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return ShardInfo(
            name=self.name, bytes=self._hashing.size, count=self.count, sha256=self._hashing.sha256.hexdigest()
        )


class PlannedShard:
    """A shard that is never written: it only says where members would lie. Its checksums are 0, and empty."""

    def __init__(self, name: str) -> None:
        self.name, self.count, self._offset = name, 0, 0

    def write(self, key: str, members: Mapping[str, bytes]) -> dict[str, Member]:
        """As `ShardWriter.write`; of the members only their sizes are taken."""
        check_key(key)
        places = {}
        for extension in sorted(members):
            size = len(members[extension])
            places[extension] = Member(offset=self._offset + _BLOCK, size=size, xxh3=0)
            self._offset += _BLOCK + -(-size // _BLOCK) * _BLOCK
        self.count += 1
        return places

    def close(self) -> ShardInfo:
        """What a manifest says of it."""
        return ShardInfo(name=self.name, bytes=self._offset, count=self.count, sha256="")


def write_bytes(path: Path, data: bytes) -> None:
    """A whole small file, on the disk when this returns."""
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_whole(path: Path, data: bytes) -> None:
    """All of a small file or none of it, in place of what stood there."""
    scratch = path.with_name(path.name + ".partial")
    scratch.unlink(missing_ok=True)
    write_bytes(scratch, data)
    scratch.replace(path)


@contextmanager
def new_folder(
    folder: Path, *, replace: bool = False, keep: Callable[[Path], bool] = lambda scratch: False
) -> Iterator[Path]:
    """A scratch folder that becomes `folder` when the block ends well and vanishes when it does not.

    `keep` says of a scratch folder that an error leaves, or that is found, whether it stays for the next attempt.

    A folder that is replaced stands whole, here or under .NAME.replaced, until the new one is in its place.
    Raises ValueError if `folder` exists, holds something and may not be replaced; OSError with one sentence when the
    disk is full.
    """
    restore_folder(folder)
    if folder.exists() and not replace and not (folder.is_dir() and not any(folder.iterdir())):
        raise ValueError(f"{folder} exists: give another folder, or delete it first")
    scratch = folder.with_name(folder.name + ".partial")
    try:
        if scratch.exists() and not keep(scratch):
            shutil.rmtree(scratch)
        scratch.mkdir(parents=True, exist_ok=True)
        yield scratch
    except BaseException as error:
        if not keep(scratch):
            shutil.rmtree(scratch, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(
                f"the disk ran full while writing {folder}: nothing half-written was left there; "
                "make room or give another folder, and run the same command again"
            ) from error
        raise
    put_in_place(scratch, folder)


def restore_folder(folder: Path) -> None:
    """Undo a replacement that was interrupted: the old folder comes back, or goes where the new one stands."""
    old = _old(folder)
    if old.is_dir() and folder.exists():
        shutil.rmtree(old)
    elif old.is_dir():
        old.rename(folder)


def put_in_place(scratch: Path, folder: Path) -> None:
    """Give a finished scratch folder its name; what stood there goes when the new one stands."""
    if folder.exists():
        folder.rename(_old(folder))
    scratch.rename(folder)
    if _old(folder).exists():
        shutil.rmtree(_old(folder))


def _old(folder: Path) -> Path:
    # A name that nobody gives to a copy of their own: it is deleted without asking.
    return folder.with_name(f".{folder.name}.replaced")


def file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_HASH_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
