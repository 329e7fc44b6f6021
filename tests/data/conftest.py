"""What several tests of `data` watch."""

import pytest

from data.worker import Files


@pytest.fixture
def bytes_read(monkeypatch):
    """(offset, size) of every read of a shard."""
    reads, read_into = [], Files.read_into

    def recorded(files, root, name, start, memory):
        reads.append((start, len(memory)))
        return read_into(files, root, name, start, memory)

    monkeypatch.setattr(Files, "read_into", recorded)
    return reads
