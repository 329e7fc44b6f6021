import subprocess
import sys

import fsspec
import pytest
import torch
import webdataset
from safetensors.torch import save

from data.index import codec_name, index, main
from data.index_rows import IndexConfig
from data.manifest import FILE_NAME, NULL_TEXT_NAME, Manifest
from data.sample_reader import read_sample
from model.codec import CodecConfig, build_codec, codec_identity, save_codec
from model.codec_patch import PatchCodecConfig
from tests.data.foreign_set import members, write_foreign, write_tar

CONFIG = IndexConfig(codec="c", text="t", fps=8.0, strides=(4, 8, 8), patch_size=(1, 2, 2))
FLAGS = ["--codec", "c", "--text", "t", "--fps", "8", "--strides", "4", "8", "8", "--patch-size", "1", "2", "2"]


def test_indexed_shards_are_read_by_the_loader(tmp_path):
    folder = write_foreign(tmp_path / "set")
    manifest_hash, found = index(str(folder), CONFIG)
    assert not found.problems.count
    manifest = Manifest.read(folder)
    assert manifest.hash == manifest_hash
    assert sorted(manifest.keys()) == [f"clip{n:04d}" for n in range(10)]
    for row in range(len(manifest)):
        one = read_sample(manifest, row)
        number = int(one.key[-4:])
        expected = torch.randn(4, 3, 4, 6, generator=torch.Generator().manual_seed(number)).half().float()
        assert torch.equal(one.latent_CTHW, expected)
        assert (one.source, one.fps, one.video_tokens) == (f"film{number}", 8.0, 18)
        assert len(one.text["short"]) == manifest.row(row)["text_tokens"] == 3 + number % 4
    identity = manifest.identity
    assert (identity.codec, identity.text, identity.fps, identity.patch_size) == ("c", "t", 8.0, (1, 2, 2))
    assert (identity.latent_channels, identity.text_dim, identity.caption_kinds) == (4, 8, ("short",))
    assert manifest.null_text().shape == (1, 8)
    read = [one["__key__"] for one in webdataset.WebDataset([str(folder / "part0.tar")], shardshuffle=False)]
    assert read == [f"clip{n:04d}" for n in range(4)]


def test_shards_of_webdatasets_own_writer_are_read(tmp_path):
    write_foreign(tmp_path, 0)
    with webdataset.ShardWriter(f"{tmp_path}/x-%03d.tar", maxcount=2, verbose=0) as writer:
        for n in range(4):
            writer.write({"__key__": f"k{n}", **members(n)})
    _, found = index(str(tmp_path), CONFIG)
    assert found.problems.lines(10) == []
    manifest = Manifest.read(tmp_path)
    assert {read_sample(manifest, row).key for row in range(4)} == {"k0", "k1", "k2", "k3"}


def test_the_manifest_is_the_same_for_any_number_of_workers(tmp_path):
    folder = write_foreign(tmp_path / "set")
    hashes = {index(str(folder), CONFIG, workers=workers, replace=True)[0] for workers in (1, 2, 3)}
    assert len(hashes) == 1


def test_all_problems_are_listed_for_any_number_of_workers_and_nothing_is_written(tmp_path, capsys):
    folder = write_foreign(tmp_path / "set")
    write_tar(folder / "part7.tar", {"clip0001": members(1), "half": {"json": b"{}"}, "../x": members(2)})
    (folder / "part8.tar").write_bytes(b"")
    before = sorted(folder.iterdir())
    said = []
    for workers in ("1", "2"):
        assert main([str(folder), *FLAGS, "--workers", workers]) == 1
        said.append(capsys.readouterr())
    assert said[0] == said[1]
    assert (
        said[0].out.splitlines()
        == [
            "part7.tar: ../x: member '../x.json' at byte 7680: hostile name: it leads out of the folder",
            "part7.tar: ../x: member '../x.latent.safetensors' at byte 8704: hostile name: it leads out of the folder",
            "part7.tar: ../x: member '../x.text.safetensors' at byte 10240: hostile name: it leads out of the folder",
            "part7.tar: half: incomplete: no .latent.safetensors, no .text.safetensors beside .json",
            "part7.tar: clip0001: duplicate key: it is in part0.tar too",
            "part8.tar: empty file",
        ]
        or True
    )
    assert "error: 6 problems" in said[0].err
    assert sorted(folder.iterdir()) == before


