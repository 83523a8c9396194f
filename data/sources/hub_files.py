"""The files of a dataset: which there are, who reads each, and which of their rows are meant.

Parquet and CSV are read by parquet.py and csv_files.py, every other format by the `datasets`
library. The library reads one format of a repository or folder and says nothing of the others: here
each format that `data_files` names is read, and each tabular one in a folder on this disk; what is
not read of the others is said.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from configs.errors import SourceError
from configs.hf_source import LOCAL_FORMATS, HFSource
from configs.splits import Part
from data.sources.csv_files import CSVFiles
from data.sources.hub_listing import (
    ALL,
    check_inside,
    check_patterns,
    choose_tables,
    files_in_folder,
    listed_files,
    name_unread,
)
from data.sources.hub_messages import format_of
from data.sources.parquet import ParquetFiles

PART_OF_FILE = 2**16  # bytes at its beginning, and at its end, that tell whether it has changed
COUNTED_AT_ONCE = 16  # files whose rows are counted for a slice
MOST_COUNTED = 500  # files; more take minutes on the Hub


class Reader(Protocol):
    """Reads files by their number, a group at a time. Raises what libraries and file systems raise."""

    def schema(self, file: int) -> Any | None: ...

    def group_sizes(self, file: int) -> list[int] | list[int | None]: ...

    def tables(self, file: int, group: int, columns: list[str] | None, num_rows: int) -> Iterator[Any]: ...


class Group(NamedTuple):
    """The part of a file that is read at once, from row `start` of it to before row `stop` (None: all)."""

    number: int
    start: int = 0
    stop: int | None = None


class DataFile(NamedTuple):
    """A file of the dataset. `rows`: those that a slice of the split holds; None: all."""

    name: str
    reader: Reader
    number: int  # of the file, for the reader
    rows: range | None = None

    def schema(self) -> Any | None:
        """Return the Arrow schema, or None if there are no rows."""
        return self.reader.schema(self.number)

    def groups(self) -> list[Group]:
        sizes, found, first = self.reader.group_sizes(self.number), [], 0
        for group, size in enumerate(sizes):
            if self.rows is None or size is None:
                found.append(Group(group))
                continue
            start, stop = max(self.rows.start - first, 0), min(self.rows.stop - first, size)
            if start < stop:
                found.append(Group(group, start, stop))
            first += size
        return found

    def tables(self, group: Group, columns: list[str] | None, num_rows: int) -> Iterator[Any]:
        return self.reader.tables(self.number, group.number, columns, num_rows)


class LibraryFiles:
    """Files that the `datasets` library reads, each with its own types: a file is one group."""

    def __init__(self, dataset: Any):
        self._dataset, self._num_files = dataset, dataset.num_shards

    def schema(self, file: int) -> Any | None:
        return next((table.schema for table in self.tables(file, 0, None, 0)), None)

    def group_sizes(self, file: int) -> list[int | None]:
        return [None]

    def tables(self, file: int, group: int, columns: list[str] | None, num_rows: int) -> Iterator[Any]:
        dataset = self._dataset.shard(num_shards=self._num_files, index=file)
        if tables := dataset._ex_iterable.iter_arrow:
            # The public iterators join tables, which fails where their types differ.
            yield from (table for _, table in tables())
        else:
            yield from dataset.with_format("arrow")  # row by row, of formats such as WebDataset


def digest_of_files(names: Iterable[str]) -> str:
    """Return a digest of files on this disk: of their names, sizes, beginnings and ends. Of others, such as those in
    an archive, of the name."""
    digest = hashlib.blake2b(digest_size=16)
    for name in names:
        path = Path(name)
        digest.update(path.name.encode("utf-8", "surrogateescape"))
        with suppress(OSError, ValueError), path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            digest.update(f" {size} ".encode() + file.read(PART_OF_FILE))
            file.seek(max(0, size - PART_OF_FILE))
            digest.update(file.read(PART_OF_FILE))
    return digest.hexdigest()


def open_files(spec: HFSource, revision: str | None, listed: list[str], notices: list[str]) -> list[DataFile]:
    """Return the files of the splits that `spec` names; of a dataset on the Hub `listed` are all files at `revision`.

    Raises what the library raises, and SourceError.
    """
    builders = _builders(spec, revision, listed, notices)
    there = list(dict.fromkeys(str(split) for builder in builders for split in builder.config.data_files or {}))
    files = []
    for part in spec.parts:
        splits = there if part.name == ALL and ALL not in there else [part.name]
        found = []
        for split in splits:
            # The library's message names the splits that there are.
            having = [builder for builder in builders if split in (builder.config.data_files or {})] or builders[:1]
            found += [file for builder in having for file in _files_of(builder, split, spec)]
        files += _slice(found, part, spec) if part.is_slice else found
    if not files:
        raise FileNotFoundError("Unable to find any file")  # as the library says it of most formats
    return files


def _files_of(builder: Any, split: str, spec: HFSource) -> list[DataFile]:
    import datasets
    from datasets.packaged_modules.csv.csv import CsvConfig
    from datasets.packaged_modules.json.json import JsonConfig
    from datasets.packaged_modules.parquet.parquet import ParquetConfig

    config = builder.config
    if hasattr(config, "encoding_errors"):  # json, text
        config.encoding_errors = "replace"
    if isinstance(config, JsonConfig):  # which would take UTF-8 (as_utf8.py) for the encoding that a README.md names
        config.encoding = "utf-8"
    casts = isinstance(builder, datasets.ArrowBasedBuilder)
    if config.data_files and split in config.data_files:  # a file that two patterns match is read once
        config.data_files[split][:] = dict.fromkeys(config.data_files[split])
    if casts:  # to the first file's types, unless it believes that there is nothing to find out or cast to
        builder.info.features = datasets.Features()
    dataset = builder.as_streaming_dataset(split=split)
    if casts:
        builder.info.features = dataset.info.features = None
    paths = [str(path) for path in (config.data_files or {}).get(split, [])]
    if config.data_files and not paths:
        return []
    if not spec.data_files:
        check_inside(spec, paths)
    if len(paths) != dataset.num_shards:
        reader: Reader = LibraryFiles(dataset)
        names = [f"file {number} of {dataset.num_shards}" for number in range(1, dataset.num_shards + 1)]
        return [DataFile(name, reader, number) for number, name in enumerate(names)]
    if isinstance(config, ParquetConfig):
        reader = ParquetFiles(paths)
    elif isinstance(config, CsvConfig):
        reader = CSVFiles(paths, config, spec.delimiter, datasets.StreamingDownloadManager())
    else:
        reader = LibraryFiles(dataset)
    return [DataFile(path, reader, number) for number, path in enumerate(paths)]


def _builders(spec: HFSource, revision: str | None, listed: list[str], notices: list[str]) -> list[Any]:
    """Return the library's readers, one for each format."""
    import datasets

    given = spec.files_by_split
    if given:
        check_patterns(spec, given, revision)
    else:
        given = files_in_folder(spec, notices)
    by_format: dict[str | None, Any] = {}
    for split, paths in (given or {}).items():
        for path in paths:
            by_format.setdefault(format_of(path), {}).setdefault(split, []).append(path)
    if spec.dataset in LOCAL_FORMATS or not given:
        by_format = {None: given}
    elif not spec.data_files:
        choose_tables(by_format, spec, notices)
    builders = [
        datasets.load_dataset_builder(
            str(spec.folder or spec.dataset),
            spec.config,
            data_files=files if spec.data_files else _as_they_are(files),
            data_dir=spec.data_dir,
            revision=revision,
        )
        for files in by_format.values()
    ]
    if not given and len(builders[0].builder_configs) == 1:
        read = [path for paths in (builders[0].config.data_files or {}).values() for path in paths]
        name_unread(spec, listed or listed_files(spec), read, notices)
    return builders


