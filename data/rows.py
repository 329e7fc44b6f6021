"""The rows of a manifest: a Parquet file read by group and column, each verified as it is read."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import IO, Any

import numpy as np
import pyarrow
import pyarrow.parquet
import xxhash

from data.deadline import READ_TIMEOUT_S, within

MEMBERS = {"json": "json", "latent": "latent.safetensors", "text": "text.safetensors"}
"""Member of a sample -> its extension in the tar."""

PLACE_COLUMNS = tuple(f"{member}_{what}" for member in MEMBERS for what in ("offset", "size", "xxh3"))
"""Where the members of a sample lie, and their checksums."""
ROWS_PER_GROUP = 1 << 14
_COLUMNS_KEPT = 256
_TEXT = pyarrow.dictionary(pyarrow.int32(), pyarrow.string())
SCHEMA = pyarrow.schema(
    [
        ("key", pyarrow.string()),
        ("shard", _TEXT),
        *((f"{member}_offset", pyarrow.int64()) for member in MEMBERS),
        *((f"{member}_size", pyarrow.int64()) for member in MEMBERS),
        *((f"{member}_xxh3", pyarrow.uint64()) for member in MEMBERS),  # 64 bits of XXH3
        ("grid_t", pyarrow.int32()),  # latent frames, rows and columns, before patching
        ("grid_h", pyarrow.int32()),
        ("grid_w", pyarrow.int32()),
        ("video_tokens", pyarrow.int32()),  # after patching
        ("text_tokens", pyarrow.int32()),  # of the longest caption
        ("fps", pyarrow.float64()),  # frames a second of what was encoded
        ("modality", _TEXT),
        ("source", pyarrow.string()),
        ("split", _TEXT),
        ("bucket", _TEXT),
    ]
)

Column = np.ndarray
"""Numbers, or an array of `str` objects."""


class Rows:
    """Columns of any rows; the last columns used stay in memory, so that it does not grow with the data set."""

    def __init__(self, file: IO[bytes], where: str) -> None:
        """`file` stays open. ValueError where it is no Parquet file of this schema."""
        self._where = where
        try:
            self._parquet = pyarrow.parquet.ParquetFile(file)
            schema = self._parquet.schema_arrow
        except Exception as error:  # each file system has errors of its own
            raise _unreadable(where, error) from error
        self.metadata: dict[bytes, bytes] = schema.metadata or {}
        self.has_schema = schema.remove_metadata().equals(SCHEMA)
        groups = [self._parquet.metadata.row_group(i).num_rows for i in range(self._parquet.num_row_groups)]
        self._ends = np.cumsum(groups, dtype=np.int64)
        self._digests: list[dict[str, int]] = []
        self._kept: OrderedDict[tuple[int, str], Column] = OrderedDict()
        self._lock = threading.Lock()
        """A loader reads ahead in a thread of its own."""

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def expect(self, digests: list[dict[str, int]]) -> None:
        """What each column of each group must hash to."""
        self._digests = digests

    def column(self, name: str, rows: np.ndarray | Sequence[int]) -> Column:
        """A column's values at the given rows. ValueError where the file is not as it was written."""
        rows = np.asarray(rows, dtype=np.int64)
        groups = np.searchsorted(self._ends, rows, side="right")
        out: Column | None = None
        for group in np.unique(groups):
            with self._lock:
                values = self._group(int(group), name)
            here = groups == group
            first = int(self._ends[group - 1]) if group else 0
            if out is None:
                out = np.empty(len(rows), dtype=values.dtype)
            out[here] = values[rows[here] - first]
        return out if out is not None else np.empty(0, dtype=_numpy_type(name))

    def row(self, row: int) -> dict[str, Any]:
        return {name: _plain(self.column(name, [row])[0]) for name in SCHEMA.names}

    def close(self) -> None:
        self._parquet.close()

    def _read(self, group: int, name: str) -> pyarrow.Table:
        try:
            return self._parquet.read_row_group(group, columns=[name], use_threads=False)
        except OSError:  # a storage may fail once, as shards are read twice too
            return self._parquet.read_row_group(group, columns=[name], use_threads=False)

    def _group(self, group: int, name: str) -> Column:
        if (group, name) in self._kept:
            self._kept.move_to_end((group, name))
            return self._kept[group, name]
        try:
            table = within(READ_TIMEOUT_S, lambda: self._read(group, name))
        except Exception as error:  # each file system has errors of its own
            raise _unreadable(self._where, error) from error
        values = _to_numpy(table[name])
        if not self._digests or digest(values) != self._digests[group][name]:
            raise ValueError(f"{self._where}: its {name} column does not match its hash: it was changed; encode again")
        self._kept[group, name] = values
        while len(self._kept) > _COLUMNS_KEPT:
            self._kept.popitem(last=False)
        return values


def _unreadable(where: str, error: Exception) -> ValueError:
    if isinstance(error, pyarrow.ArrowException):
        return ValueError(f"{where} cannot be read ({error}): it is damaged; encode the clips again")
    detail = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
    return ValueError(f"{where} cannot be read ({detail}): see that its storage answers, or encode the clips again")


def write_rows(table: pyarrow.Table, file: IO[bytes]) -> None:
    """Numbers plain, so that reading a group of them costs next to nothing; text compressed."""
    text = [name for name in SCHEMA.names if _numpy_type(name) is object]
    packing = {name: "zstd" if name in text else "none" for name in SCHEMA.names}
    pyarrow.parquet.write_table(table, file, row_group_size=ROWS_PER_GROUP, compression=packing, use_dictionary=text)


def digests_of(table: pyarrow.Table) -> list[dict[str, int]]:
    """Of every column, for each group of `ROWS_PER_GROUP` rows."""
    groups = [table.slice(start, ROWS_PER_GROUP) for start in range(0, len(table), ROWS_PER_GROUP)]
    return [{name: digest(_to_numpy(group[name])) for name in SCHEMA.names} for group in groups]


def digest(values: Column) -> int:
    """XXH3 of a column's values, whatever the encoding of the file."""
    if values.dtype == object:
        return xxhash.xxh3_64_intdigest("".join(f"{len(text)}:{text}" for text in values).encode())
    return xxhash.xxh3_64_intdigest(values.astype(values.dtype.newbyteorder("<")).tobytes())


def _to_numpy(column: pyarrow.ChunkedArray) -> Column:
    if pyarrow.types.is_dictionary(column.type) or pyarrow.types.is_string(column.type):
        out = np.empty(len(column), dtype=object)
        out[:] = column.cast(pyarrow.string()).to_pylist()
        return out
    return column.to_numpy()


def _numpy_type(name: str) -> Any:
    kind = SCHEMA.field(name).type
    return kind.to_pandas_dtype() if pyarrow.types.is_primitive(kind) else object


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
