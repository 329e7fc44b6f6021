import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from data.storage import Storage


@pytest.fixture(params=["local", "memory"])
def storage(request, tmp_path):
    """Two files, in a folder and in fsspec's memory."""
    url = tmp_path if request.param == "local" else f"memory://{tmp_path.name}"
    files = fsspec.filesystem("file" if request.param == "local" else "memory")
    for name, data in {"a.tar": b"0123456789", "b/c.tar": b"xyz"}.items():
        path = f"{tmp_path}/{name}" if request.param == "local" else f"/{tmp_path.name}/{name}"
        files.makedirs(path.rpartition("/")[0], exist_ok=True)
        files.pipe_file(path, data)
    return Storage(url)


def test_ranges_are_read(storage):
    assert storage.read("a.tar") == b"0123456789"
    assert storage.read("a.tar", 3, 6) == b"345"
    assert storage.read("a.tar", 8, 20) == b"89"
    assert storage.read("b/c.tar", 1) == b"yz"


def test_files_are_listed_by_extension(storage):
    assert storage.names("tar") == ["a.tar", "b/c.tar"]
    assert storage.names("txt") == []


def test_sizes_are_told_and_what_is_missing(storage):
    assert storage.sizes(["a.tar", "b/c.tar", "d.tar"]) == {"a.tar": 10, "b/c.tar": 3, "d.tar": None}
    assert storage.sizes(["d.tar"]) == {"d.tar": None}
    assert storage.exists("b/c.tar") and not storage.exists("b")


def test_files_open_and_seek(storage):
    with storage.open("a.tar") as file:
        file.seek(-2, 2)
        assert file.read() == b"89"


def test_names_are_told_in_full(storage):
    assert storage.where("b/c.tar").endswith("/b/c.tar")
    assert storage.is_local == (not storage.root.startswith("memory:"))


class Forbidden(Exception):
    """As clients of object stores raise, which is no OSError."""


class Closed(MemoryFileSystem):
    """A bucket that its owner closed."""

    protocol = "closed"

    def isfile(self, path):
        raise Forbidden("403")

    def find(self, path, **rest):
        raise Forbidden("403")

    def cat_file(self, path, **rest):
        raise Forbidden("403")

    def open(self, path, mode="rb", **rest):
        raise Forbidden("403")


def test_what_a_client_raises_is_an_error_of_the_system_with_the_place():
    fsspec.register_implementation("closed", Closed, clobber=True)
    storage = Storage("closed://bucket")
    for ask, where in [
        (lambda: storage.exists("a.tar"), "closed://bucket/a.tar"),
        (lambda: storage.sizes(["a.tar", "b.tar"]), "closed://bucket"),
        (lambda: storage.names("tar"), "closed://bucket"),
        (lambda: storage.open("a.tar"), "closed://bucket/a.tar"),
        (lambda: storage.read("a.tar", 0, 4), "closed://bucket/a.tar"),
    ]:
        with pytest.raises(OSError, match=rf"{where}: Forbidden: 403"):
            ask()


@pytest.mark.parametrize("url", ["pipe:curl evil", "simplecache::pipe:curl evil"])
def test_pipes_are_refused(url):
    with pytest.raises(ValueError, match="would start a program"):
        Storage(url)


def test_unknown_kinds_are_one_sentence():
    with pytest.raises(ValueError, match="nosuch://a/b cannot be opened"):
        Storage("nosuch://a/b")
