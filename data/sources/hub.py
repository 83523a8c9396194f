"""Documents from Hugging Face datasets, on the Hub or on this disk, streamed row by row.

The `datasets` library only reads rows: its shuffle buffer and its `state_dict` do not resume
exactly, so order and position are ours. The smallest unit to open is a *group*: a row group of a
Parquet file (parquet.py), or a whole file of any other format. An epoch visits groups in rounds: each round
takes one group of every file; files, and the groups of each file, are in hash order. So a run that
sees a hundredth of a dataset has seen some of all files.

Position: [round, order key of the file, document of the group, pieces of it that were read]. Resuming
opens one file and skips rows of one group; a compressed file is read again up to there
(MODEL_INSTRUCTIONS.md).

Each file is read with its own types and, if it is Parquet or CSV, only the wanted columns of it
(cells.py makes text of them): files of one dataset may differ in everything else. What is dropped
is counted in the first epoch alone, so that it is counted once.

Bytes that are not UTF-8 become U+FFFD. What the library cannot parse (a JSON line with a lone
surrogate, "\\ud800") ends its file there, counted as unreadable, or is an error with the library's
message if no file can be read.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count, groupby, islice
from typing import Any

from configs.errors import Retryable, SourceError
from configs.schema import HFSource
from configs.text import clip
from data.sources import cells
from data.sources.base import HELD_OUT_ONE_IN, Document, Position, Source, hash_key
from data.sources.columns import find_columns
from data.sources.hub_client import (
    NoAnswer,
    causes,
    configure_library,
    find_dataset,
    first_line,
    is_request_error,
    last_failure,
)
from data.sources.hub_messages import advice_for
from data.sources.parquet import ParquetFiles

HELD_OUT_AT_ONCE = 4  # files read alternately, so that no endless file provides all held-out text
FILES_LOOKED_AT = 4  # at the start: for their columns, and for what is wrong with them
MOST_UNREADABLE = 20  # at the start, before the first that can be read
ROWS_AT_ONCE = 100  # decoded, so that of whole books not too many are in memory


class HubSource(Source):
    """One split of one configuration of one dataset, at a pinned revision."""

    _dataset: Any  # a datasets.IterableDataset
    _builder: Any  # the datasets.DatasetBuilder that reads it
    _paths: list[str]  # of its files; empty if they are not known
    _parquet: ParquetFiles | None  # None: read by the library

    def __init__(self, spec: HFSource, *, seed: int, pinned: dict | None = None):
        super().__init__(spec.label)
        self.spec, self.seed = spec, seed
        configure_library()
        self.pinned = {"revision": pinned["revision"] if pinned else None}
        try:
            self._translate(self._open)
        except UnreadableFile as error:
            raise self._cannot_open(error) from error
        self._num_files = self._dataset.num_shards
        self._groups: dict[int, tuple[int | str, list[int]]] = {}  # file -> (epoch, order of its groups)
        self.pinned["files"] = self._num_files
        if pinned and pinned["files"] != self._num_files:
            self.notices.append(f"{self.label}: has {self._num_files} files now, {pinned['files']} when this run began")
        self._wanted: list[str] | None = None  # the columns to read of each file; None: all
        files = self._look_at_files()
        self._columns = find_columns(self.spec, files, self.notices)  # field -> column, or field inside of one
        self._want_columns(files)
        self._look_for_token_ids = True

    def size(self) -> str:
        where = "on this disk" if self.spec.is_local else f"revision {self.pinned['revision'][:8]}"
        return f"{self._num_files:,} {'file' if self._num_files == 1 else 'files'}, {where}"

    def documents(self, epoch: int, position: Position = None) -> Iterator[tuple[Document, Position]]:
        first_round, first_key, first_row, pieces_read = position or [0, "", 0, 0]
        skipped = self.skipped if epoch == 0 else Counter()
        self._look_for_token_ids = epoch == 0 and position is None
        for turn in count(first_round):
            groups_read = 0
            for key, file in self._order(epoch):
                if turn == first_round and key < first_key:
                    continue
                resumed = (turn, key) == (first_round, first_key)
                group = self._group(file, turn, epoch, skipped)
                if group is None:
                    continue
                groups_read += 1
                for number, row in self._rows(file, group, first_row if resumed else 0, skipped):
                    start = pieces_read if resumed and number == first_row else 0
                    for piece, document in enumerate(islice(self._render(row, skipped), start, None), start + 1):
                        yield document, [turn, key, number, piece]
            # A round resumed in its middle says nothing about the files before it: try one more.
            if not groups_read and (turn > first_round or not first_key):
                return

    def held_out(self) -> Iterator[Document]:
        """Yield every twentieth row of the groups, from a few files alternately."""
        groups = (pair for turn in count() for pair in self._round(turn))
        readers: list[Iterator[tuple[int, dict]]] = []
        while True:
            while len(readers) < HELD_OUT_AT_ONCE and (pair := next(groups, None)) is not None:
                readers.append(self._rows(*pair, 0, Counter()))
            if not readers:
                return
            for reader in list(readers):
                row = next((row for number, row in reader if number % HELD_OUT_ONE_IN == 0), None)
                if row is None:
                    readers.remove(reader)
                else:
                    yield from self._render(row, Counter())

    def _order(self, epoch: int | str) -> list[tuple[str, int]]:
        return sorted((hash_key(self.seed, epoch, file), file) for file in range(self._num_files))

    def _round(self, turn: int) -> Iterator[tuple[int, int] | None]:
        """Yield (file, group) of a held-out round, or None, which ends all, if no file has any."""
        found = False
        for _, file in self._order("held out"):
            if (group := self._group(file, turn, "held out", Counter())) is not None:
                found = True
                yield file, group
        if not found:
            yield None

    def _group(self, file: int, turn: int, epoch: int | str, skipped: Counter[str]) -> int | None:
        """Return the number of the group of `file` in round `turn` of `epoch`, or None if it has no more."""
        if self._groups.get(file, (None,))[0] != epoch:
            try:
                num_groups = self._translate(partial(self._parquet.num_groups, file)) if self._parquet else 1
            except UnreadableFile:  # a damaged or missing file does not stop the run
                num_groups = 0
                skipped["unreadable file"] += turn == 0
            order = sorted(range(num_groups), key=lambda number: hash_key(self.seed, epoch, file, number))
            self._groups[file] = epoch, order
        order = self._groups[file][1]
        return order[turn] if turn < len(order) else None

    def _rows(self, file: int, group: int, start: int, skipped: Counter[str]) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield (number, cells by field) of the documents of a group from number `start` on: its
        rows, or their text joined, `rows_per_document` at a time."""
        size = self.spec.rows_per_document
        rows = self._single_rows(file, group, start * size, skipped)
        if size == 1:
            yield from rows
            return
        for number, lines in groupby(rows, lambda pair: pair[0] // size):
            [field] = self._columns  # text_field alone
            texts = [text for _, row in lines if (text := cells.cell_text(row[field])) is not None]
            yield number, {field: "\n".join(texts) if texts else None}

    def _single_rows(
        self, file: int, group: int, start: int, skipped: Counter[str]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield (number, cells by field) of the rows of a group from number `start` on."""
        number, tables = 0, self._tables(file, group)
        try:
            while (table := self._translate(partial(next, tables, None))) is not None:
                for first in range(max(0, start - number), len(table), ROWS_AT_ONCE):
                    rows = table.slice(first, ROWS_AT_ONCE)
                    columns = [
                        self._translate(partial(cells.read_cells, rows, name)) for name in self._columns.values()
                    ]
                    self._refuse_token_ids(columns)
                    for row, values in enumerate(zip(*columns, strict=True), number + first):
                        yield row, dict(zip(self._columns, values, strict=True))
                number += len(table)
        except UnreadableFile:
            skipped["unreadable row group" if self._parquet else "unreadable file"] += 1  # and the run goes on

    def _tables(self, file: int, group: int) -> Iterator[Any]:
        """Yield a group as Arrow tables with the types that its own file has."""
        if self._parquet:
            yield from self._parquet.tables(file, group, self._wanted, ROWS_AT_ONCE)
            return
        dataset = self._dataset.shard(num_shards=self._num_files, index=file)
        if tables := dataset._ex_iterable.iter_arrow:
            # The public iterators join tables, which fails where their types differ.
            yield from (table for _, table in tables())
        else:
            yield from dataset.with_format("arrow")  # row by row, of formats such as WebDataset

    def _refuse_token_ids(self, columns: list[list[Any]]) -> None:
        """Raise SourceError if one of the first `columns` that are read is nothing but whole numbers."""
        if not self._look_for_token_ids:
            return
        self._look_for_token_ids = False
        for name, values in zip(self._columns.values(), columns, strict=True):
            if cells.are_token_ids(texts := [value for value in values if value]):
                raise SourceError(
                    f"source {self.label}: {name!r} of {self.spec.dataset} holds nothing but whole numbers, such as "
                    f"{clip(texts[0], 40)!r}: token ids, not text; name a column that holds text"
                )

    def _render(self, row: dict[str, Any], skipped: Counter[str]) -> Iterator[Document]:
        """Yield the row as a document in pieces, or count it as skipped.

        Of several fields, the answer and at least one other must hold text; the others may be null.
        """
        texts = {field: cells.cell_text(cell) for field, cell in row.items()}
        if not (self.spec.fields and self.spec.format):
            [(field, text)] = texts.items()
            if text is None:
                skipped[f"no text in {self._columns[field]!r}"] += 1
            else:
                yield from Document(text).pieces()
            return
        filled = {field: text or "" for field, text in texts.items()}
        *others, answer = self.spec.fields
        for needed in ([answer], others):
            if needed and not any(filled[field].strip() for field in needed):
                skipped[f"no text in {self._columns[needed[0]]!r}"] += 1
                return
        yield from cells.render(self.spec.format, filled, answer if others else None).pieces()

    def _look_at_files(self) -> dict[str, Any]:
        """Return the schemas of the first files by name, at least one if any file has columns.

        Report those that cannot be read. Raise SourceError if that is all of them.
        """
        schemas: dict[str, Any] = {}
        unreadable: UnreadableFile | None = None
        for file in range(self._num_files):
            if file >= FILES_LOOKED_AT and schemas:
                break
            name = clip(self._paths[file], 200) if self._paths else f"file {file + 1} of {self._num_files}"
            try:
                schema = self._translate(partial(self._schema, file))
                if schema is not None and schema.names:
                    schemas[name] = schema
            except UnreadableFile as error:
                unreadable = unreadable or error
                self.notices.append(f"{self.label}: skipping {name}, which cannot be read: {error}")
                if len(self.notices) >= MOST_UNREADABLE:
                    break
        if unreadable and not schemas:
            raise self._cannot_open(unreadable) from unreadable
        return schemas

    def _schema(self, file: int) -> Any | None:
        """Return the Arrow schema of a file, or None if it has no rows."""
        if self._parquet:
            return self._parquet.schema(file)
        return next((table.schema for table in self._tables(file, 0)), None)

    def _want_columns(self, files: dict[str, Any]) -> None:
        """Read only what `_columns` needs of each file, as far as its format allows."""
        found = (cells.locate(column, schema.names) for column in self._columns.values() for schema in files.values())
        self._wanted = list(dict.fromkeys(place[0] for place in found if place)) or None
        if self._wanted and hasattr(self._builder.config, "usecols"):  # CSV
            self._builder.config.usecols = set(self._wanted).__contains__
            self._builder.config.converters = dict.fromkeys(self._wanted, str)  # as written: "007", "None"

    def _cannot_open(self, error: Exception) -> SourceError:
        return SourceError(
            f"source {self.label}: cannot open {self.spec.dataset}: {error}; "
            "repair that file, or name others in data_files"
        )

    def _open(self) -> None:
        """Open the dataset at the pinned revision; pin the newest if none is pinned."""
        import datasets
        from datasets.packaged_modules.parquet.parquet import ParquetConfig

        if not self.spec.is_local:
            self.pinned["revision"] = find_dataset(self.spec.dataset, self.pinned["revision"])["sha"]
        self._builder = builder = datasets.load_dataset_builder(
            str(self.spec.folder or self.spec.dataset),
            self.spec.config,
            data_files=self.spec.data_files,
            data_dir=self.spec.data_dir,
            revision=self.pinned["revision"],
        )
        if hasattr(builder.config, "encoding_errors"):  # csv, text
            builder.config.encoding_errors = "replace"
        if hasattr(builder.config, "keep_default_na"):  # csv: "None" and "NA" are text
            builder.config.keep_default_na = False
            builder.config.encoding = builder.config.encoding or "utf-8-sig"  # or converters fail at other bytes
        casts = isinstance(builder, datasets.ArrowBasedBuilder)
        if casts:  # to the first file's types, unless it believes that there is nothing to find out or cast to
            builder.info.features = datasets.Features()
        self._dataset = builder.as_streaming_dataset(split=self.spec.split)
        if casts:
            builder.info.features = self._dataset.info.features = None
        files = builder.config.data_files or {}
        paths = [str(path) for name in self.spec.split.split("+") for path in files.get(name.strip(), [])]
        self._paths = paths if len(paths) == self._dataset.num_shards else []
        is_parquet = isinstance(builder.config, ParquetConfig)
        self._parquet = ParquetFiles(self._paths) if is_parquet and self._paths else None

    def _translate(self, call: Callable[[], Any]) -> Any:
        """Run the library's `call()`; raise only SourceError, Retryable or UnreadableFile."""
        last_failure.error = None
        try:
            return call()
        except SourceError:
            raise
        except Exception as error:
            if advice := advice_for(error, self.spec):
                raise SourceError(f"source {self.label}: {advice}") from error
            if is_network_trouble(error) or last_failure.error:
                raise Retryable(first_line(last_failure.error or error)) from error
            raise UnreadableFile(first_line(error)) from error


class UnreadableFile(Exception):
    """A file is damaged or missing."""


def is_network_trouble(error: Exception) -> bool:
    """Return whether the error may pass by itself.

    NoAnswer is not the only such error: a connection can also break in the middle of a long file.
    """
    kinds = NoAnswer | ConnectionError | TimeoutError
    return any(isinstance(link, kinds) or is_request_error(link) for link in causes(error))
