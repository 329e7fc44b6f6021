import errno
import io
import json

import pytest
import safetensors.torch
import torch
import webdataset

from data import manifest as manifest_file
from data.latents import LatentConfig, LatentWriter, bucket_of, video_tokens
from data.manifest import Manifest
from data.sample_reader import read_sample
from tests.data.latent_set import sample, write_latents


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_samples_come_back_as_written(tmp_path, dtype):
    samples = [sample(i) for i in range(30)]
    manifest = write_latents(tmp_path / "set", samples, dtype=dtype)
    kept = getattr(torch, dtype)
    rows = {key: row for row, key in enumerate(manifest.keys())}
    assert len(manifest) == 30
    for written in samples:
        read = read_sample(manifest, rows[written.key])
        assert torch.equal(read.latent_CTHW, written.latent_CTHW.to(kept).float())
        assert read.text.keys() == written.text.keys()
        assert all(torch.equal(read.text[kind], written.text[kind].to(kept).float()) for kind in read.text)
        assert (read.captions, read.source, read.fps) == (written.captions, written.source, written.fps)
        assert read.index == rows[written.key]


def test_shards_are_plain_webdataset_tars_by_bucket(tmp_path):
    samples = [sample(i) for i in range(30)]
    manifest = write_latents(tmp_path / "set", samples)
    paths = sorted(str(path) for path in (tmp_path / "set").glob("*/*.tar"))
    assert len(paths) == len(manifest.shards) > 4
    read = {s["__key__"]: s for s in webdataset.WebDataset(paths, shardshuffle=False)}
    assert len(read) == 30
    for written in samples:
        members = read[written.key]
        assert torch.equal(safetensors.torch.load(members["latent.safetensors"])["latent"], written.latent_CTHW)
        assert json.loads(members["json"])["captions"] == written.captions
        assert json.loads(members["json"])["fps"] == written.fps
    for row in range(30):
        place = manifest.row(row)
        low, high = (int(part) for part in place["bucket"].split("-")[1:])
        assert low <= place["video_tokens"] <= high
        assert place["shard"].startswith(place["bucket"] + "/")
        assert place["modality"] == ("image" if place["grid_t"] == 1 else "video")


def test_buckets_tile_the_token_counts_by_powers_of_sqrt_2():
    bounds = sorted({tuple(int(p) for p in bucket_of(n, "video").split("-")[1:]) for n in range(1, 5000)})
    assert all(bucket_of(n, "video") == bucket_of(low, "video") for low, high in bounds for n in (low, high))
    assert all(after[0] == before[1] + 1 for before, after in zip(bounds, bounds[1:], strict=False))
    assert bucket_of(1024, "video") == "video-001024-001448" and bucket_of(1449, "image") == "image-001449-002047"
    # 2^(k/2) <= low and high < 2^((k+1)/2), in whole numbers.
    for low, high in bounds:
        k = (low * low).bit_length() - 1
        assert 2**k <= low * low and high * high < 2 ** (k + 1)


def test_shards_hold_no_more_samples_than_asked(tmp_path):
    manifest = write_latents(tmp_path / "set", [sample(i, grid=(1, 2, 2)) for i in range(20)], samples_per_shard=8)
    assert [shard.count for shard in manifest.shards] == [8, 8, 4]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])
def test_values_that_cannot_be_stored_are_refused(tmp_path, value):
    writer = LatentWriter(tmp_path, LatentConfig(dtype="float16"), patch_size=(1, 2, 2))
    bad = sample(0)
    bad.latent_CTHW[0, 0, 0, 0] = value
    with pytest.raises(ValueError, match="not finite: latent has NaN or Inf as float16"):
        writer.write(bad)
    writer.write(sample(1))
    assert writer.columns["key"] == ["film/clip0001"]


def test_keys_are_unique_over_all_shards(tmp_path):
    writer = LatentWriter(tmp_path, LatentConfig(samples_per_shard=1), patch_size=(1, 2, 2))
    writer.write(sample(3))
    with pytest.raises(ValueError, match="duplicate key: 'film/clip0003'"):
        writer.write(sample(3))


def test_a_grid_off_the_patch_is_refused():
    assert video_tokens(torch.zeros(4, 5, 4, 6), (1, 2, 2)) == 30
    with pytest.raises(ValueError, match=r"latent grid \(5, 3, 6\) is no multiple of the patch \(1, 2, 2\)"):
        video_tokens(torch.zeros(4, 5, 3, 6), (1, 2, 2))


def test_the_null_text_is_stored_and_checked(tmp_path):
    manifest = write_latents(tmp_path / "set", [sample(0)])
    assert torch.equal(manifest.null_text(), torch.ones(2, 8))
    path = tmp_path / "set" / "null_text.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    with pytest.raises(ValueError, match="null_text.safetensors is damaged"):
        Manifest.read(tmp_path / "set").null_text()


def test_a_disk_that_fills_at_the_manifest_leaves_no_set(tmp_path, monkeypatch):
    class FullDisk(io.FileIO):
        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(manifest_file, "open", FullDisk, raising=False)
    with pytest.raises(OSError, match="the disk ran full while writing .*set: nothing half-written"):
        write_latents(tmp_path / "set", [sample(0)])
    assert not list(tmp_path.iterdir())
