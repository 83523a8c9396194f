"""Reads row groups of Parquet files on the Hub or on this disk, a few rows of a few columns at a time.

The `datasets` library, which reads most other formats, decodes a whole row group and opens its file
again for each: 2,000 small ones cost 2,000 reads of the file's metadata, and a large one its size.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

BATCH_BYTES = 4_000_000  # of rows decoded at once, about
FILES_REMEMBERED = 32  # of whose metadata, up to a megabyte each, the latest is kept


class Metadata(NamedTuple):
    file: Any  # a pyarrow.parquet.FileMetaData
    schema: Any  # a pyarrow.Schema


class ParquetFiles:
    """Files by number. Raises what pyarrow and the file system raise."""

    def __init__(self, paths: list[str]):
        self._paths = paths
        self._metadata = lru_cache(FILES_REMEMBERED)(self._read_metadata)

    def schema(self, file: int) -> Any:
        """Return the Arrow schema of a file."""
        return self._metadata(file).schema

    def group_sizes(self, file: int) -> list[int]:
        """Return the number of rows of each row group."""
        metadata = self._metadata(file).file
        return [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]

    def tables(self, file: int, group: int, columns: list[str] | None, num_rows: int) -> Iterator[Any]:
        """Yield a row group as Arrow tables of `num_rows` rows, or fewer where these are large, with those of `columns` that
        exist (None: all)."""
        metadata, schema = self._metadata(file)
        size = metadata.row_group(group)
        num_rows = max(1, min(num_rows, BATCH_BYTES * size.num_rows // max(1, size.total_byte_size)))
        if columns is not None:  # pyarrow miscounts rows without any column
            columns = [name for name in columns if name in schema.names] or schema.names[:1]
        with self._open(file) as opened:
            reader = pq.ParquetFile(opened, metadata=metadata)
            for batch in reader.iter_batches(num_rows, row_groups=[group], columns=columns):
                yield pa.Table.from_batches([batch])

    def _read_metadata(self, file: int) -> Metadata:
        with self._open(file) as opened:
            reader = pq.ParquetFile(opened)
            return Metadata(reader.metadata, reader.schema_arrow)

    def _open(self, file: int) -> Any:
        from datasets.utils.file_utils import xopen

        return xopen(self._paths[file], "rb")
