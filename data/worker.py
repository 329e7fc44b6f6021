"""The reading end of the loader: byte ranges of shards into given memory, each member checked. Also a worker process.

It imports next to nothing, so that a worker starts in a tenth of a second and holds little memory. The loader and a
worker share one piece of memory and talk by messages: the work one way, what was found the other.
"""

import json
import mmap
import os
import socket
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import xxhash

if TYPE_CHECKING:
    from data.storage import Storage

LARGEST_MESSAGE = 1 << 17
READ_FIELDS, CHECK_FIELDS = 5, 3
PROGRESS_BYTES = 8
_READS_BITS = 32
_OPEN_FILES = 64
_REQUESTS_AT_ONCE = 8


@dataclass(frozen=True, kw_only=True)
class Work:
    """Reads of one job, and the members that lie in them."""

    job: int
    shards: list[tuple[str | None, str]]
    """(URL of the storage, name); for local files None and the path."""
    reads: memoryview
    """uint64, for each read: shard, first byte, bytes, place in memory, members in it."""
    checks: memoryview
    """uint64, for each member, in the order of the reads: place in memory, bytes, XXH3."""
    own_memory: bool = False
    """Places are in a memory of the job's own, whose descriptor comes with it."""

    def encode(self) -> bytes:
        """As one message."""
        head = {"job": self.job, "shards": self.shards, "reads": len(self.reads), "own": self.own_memory}
        text = json.dumps(head).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text + self.reads.tobytes() + self.checks.tobytes()

    @classmethod
    def decode(cls, message: bytes) -> "Work":
        """Of `encode`."""
        start = 8 + int.from_bytes(message[:8], "little")
        head = json.loads(message[8:start])
        numbers = memoryview(message)[start:].cast("Q")
        reads, checks = numbers[: head["reads"]], numbers[head["reads"] :]
        return cls(job=head["job"], shards=head["shards"], reads=reads, checks=checks, own_memory=head["own"])


class Files:
    """Reads ranges of local files, the last of which stay open, and of files behind URLs."""

    def __init__(self) -> None:
        self._open: OrderedDict[str, int] = OrderedDict()
        self._storages: dict[str, Storage] = {}

    def read_into(self, root: str | None, name: str, start: int, memory: memoryview) -> int:
        """Fill `memory` with the file's bytes from `start` on; returns how many there were. OSError of the system."""
        if root is not None:
            data = self._storage(root).read(name, start, start + len(memory))
            memory[: len(data)] = data
            return len(data)
        descriptor, done = self._descriptor(name), 0
        while done < len(memory):
            count = os.preadv(descriptor, [memory[done:]], start + done)
            if count == 0:
                break
            done += count
        return done

    def _descriptor(self, path: str) -> int:
        if path in self._open:
            self._open.move_to_end(path)
        else:
            if len(self._open) >= _OPEN_FILES:
                os.close(self._open.popitem(last=False)[1])
            self._open[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        return self._open[path]

    def _storage(self, root: str) -> "Storage":
        if root not in self._storages:
            from data.storage import Storage  # fsspec takes long to import

            self._storages[root] = Storage(root)
        return self._storages[root]

    def forget(self, path: str) -> None:
        """Close a local file, to be opened anew."""
        if path in self._open:
            os.close(self._open.pop(path))

    def close(self) -> None:
        """Close all files."""
        while self._open:
            os.close(self._open.popitem()[1])


def do_work(work: Work, memory: memoryview, files: Files, begins: Callable[[int], None]) -> list[int]:
    """Read and check; returns the members (numbers of checks) that are not what they should be.

    `begins` is told the number of the read that is waited for.
    """
    damaged, member = [], 0
    for number, found in enumerate(_arrivals(work, memory, files, begins)):
        place, members = work.reads[READ_FIELDS * number + 3 : READ_FIELDS * number + 5]
        for _ in range(members):
            at, size, expected = work.checks[CHECK_FIELDS * member : CHECK_FIELDS * (member + 1)]
            part = memory[at : at + size]
            is_right = at + size <= place + found and xxhash.xxh3_64_intdigest(part) == expected
            if not is_right and not _is_right_anew(work, number, at - place, part, expected, files):
                damaged.append(member)
            member += 1
    return damaged


def _is_right_anew(work: Work, read: int, offset: int, part: memoryview, expected: int, files: Files) -> bool:
    """Whether a member that was wrong is right in the file that has its name now: one that is open may be replaced."""
    shard, start = work.reads[READ_FIELDS * read : READ_FIELDS * read + 2]
    root, name = work.shards[shard]
    if root is not None:
        return False
    files.forget(name)
    found = files.read_into(None, name, start + offset, part)
    return found == len(part) and xxhash.xxh3_64_intdigest(part) == expected


def _arrivals(work: Work, memory: memoryview, files: Files, begins: Callable[[int], None]) -> Iterator[int]:
    """Bytes found by each read, in order. Requests to storages run side by side."""
    jobs = []
    for first in range(0, len(work.reads), READ_FIELDS):
        shard, start, size, place, _ = work.reads[first : first + READ_FIELDS]
        root, name = work.shards[shard]
        jobs.append((root, name, start, memory[place : place + size]))
    if len(jobs) < 2 or all(root is None for root, *_ in jobs):
        for number, job in enumerate(jobs):
            begins(number)
            yield files.read_into(*job)
        return
    from concurrent.futures import ThreadPoolExecutor  # takes long to import

    with ThreadPoolExecutor(_REQUESTS_AT_ONCE) as threads:
        for root in {root for root, *_ in jobs if root is not None}:
            files._storage(root)
        coming = [threads.submit(files.read_into, *job) for job in jobs]
        for number, future in enumerate(coming):
            begins(number)
            yield future.result()


def progress_word(job: int, read: int) -> int:
    """What a worker leaves in shared memory when it begins a read, for those who ask why it does not answer."""
    return job << _READS_BITS | read


def read_of_word(word: int, job: int) -> int:
    """Number of the read that a worker is at in a job; 0 before it began."""
    return word & ((1 << _READS_BITS) - 1) if word >> _READS_BITS == job else 0


def serve(channel: socket.socket, arena: int, number: int) -> None:
    """Do what comes until the other end is closed, or something unexpected happens, which is told."""
    files, shared = Files(), memoryview(mmap.mmap(arena, os.fstat(arena).st_size))
    told = shared[PROGRESS_BYTES * number : PROGRESS_BYTES * (number + 1)].cast("Q")
    while True:
        message, descriptors, _, _ = socket.recv_fds(channel, LARGEST_MESSAGE, 1)
        if not message:
            return
        work = Work.decode(message)
        memory = shared
        if work.own_memory:
            memory = memoryview(mmap.mmap(descriptors[0], os.fstat(descriptors[0]).st_size))
            os.close(descriptors[0])

        def begins(read: int, job: int = work.job) -> None:
            told[0] = progress_word(job, read)

        answer: dict[str, Any] = {"job": work.job}
        try:
            answer["damaged"] = do_work(work, memory, files, begins)
        except Exception as error:  # noqa: BLE001 - the loader decides, and gets a new worker
            answer["error"] = describe(error)
        channel.send(json.dumps(answer).encode())
        if "error" in answer:
            return


def describe(error: Exception) -> str:
    """An error in a few words."""
    return (isinstance(error, OSError) and error.strerror) or f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    try:
        serve(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]), int(sys.argv[3]))
    except (BrokenPipeError, ConnectionResetError):
        sys.exit(0)  # nobody is left to read for
