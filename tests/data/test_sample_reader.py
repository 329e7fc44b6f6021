"""Samples one at a time: every byte checked, only what is asked for read."""

import pytest
import torch

from data.latents import LatentWriter
from data.sample_reader import SampleReader, read_sample
from tests.data.latent_set import damaged, sample, write_latents


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return write_latents(tmp_path_factory.mktemp("loader") / "set", [sample(i) for i in range(60)])


def test_without_latents_only_text_and_captions_are_read(manifest, bytes_read):
    whole, bare = SampleReader(manifest), SampleReader(manifest, latents=False)
    for row in range(len(manifest)):
        expected, place = whole.read(row), manifest.row(row)
        bytes_read.clear()
        one = bare.read(row)
        wanted = [(place[f"{member}_offset"], place[f"{member}_size"]) for member in ("json", "text")]
        assert sorted(bytes_read) == sorted(wanted), "no byte of the latent, and every other one once"
        assert one.latent_CTHW is None
        assert one.latent_shape == expected.latent_shape == sample(int(one.key[-4:])).latent_CTHW.shape
        assert all(torch.equal(one.text[kind], value) for kind, value in expected.text.items())
        same = ("key", "index", "captions", "source", "video_tokens", "bucket")
        assert [getattr(one, name) for name in same] == [getattr(expected, name) for name in same]
        assert one.num_bytes == sum(text.nbytes for text in one.text.values())
    whole.close()
    bare.close()


def test_a_sample_with_its_latent_is_one_read(manifest, bytes_read):
    read_sample(manifest, 3)
    place = manifest.row(3)
    ends = [place[f"{member}_offset"] + place[f"{member}_size"] for member in ("json", "latent", "text")]
    assert bytes_read == [(place["json_offset"], max(ends) - place["json_offset"])]


@pytest.mark.parametrize("member", ["json", "latent", "text"])
def test_a_flipped_bit_is_an_error_with_shard_and_key(tmp_path, member):
    manifest, row, path = damaged(tmp_path, member)
    with pytest.raises(ValueError, match=f"{path}: sample film/clip0007: its {member} is damaged"):
        read_sample(manifest, row)


@pytest.mark.parametrize("meta", [b"{}", b"[1]", b"}"])
def test_metadata_without_captions_is_an_error_with_shard_and_key(tmp_path, monkeypatch, meta):
    stored = LatentWriter._stored
    monkeypatch.setattr(LatentWriter, "_stored", lambda writer, one: stored(writer, one) | {"json": meta})
    manifest = write_latents(tmp_path / "set", [sample(0)])
    with pytest.raises(ValueError, match="000000.tar: sample film/clip0000 cannot be read .*: encode the clips again"):
        read_sample(manifest, 0)


def test_only_one_caption_when_asked(manifest):
    assert list(read_sample(manifest, 0, "short").text) == ["short"]
    with pytest.raises(ValueError, match="has no caption 'long', but descriptive, short"):
        read_sample(manifest, 0, "long")
