"""A tar read strictly: a broken or missing header is damage, never the end; and what members' names say."""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from data.shards import check_key

_BLOCK = 512
_CHUNK = 1 << 20
_CHECKSUM = slice(148, 156)
_FILE_TYPES = (b"0", b"\0", b"7")
_FOLDER = "folder"
_KINDS = {b"1": "hard link", b"2": "symbolic link", b"3": "device", b"4": "device", b"5": _FOLDER, b"6": "pipe"}
_LARGEST_HEADER = 1 << 20
"""Bytes of an extended header; longer ones are no names."""
_SIZE_DIGITS = 20
_PAX_RECORD = re.compile(rb"(\d{1,8}) ([^=]+)=")


class TarDamage(ValueError):
    """The archive cannot be read on from here; the message says the byte and what came before it."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One member: where its header and its bytes lie."""

    name: str
    kind: str
    """`file`, or what else it is: `folder`, `symbolic link`, ..."""
    header: int
    """Of its first header; those of long names come before the plain one."""
    offset: int
    size: int


class TarScan:
    """One pass over a tar. Payloads are read only where asked for, or where the whole file is hashed."""

    def __init__(self, file: IO[bytes], size: int, *, hashed: bool = False) -> None:
        """`size` is that of the whole file; without `hashed` the file must be able to seek."""
        self._file, self.size, self.hashed = file, size, hashed
        self.is_whole = False
        """Whether `entries` came to a good end."""
        self._sha256 = hashlib.sha256()
        self._at = 0
        self._last = "the start"
        self._entry: Entry | None = None
        self._payload: bytes | None = None

    def sha256(self) -> str:
        """Of the whole file. All that has not been read is read now."""
        assert self.hashed
        self._skip_to(self.size)
        return self._sha256.hexdigest()

    def entries(self) -> Iterator[Entry]:
        """All members in order. Raises TarDamage where something is missing or unreadable, or there is none."""
        if self.size == 0:
            raise TarDamage("empty file")
        long_name, first_header = "", 0
        pax: dict[str, str] = {}
        while True:
            start = self._at
            block = self._read(_BLOCK)
            if len(block) == _BLOCK and not any(block):
                self._check_end(start)
                self.is_whole = True
                return
            kind, name, size = self._header(block, start)
            if not (long_name or pax):
                first_header = start
            if kind in (b"x", b"g", b"L", b"K"):
                extended = self._extended(start, size)
                if kind == b"L":
                    long_name = _text(extended)
                elif kind == b"x":
                    pax |= self._pax(extended, start)
                self._skip_to(start + _BLOCK + _padded(size))
                continue
            name, size = pax.get("path", long_name or name), self._pax_size(pax, size, start)
            if any(word.startswith("GNU.sparse") for word in pax):
                kind = b"S"
            yield from self._member(
                Entry(name=name, kind=_kind(kind, name), header=first_header, offset=start + _BLOCK, size=size)
            )
            long_name, pax = "", {}

    def payload(self, entry: Entry) -> bytes:
        """The bytes of the member that `entries` gave last."""
        assert entry is self._entry
        if self._payload is None:
            self._payload = self._read(entry.size)
            if len(self._payload) != entry.size:
                raise TarDamage(f"cut off at byte {self._at}, inside {entry.name!r}")
        return self._payload

    def _member(self, entry: Entry) -> Iterator[Entry]:
        # As other readers do: links and folders have no bytes, members of unknown types have.
        size = 0 if entry.kind in _KINDS.values() else entry.size
        end = entry.offset + _padded(size)
        if end > self.size:
            raise TarDamage(
                f"cut off at byte {self.size}, inside {entry.name!r}, which goes to byte {entry.offset + size}"
            )
        self._entry, self._payload, self._last = entry, None, repr(entry.name)
        yield entry
        self._skip_to(end)

    def _header(self, block: bytes, start: int) -> tuple[bytes, str, int]:
        """Type, name and size of a plain header."""
        after = f"after {self._last}"
        if not block:
            raise TarDamage(f"cut off at byte {start}, {after}: no end marker")
        if len(block) < _BLOCK:
            raise TarDamage(f"cut off at byte {start + len(block)}, inside a header {after}")
        said, size = _number(block[_CHECKSUM]), _number(block[124:136])
        # The checksum counts its own field as blanks; some writers summed signed bytes.
        rest = block[:148] + b" " * 8 + block[156:]
        signed = sum(byte - 256 if byte > 127 else byte for byte in rest) if said != sum(rest) else said
        if said not in (sum(rest), signed) or size is None:
            why = " (compressed? shards must be plain tars)" if start == 0 and block[:2] == b"\x1f\x8b" else ""
            raise TarDamage(f"broken header at byte {start}, {after}: {self.size - start} bytes cannot be read{why}")
        name, prefix = _text(block[:100]), _text(block[345:500])
        is_ustar = block[257:263] == b"ustar\0"
        return block[156:157], f"{prefix}/{name}" if is_ustar and prefix else name, size

    def _extended(self, start: int, size: int) -> bytes:
        data = self._read(size) if size <= _LARGEST_HEADER else b""
        if len(data) != size:
            raise TarDamage(f"broken header at byte {start}, after {self._last}: an extended header of {size} bytes")
        return data

    def _pax(self, data: bytes, start: int) -> dict[str, str]:
        """`length key=value` records."""
        records, at = {}, 0
        while at < len(data) and data[at]:
            match = _PAX_RECORD.match(data, at)
            if match is None or int(match[1]) <= match.end() - at or data[at + int(match[1]) - 1 :][:1] != b"\n":
                raise TarDamage(f"broken header at byte {start}, after {self._last}: an extended header without sense")
            records[match[2].decode(errors="replace")] = data[match.end() : at + int(match[1]) - 1].decode(
                errors="replace"
            )
            at += int(match[1])
        return records

    def _pax_size(self, pax: dict[str, str], size: int, start: int) -> int:
        said = pax.get("size", str(size))
        if not said.isascii() or not said.isdigit() or len(said) > _SIZE_DIGITS:
            raise TarDamage(f"broken header at byte {start}, after {self._last}: size {said[: 2 * _SIZE_DIGITS]!r}")
        return int(said)

    def _check_end(self, start: int) -> None:
        """After the first block of zeros there must be another, and nothing but zeros."""
        while chunk := self._read(min(_CHUNK, self.size - self._at)):
            if any(chunk):
                raise TarDamage(
                    f"zeroed header at byte {start}, after {self._last}: {self.size - start} bytes cannot be read"
                )
        if self.size - start < 2 * _BLOCK:
            raise TarDamage(f"cut off at byte {self.size}, after {self._last}: half an end marker")
        if self._entry is None:
            raise TarDamage("empty tar")

    def _read(self, size: int) -> bytes:
        data = self._file.read(size)
        self._at += len(data)
        if self.hashed:
            self._sha256.update(data)
        return data

    def _skip_to(self, end: int) -> None:
        if not self.hashed:
            self._file.seek(end)
            self._at = end
        while self._at < end and self._read(min(_CHUNK, end - self._at)):
            pass


