"""Memory that the loader shares with its workers: regions that are free again when no tensor views them."""

import bisect
import mmap
import os
import weakref
from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from data.worker import PROGRESS_BYTES

_PAGE = mmap.PAGESIZE


@dataclass(frozen=True, kw_only=True)
class Region:
    """Some bytes of shared memory. It stays taken as long as `tensor`, or any view of it, lives."""

    tensor: Tensor
    """uint8."""
    start: int
    """Place of its first byte in the memory."""
    memory: memoryview
    """The whole memory it lies in."""
    own_descriptor: int | None = None
    """Where it is a memory of its own: to be closed by whoever made it."""


class Arena:
    """One piece of shared memory of a fixed size, without a name: it is gone with the last process that has it."""

    def __init__(self, size: int, *, workers: int) -> None:
        # The first pages are for the workers to say where they are.
        self._head = _whole_pages(max(1, PROGRESS_BYTES * workers))
        self.size = _whole_pages(size)
        self.descriptor = os.memfd_create("loader", os.MFD_CLOEXEC)
        os.ftruncate(self.descriptor, self._head + self.size)
        self.memory = memoryview(mmap.mmap(self.descriptor, self._head + self.size))
        self.progress = self.memory[: self._head].cast("Q")
        """A word of each worker."""
        self._taken: list[tuple[int, int]] = []
        """(first byte, byte after the last) of each region, sorted."""
        # Appending is all that is done where a tensor dies: that may be anywhere, in any thread.
        self._left: deque[tuple[int, int]] = deque()

    @property
    def taken_bytes(self) -> int:
        """Of all regions that are not free."""
        self._sweep()
        return sum(end - start for start, end in self._taken)

    def allocate(self, size: int) -> Region | None:
        """A region at the lowest place with room, so that little memory is touched; None if there is none."""
        self._sweep()
        size, start = _whole_pages(size), self._head
        for taken_from, taken_to in self._taken:
            if taken_from - start >= size:
                break
            start = taken_to
        if start + size > self._head + self.size:
            return None
        span = start, start + size
        bisect.insort(self._taken, span)
        view = self.memory[slice(*span)]
        # Torch keeps the view it made a tensor from until the last tensor that shares its storage is gone.
        weakref.finalize(view, self._left.append, span).atexit = False
        return Region(tensor=torch.frombuffer(view, dtype=torch.uint8), start=start, memory=self.memory)

    def allocate_apart(self, size: int) -> Region:
        """A region outside of the arena, for what must be read though there is no room."""
        descriptor = os.memfd_create("loader", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, _whole_pages(size))
        memory = memoryview(mmap.mmap(descriptor, _whole_pages(size)))
        tensor = torch.frombuffer(memory, dtype=torch.uint8)
        return Region(tensor=tensor, start=0, memory=memory, own_descriptor=descriptor)

    def close(self) -> None:
        """Let go of it; what tensors view stays until they are gone."""
        os.close(self.descriptor)

    def _sweep(self) -> None:
        while self._left:
            self._taken.remove(self._left.popleft())


def _whole_pages(size: int) -> int:
    return -(-size // _PAGE) * _PAGE
