from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from data.manifest import FILE_NAME, Manifest
from data.split import SPLITS
from tests.data.latent_set import sample, write_latents


@pytest.fixture
def manifest(tmp_path):
    return write_latents(tmp_path / "set", [sample(i, heldout_every=5) for i in range(40)])


def test_splits_part_the_rows(manifest):
    train, heldout = manifest.select("train"), manifest.select("heldout")
    assert sorted(train.keys() + heldout.keys()) == sorted(manifest.keys())
    assert sorted(heldout.keys()) == [f"film/clip{i:04d}" for i in range(0, 40, 5)]
    assert len({manifest.hash, train.hash, heldout.hash}) == 3


def test_head_keeps_the_first_rows(manifest):
    assert manifest.head(3).keys() == manifest.keys()[:3]
    assert manifest.head(3).hash != manifest.hash


def test_chunks_are_runs_of_one_shard_bucket_and_split(manifest):
    chunks, seen = manifest.chunks, []
    for n in range(len(chunks)):
        rows = range(chunks.first[n], chunks.first[n] + chunks.count[n])
        assert set(manifest.column("shard", rows)) == {manifest.shards[chunks.shard[n]].name}
        assert set(manifest.column("bucket", rows)) == {manifest.bucket_names[chunks.bucket[n]]}
        assert set(manifest.column("split", rows)) == {SPLITS[chunks.split[n]]}
        tokens = manifest.column("video_tokens", rows)
        assert (tokens.sum(), tokens.min(), tokens.max()) == (
            chunks.video_tokens[n],
            chunks.least_tokens[n],
            chunks.most_tokens[n],
        )
        places = manifest.column("latent_offset", rows)
        assert (np.diff(places) > 0).all(), "in the order of their bytes"
        seen += rows
    assert seen == list(range(len(manifest)))


def test_buckets_add_up(manifest):
    sizes = manifest.buckets()
    assert sum(size.samples for size in sizes.values()) == len(manifest)
    assert sum(size.tokens for size in sizes.values()) == manifest.column("video_tokens").sum()
    assert sum(size.shards for size in sizes.values()) == len(manifest.shards)
    assert sum(size.bytes for size in sizes.values()) == sum(shard.bytes for shard in manifest.shards)


def test_the_hash_names_content_not_place(tmp_path):
    samples = [sample(i) for i in range(10)]
    first = write_latents(tmp_path / "a", samples)
    assert write_latents(tmp_path / "b", samples).hash == first.hash
    assert write_latents(tmp_path / "c", samples[:9]).hash != first.hash
    assert write_latents(tmp_path / "d", samples, codec="x" * 64).hash != first.hash
    changed = [*samples[:9], sample(9)]
    changed[9].latent_CTHW[0, 0, 0, 0] += 1e-3
    assert write_latents(tmp_path / "e", changed).hash != first.hash


def test_the_outline_names_what_is_known_before_encoding(tmp_path):
    """Not the values: the same clips encoded elsewhere have the same order."""
    samples = [sample(i, heldout_every=4) for i in range(20)]
    other = [replace(one, latent_CTHW=one.latent_CTHW + 1, meta={"note": "longer"}) for one in samples]
    first, same = write_latents(tmp_path / "a", samples), write_latents(tmp_path / "b", other, codec="d" * 64)
    for part in (lambda m: m, lambda m: m.select("train"), lambda m: m.select("train").head(5)):
        assert part(first).outline == part(same).outline
        assert part(first).hash != part(same).hash
    outlines = {first.outline, first.select("train").outline, first.select("train").head(5).outline}
    for number, changed in enumerate((samples[:-1], [replace(samples[0], key="else"), *samples[1:]], samples[::-1])):
        outlines.add(write_latents(tmp_path / str(number), changed).outline)
    outlines.add(write_latents(tmp_path / "cut", samples, samples_per_shard=1).outline)
    assert len(outlines) == 7


def test_shards_of_another_codec_are_refused(manifest):
    manifest.require_identity(codec="c" * 64, text="t" * 64, patch_size=(1, 2, 2))
    with pytest.raises(
        ValueError, match="encoded by another codec [(]cccccccccccc, not dddddddddddd[)]: name the codec"
    ):
        manifest.require_identity(codec="d" * 64)
    with pytest.raises(ValueError, match="another text encoder"):
        manifest.require_identity(text="d" * 64)
    with pytest.raises(ValueError, match=r"patch size \(1, 2, 2\), but the model has \(1, 4, 4\)"):
        manifest.require_identity(patch_size=(1, 4, 4))


def test_a_missing_manifest_is_one_sentence(tmp_path):
    with pytest.raises(ValueError, match="has no manifest.parquet: make latent shards with `python -m trainer.encode`"):
        Manifest.read(tmp_path)


def test_an_edited_manifest_is_refused(manifest):
    path = Path(manifest.folder) / FILE_NAME
    table = pyarrow.parquet.read_table(path)
    tokens = table["video_tokens"].to_numpy().copy()
    tokens[0] += 1
    place = table.schema.names.index("video_tokens")
    edited = table.set_column(place, table.schema.field(place), pyarrow.array(tokens, pyarrow.int32()))
    pyarrow.parquet.write_table(edited, path)
    with pytest.raises(ValueError, match="its video_tokens column does not match its hash"):
        Manifest.read(manifest.folder).column("video_tokens")


def test_an_edited_description_is_refused(manifest):
    path = Path(manifest.folder) / FILE_NAME
    table = pyarrow.parquet.read_table(path)
    metadata = {key: value.replace(b"cccc", b"dddd") for key, value in table.schema.metadata.items()}
    pyarrow.parquet.write_table(table.replace_schema_metadata(metadata), path)
    with pytest.raises(ValueError, match="does not match its own hash"):
        Manifest.read(manifest.folder)


def test_a_truncated_manifest_is_refused(manifest):
    path = Path(manifest.folder) / FILE_NAME
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="manifest.parquet cannot be read"):
        Manifest.read(manifest.folder)


def test_parquet_made_by_someone_else_is_refused(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"a": [1]}), tmp_path / FILE_NAME)
    with pytest.raises(ValueError, match="manifest.parquet cannot be read"):
        Manifest.read(tmp_path)


def test_missing_and_short_shards_are_named_when_the_set_is_opened(manifest):
    path = Path(manifest.folder) / manifest.shards[1].name
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(
        ValueError, match=f"{path} has {len(whole) - 1} bytes, though manifest.parquet says {len(whole)}"
    ):
        Manifest.read(manifest.folder)
    path.unlink()
    with pytest.raises(ValueError, match=f"{path} is missing"):
        Manifest.read(manifest.folder)


def test_rows_are_read_by_several_threads_at_once(tmp_path):
    manifest = write_latents(tmp_path / "set", [sample(i) for i in range(40)])
    names = ["key", "video_tokens", "shard", "fps", "text_tokens", "latent_offset", "json_size", "bucket"]
    expected = {name: manifest.column(name).tolist() for name in names}

    def read(name):
        return manifest.column(name).tolist()

    with ThreadPoolExecutor(8) as pool:
        for _ in range(40):
            manifest.rows._kept.clear()
            assert dict(zip(names, pool.map(read, names))) == expected
