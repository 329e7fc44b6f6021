from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from data.manifest import Manifest
from data.rows import ROWS_PER_GROUP, SCHEMA, Rows, digests_of, write_rows
from data.storage import Storage
from tests.data.latent_set import sample, write_latents


def table(count):
    """Rows that tell their number in every column."""
    columns = {}
    for field in SCHEMA:
        if pyarrow.types.is_string(field.type) or pyarrow.types.is_dictionary(field.type):
            columns[field.name] = [f"{field.name}{number % 1000}" for number in range(count)]
        else:
            first = np.uint64(1 << 63) if field.type == pyarrow.uint64() else 0
            columns[field.name] = np.arange(count, dtype=field.type.to_pandas_dtype()) + first
    return pyarrow.table(columns, schema=SCHEMA)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Three groups."""
    path, whole = tmp_path_factory.mktemp("rows") / "rows.parquet", table(2 * ROWS_PER_GROUP + 7)
    with open(path, "wb") as file:
        write_rows(whole, file)
    opened = Rows(open(path, "rb"), str(path))  # noqa: SIM115 - closed with the rows
    opened.expect(digests_of(whole))
    yield opened
    opened.close()


def test_rows_come_in_the_order_asked_for(rows):
    wanted = [5, 2 * ROWS_PER_GROUP + 6, ROWS_PER_GROUP, 5, ROWS_PER_GROUP - 1]
    assert rows.column("video_tokens", wanted).tolist() == wanted
    assert rows.column("latent_xxh3", wanted).tolist() == [(1 << 63) + row for row in wanted]
    assert rows.column("key", wanted).tolist() == [f"key{row % 1000}" for row in wanted]
    assert rows.row(ROWS_PER_GROUP + 1)["shard"] == f"shard{(ROWS_PER_GROUP + 1) % 1000}"
    assert len(rows) == 2 * ROWS_PER_GROUP + 7
    assert rows.column("video_tokens", []).dtype == np.int32 and len(rows.column("key", [])) == 0


def test_what_is_kept_in_memory_is_bounded(rows, monkeypatch):
    monkeypatch.setattr("data.rows._COLUMNS_KEPT", 2)
    for name in ("grid_t", "grid_h", "grid_w"):
        rows.column(name, [0, ROWS_PER_GROUP])
    assert len(rows._kept) == 2


def test_each_column_is_verified(tmp_path):
    manifest = write_latents(tmp_path / "set", [sample(i) for i in range(10)])
    path = Path(manifest.folder) / "manifest.parquet"
    for name in SCHEMA.names:
        whole = pyarrow.parquet.read_table(path)
        values = whole[name].to_pylist()
        values[3] = values[3] + ("x" if isinstance(values[3], str) else 1)
        place = whole.schema.names.index(name)
        column = pyarrow.array(values, None if isinstance(values[3], str) else whole.schema.field(name).type)
        column = column.cast(whole.schema.field(name).type)
        edited = whole.set_column(place, whole.schema.field(place), column)
        with open(tmp_path / "edited.parquet", "wb") as file:
            pyarrow.parquet.write_table(edited, file)
        with open(tmp_path / "edited.parquet", "rb") as file:
            opened = Rows(file, "edited.parquet")
            opened.expect(manifest.rows._digests)
            with pytest.raises(ValueError, match=f"edited.parquet: its {name} column does not match its hash"):
                opened.column(name, [0])
            other = "grid_t" if name != "grid_t" else "grid_h"
            assert len(opened.column(other, [0])) == 1, "the others are as they were"


def test_a_manifest_on_a_url_is_read_by_range(tmp_path):
    import fsspec

    manifest = write_latents(tmp_path / "set", [sample(i) for i in range(10)])
    memory = fsspec.filesystem("memory")
    memory.put(manifest.folder, f"/{tmp_path.name}", recursive=True)
    remote = Manifest.read(Storage(f"memory://{tmp_path.name}"))
    assert remote.hash == manifest.hash and remote.keys() == manifest.keys()
    assert remote.null_text().equal(manifest.null_text())
