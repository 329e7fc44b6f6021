"""Where shards lie: a local folder, or a URL that fsspec can open (an object store)."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import fsspec
from fsspec import AbstractFileSystem

_BUFFER_BYTES = 4096


class Storage:
    """Read-only access to the files under one folder or URL, by their names relative to it."""

    def __init__(self, root: str | Path) -> None:
        """ValueError for a URL that starts programs (`pipe:`) or that fsspec does not know.

        Methods raise OSError where something cannot be read.
        """
        self.root = str(root)
        self._remote: AbstractFileSystem | None = None
        if "://" in self.root or "::" in self.root or self.root.startswith("pipe:"):
            self._remote, self._base = _remote(self.root)

    @property
    def is_local(self) -> bool:
        return self._remote is None

    def where(self, name: str) -> str:
        """The whole path or URL of a file."""
        return str(Path(self.root) / name) if self.is_local else f"{self.root.rstrip('/')}/{name}"

    def exists(self, name: str) -> bool:
        return self.sizes([name])[name] is not None

    def sizes(self, names: list[str]) -> dict[str, int | None]:
        """Bytes of each file; None where there is no such file."""
        if self._remote is None:
            return {name: _local_size(Path(self.root) / name) for name in names}
        if len(names) == 1:
            path = self._path(names[0])
            with told(self.where(names[0])):
                return {names[0]: int(self._remote.size(path)) if self._remote.isfile(path) else None}
        # One listing, however many shards there are.
        with told(self.root):
            found = self._remote.find(self._base, detail=True)
        listed = {path: int(entry["size"]) for path, entry in found.items()}
        return {name: listed.get(self._path(name)) for name in names}

    def names(self, extension: str) -> list[str]:
        """Files with this extension under the root, in whatever folder, sorted."""
        if self._remote is None:
            root = Path(self.root)
            return sorted(str(path.relative_to(root)) for path in root.rglob(f"*.{extension}") if path.is_file())
        base = len(self._base) + 1
        with told(self.root):
            return sorted(path[base:] for path in self._remote.find(self._base) if path.endswith(f".{extension}"))

    def open(self, name: str) -> IO[bytes]:
        """The file for reading; it can seek. See `told` for what reading it may raise."""
        if self._remote is None:
            # Headers are read one by one, and a cluster's file system would have megabytes read for each.
            return open(Path(self.root) / name, "rb", buffering=_BUFFER_BYTES)
        with told(self.where(name)):
            return self._remote.open(self._path(name), "rb")

    def read(self, name: str, start: int = 0, end: int | None = None) -> bytes:
        """Bytes [start, end) of a file; fewer where it ends before."""
        if self._remote is None:
            with open(Path(self.root) / name, "rb") as file:
                return os.pread(
                    file.fileno(), (end if end is not None else os.fstat(file.fileno()).st_size) - start, start
                )
        with told(self.where(name)):
            return self._remote.cat_file(self._path(name), start=start, end=end)

    def _path(self, name: str) -> str:
        return f"{self._base}/{name}"


@contextmanager
def told(where: str) -> Iterator[None]:
    """An OSError that says what it was about, whatever the client of an object store raises."""
    try:
        yield
    except AssertionError:  # is ours
        raise
    except Exception as error:  # each client has errors of its own
        if isinstance(error, FileNotFoundError):
            raise FileNotFoundError(errno.ENOENT, f"{where}: there is no such file") from error
        detail = (isinstance(error, OSError) and error.strerror) or f"{type(error).__name__}: {error}"
        raise OSError(errno.EIO, f"{where}: {detail}") from error


def _remote(url: str) -> tuple[AbstractFileSystem, str]:
    if url.startswith("pipe:") or "::pipe:" in url:
        raise ValueError(f"{url} would start a program: give a folder, or a URL such as s3://bucket/folder")
    try:
        filesystem, base = fsspec.core.url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise ValueError(f"{url} cannot be opened ({error}): give a folder, or install what fsspec asks for") from error
    return filesystem, base.rstrip("/")


def _local_size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None