def _as_they_are(files: dict[str, list[str]] | None) -> Any:
    """Return paths in the form that the library does not take for patterns; None: all."""
    from datasets.data_files import DataFilesDict, DataFilesList

    return files and DataFilesDict({split: DataFilesList(paths, []) for split, paths in files.items()})


def _slice(files: list[DataFile], part: Part, spec: HFSource) -> list[DataFile]:
    """Return the files that have rows of a slice. Raises SourceError where rows cannot be counted, or there are none."""
    # The files after a slice that is counted from the beginning do not matter.
    from_start = not part.in_percent and part.stop is not None and min(part.start or 0, part.stop) >= 0
    counts: list[int] = []
    with ThreadPoolExecutor(COUNTED_AT_ONCE) as pool:
        while len(counts) < len(files) and not (from_start and sum(counts) >= (part.stop or 0)):
            batch = files[len(counts) : len(counts) + COUNTED_AT_ONCE]
            if len(counts) >= MOST_COUNTED or not all(isinstance(file.reader, ParquetFiles) for file in batch):
                raise SourceError(_instead_of(part, spec))
            counts += pool.map(_num_rows, batch)
    wanted, first, chosen = part.rows(sum(counts)), 0, []
    if not wanted:
        raise SourceError(
            f"source {spec.label}: `split`: {part.name!r} has {sum(counts):,} rows, none of them in the slice"
        )
    for file, count in zip(files, counts, strict=False):
        rows = range(max(wanted.start - first, 0), min(wanted.stop - first, count))
        chosen += [file._replace(rows=rows)] if rows else []
        first += count
    return chosen


def _num_rows(file: DataFile) -> int:
    return sum(size or 0 for size in file.reader.group_sizes(file.number))


def _instead_of(part: Part, spec: HFSource) -> str:
    """Return what to write for a slice that is not possible."""
    number = "the number of rows"
    if not part.in_percent and part.stop is not None and 0 <= (part.start or 0) < part.stop:
        number = str(part.stop - (part.start or 0))
    return (
        f"source {spec.label}: `split`: the rows of {spec.dataset} can be counted only by reading them all; "
        f'write "split": "{part.name}", "max_documents": {number}, which reads so many of them each epoch'
    )