def tar_problems(path: Path) -> list[str]:
    """What is wrong with the structure of a tar. Damage inside a payload needs a checksum."""
    problems = []
    with open(path, "rb") as file:
        try:
            for entry in TarScan(file, path.stat().st_size).entries():
                if entry.kind not in ("file", _FOLDER):
                    problems.append(f"member {entry.name!r} at byte {entry.header} is a {entry.kind}, not a plain file")
        except TarDamage as error:
            problems.append(str(error) if str(error).startswith("empty") else f"broken tar: {error}")
    return problems


def _kind(flag: bytes, name: str) -> str:
    if flag in _FILE_TYPES:
        # Before there were types, a folder was a name that ends so.
        return _FOLDER if flag == b"\0" and name.endswith("/") else "file"
    return _KINDS.get(flag, f"member of type {flag!r}")


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode(errors="surrogateescape")


def _number(field: bytes) -> int | None:
    """Octal digits, or (where the first bit is set) a large binary number; None where it is neither."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.split(b"\0", 1)[0].strip()
    return int(digits or b"0", 8) if re.fullmatch(rb"[0-7]*", digits) else None


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


_NAME = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)", re.DOTALL)
PICKLES = ("pyd", "pickle", "pkl", "pth", "pt", "ckpt", "joblib", "dill")
"""Last extensions of files that many readers unpickle, which runs any code in them."""


def split_name(name: str) -> tuple[str, str]:
    """Key and extension (in small letters) as WebDataset cuts them, at the first dot; `("", "")` without one.

    A leading `./`, which `tar` writes for the current folder, is no part of the key.
    """
    match = _NAME.fullmatch(name.removeprefix("./"))
    return (match[1], match[2].lower()) if match else ("", "")


def is_pickle(extension: str) -> bool:
    """Whether readers of this extension may run code that a file holds."""
    return extension.rsplit(".", 1)[-1] in PICKLES


def name_problem(name: str) -> str | None:
    """What is wrong with a member's name, or None."""
    if name.startswith("/") or ".." in name.split("/") or "\\" in name:
        return "hostile name: it leads out of the folder"
    key, extension = split_name(name)
    if not key:
        return "a member's name must be KEY.EXTENSION"
    if is_pickle(extension):
        return f"pickle member: reading .{extension} may run code in it"
    try:
        check_key(key)
    except ValueError as error:
        return f"bad key: {error}"
    return None
