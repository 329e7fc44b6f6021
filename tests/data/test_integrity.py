import shutil
from pathlib import Path

import fsspec
import pyarrow.parquet as pq
import pytest

from data.integrity import check_set, quick_problems
from data.manifest import FILE_NAME, NULL_TEXT_NAME, Manifest
from data.report import Problems
from tests.data.latent_set import sample, write_latents
from tests.data.tar_faults import overwrite, parts, rebuild


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("integrity") / "set"
    write_latents(folder, [sample(i, grid=(2, 4, 4)) for i in range(12)], samples_per_shard=4)
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "set")
    return tmp_path / "set"


def checked(folder, **options):
    problems = Problems()
    check_set(Manifest.read(folder, check_shards=False), problems, **options)
    return problems.lines(100)


def shard_of(folder, number):
    """The shard's path and the row of one sample."""
    manifest = Manifest.read(folder, check_shards=False)
    row = manifest.row(manifest.keys().index(f"film/clip{number:04d}"))
    return Path(folder) / row["shard"], row


@pytest.mark.parametrize("deep", [False, True])
def test_a_whole_set_has_no_problem(folder, deep):
    assert checked(folder, deep=deep) == []
    assert checked(folder, deep=deep, workers=2) == []


def test_a_quick_look_is_at_small_local_sets_and_never_raises(folder, monkeypatch):
    """A column that training does not read is damaged: a run that could go on must not end for it."""
    assert not quick_problems(Manifest.read(folder)).count
    path = folder / FILE_NAME
    columns = pq.ParquetFile(path).metadata.row_group(0)
    [column] = [
        columns.column(n) for n in range(columns.num_columns) if columns.column(n).path_in_schema == "text_tokens"
    ]
    overwrite(path, column.data_page_offset, bytes(column.total_compressed_size))
    with pytest.raises(ValueError, match="manifest"):
        checked(folder)
    [line] = quick_problems(Manifest.read(folder)).lines(9)
    assert "manifest.parquet" in line and "could not be looked through" in line
    assert not quick_problems(Manifest.read(f"file://{folder}")).count
    monkeypatch.setattr("data.integrity.QUICK_SAMPLES", 11)
    assert not quick_problems(Manifest.read(folder)).count


def test_missing_and_cut_shards_are_told_with_a_key(folder):
    path, _ = shard_of(folder, 1)
    path.unlink()
    cut, row = shard_of(folder, 6)
    cut.write_bytes(cut.read_bytes()[: row["latent_offset"] + 5])
    lines = checked(folder)
    shard, other = (str(each.relative_to(folder)) for each in (path, cut))
    assert lines[0] == f"{shard}: film/clip0000: the shard is missing, and all its 4 samples"
    assert lines[1].startswith(f"{other}: has {row['latent_offset'] + 5} bytes, though the manifest says ")
    assert lines[2].startswith(f"{other}: cut off at byte {row['latent_offset'] + 5}, inside 'film/clip0006.latent")
    assert lines[3:] == [f"{other}: film/clip0006: it and 1 more samples lie behind the damage"]


def test_damage_inside_a_member_is_found_by_a_deep_check_only(folder):
    path, row = shard_of(folder, 6)
    byte = path.read_bytes()[row["latent_offset"] + row["latent_size"] - 10]
    overwrite(path, row["latent_offset"] + row["latent_size"] - 10, bytes([byte ^ 1]))
    assert checked(folder) == []
    for workers in (1, 2):
        assert checked(folder, deep=True, workers=workers) == [
            f"{row['shard']}: film/clip0006: its latent is damaged (wrong checksum)"
        ]


def test_a_byte_between_members_is_found_by_the_hash_of_the_shard(folder):
    path, row = shard_of(folder, 6)
    overwrite(path, row["json_offset"] + row["json_size"] + 1, b"x")
    [line] = checked(folder, deep=True)
    assert (
        line == f"{row['shard']}: another file than the manifest names (wrong sha256), though all its samples are whole"
    )


def test_samples_and_shards_that_are_not_in_the_manifest_are_told(folder):
    path, row = shard_of(folder, 6)
    copy = [(member, data) for member, data in parts(path) if member.name.startswith("film/clip0006")]
    for member, _ in copy:
        member.name = member.name.replace("clip0006", "new")
    rebuild(path, parts(path) + copy)
    shutil.copy(path, folder / "more.tar")
    lines = checked(folder)
    assert lines[0] == "more.tar: not in the manifest: nothing in it is trained on; index again, or delete it"
    assert any(line.startswith(f"{row['shard']}: film/new: at byte ") and "never trained on" in line for line in lines)


def test_members_under_other_names_are_told(folder):
    path, row = shard_of(folder, 6)
    members = parts(path)
    for member, _ in members:
        member.name = member.name.replace("clip0006.text", "clip0006.else")
    rebuild(path, members)
    [line] = checked(folder)
    assert line.startswith(f"{row['shard']}: film/clip0006: its text of {row['text_size']} bytes is not at byte ")
    assert "there is 'film/clip0006.else.safetensors'" in line


def test_the_null_text_is_looked_at(folder):
    overwrite(folder / NULL_TEXT_NAME, 80, b"x")
    assert checked(folder) == [f"{NULL_TEXT_NAME}: damaged (wrong checksum)"]
    (folder / NULL_TEXT_NAME).unlink()
    assert checked(folder) == [f"{NULL_TEXT_NAME}: missing"]


def test_a_source_in_both_splits_is_told(tmp_path):
    samples = [sample(i, heldout_every=2) for i in range(4)]
    object.__setattr__(samples[1], "source", samples[0].source)
    write_latents(tmp_path / "set", samples)
    [line] = checked(tmp_path / "set")
    assert "its source 'shot0' is in both splits" in line


def test_sets_behind_a_url_are_checked_alike(folder):
    path, row = shard_of(folder, 6)
    overwrite(path, row["text_offset"] + row["text_size"] - 2, b"\x55")
    memory = fsspec.filesystem("memory")
    for each in folder.rglob("*"):
        if each.is_file():
            memory.pipe(f"/integrity-test/{each.relative_to(folder)}", each.read_bytes())
    expected = [f"{row['shard']}: film/clip0006: its text is damaged (wrong checksum)"]
    assert checked("memory://integrity-test", deep=True) == checked(folder, deep=True) == expected