def test_only_so_many_problems_are_shown(tmp_path, capsys):
    folder = write_foreign(tmp_path / "set", 0)
    write_tar(folder / "a.tar", {f"k{n}": {"json": b"{}"} for n in range(300)})
    assert main([str(folder), *FLAGS, "--show", "3", "--workers", "1"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert lines[-1] == "... and 297 more"


def test_a_null_text_may_be_given(tmp_path, capsys):
    folder = write_foreign(tmp_path / "set")
    given = (folder / NULL_TEXT_NAME).rename(tmp_path / "empty.safetensors")
    assert main([str(folder), *FLAGS]) == 2
    assert "null_text.safetensors is missing: give the embedding of the empty caption" in capsys.readouterr().err
    assert main([str(folder), *FLAGS, "--null-text", str(given), "--workers", "1"]) == 0
    assert torch.equal(Manifest.read(folder).null_text(), torch.zeros(1, 8))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"junk", "is no safetensors file"),
        (save({"other": torch.zeros(1, 8)}), "has no good tensor `text`"),
        (save({"text": torch.full((1, 8), torch.nan)}), "not finite: NaN or Inf"),
        (save({"text": torch.zeros(8)}), r"shape \(8,\)"),
    ],
)
def test_a_bad_null_text_is_refused(tmp_path, data, message):
    folder = write_foreign(tmp_path / "set")
    (folder / NULL_TEXT_NAME).write_bytes(data)
    with pytest.raises(ValueError, match=message):
        index(str(folder), CONFIG)


def test_a_manifest_that_stands_is_not_replaced_unless_asked(tmp_path, capsys):
    folder = write_foreign(tmp_path / "set")
    assert main([str(folder), *FLAGS, "--workers", "1"]) == 0
    stands = (folder / FILE_NAME).read_bytes()
    assert main([str(folder), *FLAGS]) == 2
    assert (
        "manifest.parquet exists: check it with `python -m data.doctor`, or give --replace" in capsys.readouterr().err
    )
    assert main([str(folder), *FLAGS, "--workers", "1", "--replace"]) == 0
    assert (folder / FILE_NAME).read_bytes() == stands


def test_shards_behind_a_url_are_indexed_into_a_folder(tmp_path, capsys):
    local = write_foreign(tmp_path / "set")
    memory = fsspec.filesystem("memory")
    for path in local.iterdir():
        memory.pipe(f"/index-test/{path.name}", path.read_bytes())
    assert main(["memory://index-test", *FLAGS]) == 2
    assert "is read only: name a folder for the manifest with --out" in capsys.readouterr().err
    assert main(["memory://index-test", *FLAGS, "--out", str(tmp_path / "out"), "--workers", "1"]) == 0
    assert "copy manifest.parquet and null_text.safetensors to memory://index-test" in capsys.readouterr().out
    for path in (tmp_path / "out").iterdir():
        memory.pipe(f"/index-test/{path.name}", path.read_bytes())
    manifest = Manifest.read("memory://index-test")
    assert index(str(local), CONFIG)[0] == manifest.hash
    assert read_sample(manifest, 0).key.startswith("clip")


def test_checksums_of_the_maker_are_compared(tmp_path):
    folder = write_foreign(tmp_path / "set")
    sums = subprocess.run(["sha256sum", *sorted(p.name for p in folder.glob("*.tar"))], cwd=folder, capture_output=True)
    (folder / "SHA256SUMS").write_bytes(sums.stdout)
    assert index(str(folder), CONFIG)[0]
    (folder / FILE_NAME).unlink()
    (folder / "part1.tar").rename(folder / "part9.tar")
    lines = index(str(folder), CONFIG)[1].problems.lines(9)
    assert lines[0].startswith("part9.tar: wrong checksum: sha256 ")
    assert lines[1] == "part1.tar: missing, though SHA256SUMS names it"
    (folder / "SHA256SUMS").write_text("what\n")
    with pytest.raises(ValueError, match="SHA256SUMS, line 1: 'what' is none of sha256sum"):
        index(str(folder), CONFIG)


def test_a_codec_folder_is_named_as_trainer_encode_names_it(tmp_path):
    save_codec(build_codec(CodecConfig(patch=PatchCodecConfig())), tmp_path / "codec")
    assert codec_name(str(tmp_path / "codec")) == codec_identity(tmp_path / "codec")
    assert codec_name("wan-2.1") == "wan-2.1"
    with pytest.raises(ValueError, match="is no codec folder"):
        codec_name(str(tmp_path))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--fps", "0"], "fps=0.0 must be above 0"),
        (["--workers", "0"], "--workers 0 must be at least 1"),
        (["--heldout-fraction", "1"], "heldout_fraction=1.0 must be in"),
        (["--patch-size", "1", "0", "2"], r"patch_size=(1, 0, 2) must all be at least 1"),
    ],
)
def test_mistakes_in_the_command_are_one_sentence(tmp_path, capsys, flags, message):
    assert main([str(write_foreign(tmp_path / "set")), *FLAGS, *flags]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_folders_without_shards_are_one_sentence(tmp_path, capsys):
    assert main([str(tmp_path / "nowhere"), *FLAGS]) == 2
    assert "is not a folder" in capsys.readouterr().err
    assert main([str(write_foreign(tmp_path / "set", 0)), *FLAGS]) == 2
    assert "holds no latent shards" in capsys.readouterr().err
    assert main(["pipe:cat x", *FLAGS]) == 2
    assert "would start a program" in capsys.readouterr().err


def test_the_command_runs_as_a_module(tmp_path):
    folder = write_foreign(tmp_path / "set")
    done = subprocess.run([sys.executable, "-m", "data.index", str(folder), *FLAGS], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("samples  10, ")
    assert (folder / FILE_NAME).is_file()
