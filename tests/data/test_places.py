from pathlib import Path

import fsspec
import numpy as np
import pytest

from data.manifest import Manifest
from data.mixture import DataSet
from data.places import Places, shard_place
from tests.data.latent_set import sample, write_latents


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("places")
    one = write_latents(folder / "one", [sample(i) for i in range(20)], samples_per_shard=4)
    other = write_latents(folder / "other", [sample(i) for i in range(20, 50)], samples_per_shard=4)
    return DataSet(manifests=(one, other), weights=(1.0, 2.0))


@pytest.mark.parametrize("split", [False, True])
def test_places_are_what_the_manifests_say_row_by_row(data, tmp_path, split):
    if split:
        mixed = write_latents(tmp_path / "set", [sample(i, heldout_every=3) for i in range(30)])
        data = DataSet.of(mixed).select("train")
        rows = data.manifests[0].row_numbers[::2]
    else:
        rows = np.array([41, 3, 19, 20, 21, 3, 0])
    places = Places.of(data, rows)
    assert places.rows.tolist() == sorted(set(rows.tolist()))
    for number, row in enumerate(places.rows.tolist()):
        manifest, own = data.place(row)
        place = manifest.row(own)
        assert all(value[number] == place[name] for name, value in places.columns.items())
        assert places.bucket(number) == place["bucket"]
        assert places.latent_shape(number) == (4, place["grid_t"], place["grid_h"], place["grid_w"])
        assert places.where(number) == f"{manifest.folder}/{place['shard']}: sample {place['key']}"
        assert shard_place(data, int(places.shard[number])).name == f"{manifest.folder}/{place['shard']}"


def test_some_of_them_and_several_together(data):
    whole = Places.of(data, range(50))
    part = whole.take(np.array([30, 2, 30, 7]))
    assert part.rows.tolist() == [2, 7, 30]
    joined = Places.joined([part, whole.take(np.array([7, 8]))])
    again = Places.of(data, [2, 7, 8, 30])
    assert joined.rows.tolist() == again.rows.tolist()
    assert all(joined.columns[name].tolist() == again.columns[name].tolist() for name in again.columns)
    assert joined.shard.tolist() == again.shard.tolist()
    assert part.has(np.array([30, 2]))
    assert not part.has(np.array([30, 3]))
    assert not Places.of(data, []).has(np.array([0]))


def test_a_shard_behind_a_url_keeps_its_storage(data):
    manifest, files = data.manifests[0], fsspec.filesystem("memory")
    for name in ("manifest.parquet", *(shard.name for shard in manifest.shards)):
        files.pipe_file(f"/places/{name}", (Path(manifest.folder) / name).read_bytes())
    far = shard_place(DataSet.of(Manifest.read("memory://places")), 1)
    assert (far.root, far.name, far.bytes) == ("memory://places", manifest.shards[1].name, manifest.shards[1].bytes)
