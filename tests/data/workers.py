"""The worker processes of a loader, seen from outside, and shards that do not answer."""

import logging
import os
import time
from contextlib import contextmanager
from pathlib import Path


def workers_of(parent=None):
    """Process ids of living data workers of a process, by default of this one."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # gone meanwhile
        if b"data.worker" in words and fields[0] != "Z" and int(fields[1]) == (parent or os.getpid()):
            found.append(int(folder.name))
    return sorted(found)


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until(condition, *, seconds=20.0):
    """Wait for a condition; its value."""
    ends = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < ends, "it never came"
        time.sleep(0.01)
    return value


@contextmanager
def away(path, *, hangs):
    """A shard that cannot be opened, or whose opening never ends."""
    kept = path.with_suffix(".kept")
    path.rename(kept)
    if hangs:
        os.mkfifo(path)
    try:
        yield lambda: kept.replace(path)
    finally:
        if kept.exists():
            kept.replace(path)


@contextmanager
def at_replacement(action):
    """Do something when a worker is about to be replaced; gives what was logged."""
    lines = []

    class Handler(logging.Handler):
        def emit(self, record):
            lines.append(record.getMessage())
            if "a new one" in lines[-1]:
                action()

    handler, logger = Handler(), logging.getLogger("data.pool")
    logger.addHandler(handler)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
