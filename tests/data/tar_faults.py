"""Faults of tar shards, made for real in their files: the rows of the table in `test_faults.py`."""

import io
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Parts = list[tuple[tarfile.TarInfo, bytes]]


@dataclass(frozen=True)
class Shards:
    """Two shards of equal samples, and the sample that is hit: in the middle of the first. `main` is its extension."""

    first: Path
    second: Path
    key: str
    other: str
    """A sample that is in the first shard too, not beside it."""
    main: str

    def members(self) -> list[tarfile.TarInfo]:
        """Of the sample that is hit, in their order."""
        with tarfile.open(self.first) as tar:
            return [member for member in tar if member.name.split(".")[0] == self.key]


@dataclass(frozen=True)
class Told:
    """What a report must say: the shard, and one of these words (a key, a byte), where any can be known."""

    shard: Path
    words: tuple[str, ...] = ()

    def is_in(self, line: str) -> bool:
        return self.shard.name in line and (not self.words or any(word in line for word in self.words))


def parts(path: Path) -> Parts:
    with tarfile.open(path) as tar:
        return [(member, tar.extractfile(member).read()) for member in tar]


def rebuild(path: Path, members: Parts) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for member, data in members:
            member.size = len(data) if member.isreg() else 0
            tar.addfile(member, io.BytesIO(data))


def plain(name: str) -> tarfile.TarInfo:
    return tarfile.TarInfo(name)


def overwrite(path: Path, start: int, data: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(start)
        file.write(data)


def cut(place: Callable[[Shards], int]) -> Callable[[Shards], Told]:
    def fault(shards: Shards) -> Told:
        length = place(shards)
        shards.first.write_bytes(shards.first.read_bytes()[:length])
        return Told(shards.first, (shards.key, f"byte {length}", f"{length} bytes"))

    return fault


def flip(place: Callable[[Shards], int], mask: int = 1) -> Callable[[Shards], Told]:
    def fault(shards: Shards) -> Told:
        start = place(shards)
        overwrite(shards.first, start, bytes([shards.first.read_bytes()[start] ^ mask]))
        return Told(shards.first, (shards.key, f"byte {start // 512 * 512}"))

    return fault


def zero_header(shards: Shards) -> Told:
    start = shards.members()[1].offset
    overwrite(shards.first, start, bytes(512))
    return Told(shards.first, (f"byte {start}", shards.key))


def replaced_by(data: bytes) -> Callable[[Shards], Told]:
    def fault(shards: Shards) -> Told:
        shards.first.write_bytes(data)
        return Told(shards.first)

    return fault


def repeated(where: str) -> Callable[[Shards], Told]:
    def fault(shards: Shards) -> Told:
        members = parts(shards.first)
        copies = [part for part in members if part[0].name.split(".")[0] == shards.key]
        if where == "adjacent":
            place = members.index(copies[-1]) + 1
            rebuild(shards.first, members[:place] + copies + members[place:])
        elif where == "apart":
            rebuild(shards.first, members + copies)
        else:
            rebuild(shards.second, parts(shards.second) + copies)
            return Told(shards.second, (shards.key,))
        return Told(shards.first, (shards.key,))

    return fault


def named(stem: str) -> Callable[[Shards], Told]:
    """A sample more, under a hostile name."""

    def fault(shards: Shards) -> Told:
        members = parts(shards.first)
        copies = [part for part in members if part[0].name.split(".")[0] == shards.key]
        hostile = [(plain(stem + member.name.removeprefix(shards.key)), data) for member, data in copies]
        rebuild(shards.first, members + hostile)
        return Told(shards.first, (stem,))

    return fault


def linked(kind: bytes) -> Callable[[Shards], Told]:
    """The main member is no plain file."""

    def fault(shards: Shards) -> Told:
        members = parts(shards.first)
        for member, _ in members:
            if member.name == f"{shards.key}.{shards.main}":
                member.type, member.linkname = kind, "/etc/passwd"
        rebuild(shards.first, members)
        return Told(shards.first, (shards.key,))

    return fault


def with_pickle(extension: str) -> Callable[[Shards], Told]:
    """A member more, of a kind that readers unpickle, in the sample that is hit."""

    def fault(shards: Shards) -> Told:
        members = parts(shards.first)
        last = max(n for n, (member, _) in enumerate(members) if member.name.split(".")[0] == shards.key)
        evil = b"cposix\nsystem\n(S'touch /tmp/owned'\ntR."
        rebuild(shards.first, [*members[: last + 1], (plain(f"{shards.key}.{extension}"), evil), *members[last + 1 :]])
        return Told(shards.first, (shards.key,))

    return fault


def swap_payloads(shards: Shards) -> Told:
    """The main members of two samples change places; the file stays well-formed."""
    members = parts(shards.first)
    names = [member.name for member, _ in members]
    one, other = (names.index(f"{key}.{shards.main}") for key in (shards.key, shards.other))
    members[one], members[other] = (members[one][0], members[other][1]), (members[other][0], members[one][1])
    rebuild(shards.first, members)
    return Told(shards.first, (shards.key, shards.other, "checksum"))


def swap_shards(shards: Shards) -> Told:
    first = shards.first.read_bytes()
    shards.first.write_bytes(shards.second.read_bytes())
    shards.second.write_bytes(first)
    return Told(shards.first)


def in_payload(extension: str, back: int) -> Callable[[Shards], int]:
    """A byte of a member, counted from its end."""

    def place(shards: Shards) -> int:
        [member] = [each for each in shards.members() if each.name == f"{shards.key}.{extension or shards.main}"]
        return member.offset_data + member.size - back

    return place


def end_marker(shards: Shards) -> int:
    with tarfile.open(shards.first) as tar:
        last = tar.getmembers()[-1]
    return last.offset_data + -(-last.size // 512) * 512 + 512


def in_caption(shards: Shards) -> int:
    """The first letter of a caption: the json stays well-formed."""
    [member] = [each for each in shards.members() if each.name.endswith(".json")]
    data = shards.first.read_bytes()
    return data.index(b': "', data.index(b'"captions"', member.offset_data)) + 3


FAULTS: dict[str, Callable[[Shards], Told]] = {
    "cut between samples": cut(lambda shards: shards.members()[0].offset),
    "cut between members": cut(lambda shards: shards.members()[1].offset),
    "cut in a payload": cut(in_payload("", 20)),
    "cut in a header": cut(lambda shards: shards.members()[1].offset + 100),
    "cut in the end marker": cut(end_marker),
    "bit of a header": flip(lambda shards: shards.members()[1].offset + 130),
    "zeroed header": zero_header,
    "bit of the main payload": flip(in_payload("", 10), 0x40),
    "bit of the json": flip(in_caption),
    "zero-byte file": replaced_by(b""),
    "empty tar": replaced_by(bytes(10240)),
    "duplicate key, adjacent": repeated("adjacent"),
    "duplicate key, apart": repeated("apart"),
    "duplicate key, two shards": repeated("two shards"),
    "member leading out": named("../../evil"),
    "absolute member": named("/etc/evil"),
    "symbolic link": linked(tarfile.SYMTYPE),
    "hard link": linked(tarfile.LNKTYPE),
    "device": linked(tarfile.CHRTYPE),
    **{f"member .{extension}": with_pickle(extension) for extension in ("pyd", "pickle", "pkl", "pth", "pt")},
    "swapped payloads": swap_payloads,
    "swapped shards": swap_shards,
}
