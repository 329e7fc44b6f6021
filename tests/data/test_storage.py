import fsspec
import pytest

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


@pytest.mark.parametrize("url", ["pipe:curl evil", "simplecache::pipe:curl evil"])
def test_pipes_are_refused(url):
    with pytest.raises(ValueError, match="would start a program"):
        Storage(url)


def test_unknown_kinds_are_one_sentence():
    with pytest.raises(ValueError, match="nosuch://a/b cannot be opened"):
        Storage("nosuch://a/b")
