"""Documents from Hugging Face datasets, on the Hub or on this disk, streamed row by row.

The `datasets` library only reads rows: its shuffle buffer and its `state_dict` do not resume
exactly, so order and position are ours. The smallest unit it can open is a *group*: a row group of
a Parquet file, or a whole file of any other format. An epoch visits groups in rounds: each round
takes one group of every file; files, and the groups of each file, are in hash order. So a run that
sees a hundredth of a dataset has seen some of all files.

Position: [round, order key of the file, row of the group, pieces of it that were read]. Resuming
opens one file and skips rows of one group; a compressed file is read again up to there
(MODEL_INSTRUCTIONS.md).

Bytes that are not UTF-8 become U+FFFD. What the library cannot parse (a JSON line with a lone
surrogate, "\\ud800") ends its file there, counted as unreadable, or is an error with the library's
message if no column can be found without it.
"""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import count, islice
from string import Formatter
from typing import Any

from configs.errors import Retryable, SourceError
from configs.schema import FIELD_ALIASES, HFSource
from data.sources.base import HELD_OUT_ONE_IN, Document, Position, Source, hash_key
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

HELD_OUT_AT_ONCE = 4  # files read alternately, so that no endless file provides all held-out text


class HubSource(Source):
    """One split of one configuration of one dataset, at a pinned revision."""

    _dataset: Any  # a datasets.IterableDataset

    def __init__(self, spec: HFSource, *, seed: int, pinned: dict | None = None):
        super().__init__(spec.label)
        self.spec, self.seed = spec, seed
        configure_library()
        self.pinned = {"revision": pinned["revision"] if pinned else None}
        try:
            columns = self._translate(self._open)
        except UnreadableFile as error:
            raise SourceError(
                f"source {self.label}: cannot open {spec.dataset}: {error}; repair that file, or name others in data_files"
            ) from error
        self._num_files = self._dataset.num_shards
        self._groups: dict[int, Any] = {}  # file -> its dataset, with one shard a group
        self.pinned["files"] = self._num_files
        if pinned and pinned["files"] != self._num_files:
            self.notices.append(f"{self.label}: has {self._num_files} files now, {pinned['files']} when this run began")
        self._columns = self._find_columns(columns)
        self._dataset = self._dataset.select_columns(list(dict.fromkeys(self._columns.values())))

    def size(self) -> str:
        where = "on this disk" if self.spec.is_local else f"revision {self.pinned['revision'][:8]}"
        return f"{self._num_files:,} {'file' if self._num_files == 1 else 'files'}, {where}"

    def documents(self, epoch: int, position: Position = None) -> Iterator[tuple[Document, Position]]:
        first_round, first_key, first_row, pieces_read = position or [0, "", 0, 0]
        for turn in count(first_round):
            groups_read = 0
            for key, file in self._order(epoch):
                if turn == first_round and key < first_key:
                    continue
                resumed = (turn, key) == (first_round, first_key)
                group = self._group(file, turn, epoch)
                groups_read += group is not None
                for number, row in self._rows(group, first_row if resumed else 0):
                    start = pieces_read if resumed and number == first_row else 0
                    for piece, document in enumerate(islice(self._render(row), start, None), start + 1):
                        yield document, [turn, key, number, piece]
            # A round resumed in its middle says nothing about the files before it: try one more.
            if not groups_read and (turn > first_round or not first_key):
                return

    def held_out(self) -> Iterator[Document]:
        """Yield every twentieth row of the groups, from a few files alternately."""
        groups = (group for turn in count() for group in self._round(turn))
        readers: list[Iterator[tuple[int, dict]]] = []
        while True:
            while len(readers) < HELD_OUT_AT_ONCE and (group := next(groups, None)) is not None:
                readers.append(self._rows(group, 0))
            if not readers:
                return
            for reader in list(readers):
                row = next((row for number, row in reader if number % HELD_OUT_ONE_IN == 0), None)
                if row is None:
                    readers.remove(reader)
                else:
                    yield from self._render(row)

    def _order(self, epoch: int | str) -> list[tuple[str, int]]:
        return sorted((hash_key(self.seed, epoch, file), file) for file in range(self._num_files))

    def _round(self, turn: int) -> Iterator[Any]:
        """Yield the groups of a held-out round, or None, which ends all, if no file has any."""
        found = False
        for _, file in self._order("held out"):
            if (group := self._group(file, turn, "held out")) is not None:
                found = True
                yield group
        if not found:
            yield None

    def _group(self, file: int, turn: int, epoch: int | str) -> Any | None:
        """Return the group of `file` in round `turn` of `epoch`, or None if it has no more."""
        if file not in self._groups:
            one_file = self._dataset.shard(num_shards=self._num_files, index=file)
            try:
                self._groups[file] = self._translate(one_file.reshard)
            except UnreadableFile:  # a damaged or missing file does not stop the run
                self._groups[file] = None
        groups = self._groups[file]
        if groups is None and turn == 0:  # counted once an epoch, even if known before
            self.skipped["unreadable file"] += 1
        if groups is None or turn >= groups.num_shards:
            return None
        order = sorted(range(groups.num_shards), key=lambda number: hash_key(self.seed, epoch, file, number))
        return groups.shard(num_shards=groups.num_shards, index=order[turn])

    def _rows(self, group: Any | None, start: int) -> Iterator[tuple[int, dict]]:
        """Yield (number, row) of the rows of a group from number `start` on."""
        if group is None:
            return
        number = start
        for read in (iter, with_replacements):  # the second from the first row that is not UTF-8
            rows = islice(read(group), number, None)
            try:
                while (row := self._translate(partial(next, rows, None))) is not None:
                    yield number, row
                    number += 1
                return
            except UnreadableFile as error:
                if read is with_replacements or not isinstance(error.__cause__, UnicodeDecodeError):
                    self.skipped["unreadable file"] += 1  # and the run goes on without it
                    return

    def _render(self, row: dict) -> Iterator[Document]:
        """Yield the row as a document in pieces, or count it as skipped if a cell is no text."""
        cells: dict[str, str] = {}
        for field, column in self._columns.items():
            if (text := cell_text(row[column])) is None:
                self.skipped[f"no text in {column!r}"] += 1
                return
            cells[field] = text
        if self.spec.fields and self.spec.format:
            answer = self.spec.fields[-1] if len(cells) > 1 else None
            yield from render(self.spec.format, cells, answer).pieces()
        else:
            [text] = cells.values()
            yield from Document(text).pieces()

    def _find_columns(self, there: list[str]) -> dict[str, str]:
        """Map fields to columns of the dataset, through FIELD_ALIASES where a name is missing."""
        columns = {}
        for field in self.spec.fields or [self.spec.text_field or "text"]:
            column = next((name for name in (field, *FIELD_ALIASES.get(field, ())) if name in there), None)
            if column is None:
                raise SourceError(
                    f"source {self.label}: {self.spec.dataset} has no column {field!r}; "
                    f"its columns are {', '.join(there)}; name one of them in the preset"
                )
            if column != field:
                self.notices.append(f"{self.label}: field {field!r} is not in {self.spec.dataset}; using {column!r}")
            columns[field] = column
        return columns

    def _open(self) -> list[str]:
        """Open the dataset at the pinned revision and return the names of its columns.

        Pin the newest revision if none is pinned.
        """
        import datasets

        if not self.spec.is_local:
            self.pinned["revision"] = find_dataset(self.spec.dataset, self.pinned["revision"])["sha"]
        builder = datasets.load_dataset_builder(
            str(self.spec.folder or self.spec.dataset),
            self.spec.config,
            data_files=self.spec.data_files,
            data_dir=self.spec.data_dir,
            revision=self.pinned["revision"],
        )
        if hasattr(builder.config, "encoding_errors"):  # csv, text
            builder.config.encoding_errors = "replace"
        self._dataset = builder.as_streaming_dataset(split=self.spec.split)
        tables = self._dataset.with_format("arrow")  # no cell is decoded
        return self._dataset.column_names or next((table.column_names for table in tables), [])

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


def with_replacements(group: Any) -> Iterator[dict]:
    """Yield a group's rows with U+FFFD for bytes that are not UTF-8, where the library fails."""
    import pyarrow as pa

    bytes_of = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary()}
    for table in group.with_format("arrow"):
        kinds = [bytes_of.get(kind, kind) for kind in table.schema.types]
        for row in table.cast(pa.schema(list(zip(table.column_names, kinds, strict=True)))).to_pylist():
            yield {
                name: cell.decode("utf-8", "replace") if isinstance(cell, bytes) else cell for name, cell in row.items()
            }


def cell_text(cell: Any) -> str | None:
    """Return a cell as text: numbers as written, lists line by line; None if there is no text."""
    if isinstance(cell, str):
        return cell
    if isinstance(cell, int | float):
        return str(cell)
    if isinstance(cell, list) and cell and all(isinstance(item, str | int | float) for item in cell):
        return "\n".join(map(str, cell))
    return None


def render(form: str, cells: dict[str, str], answer: str | None) -> Document:
    """Return `form` with cells[name] for {name}; answer_start is where `answer` is inserted.

    `str.format` is never used: preset text could reach attributes or fill memory. The schema
    allows bare names only.
    """
    text, answer_start = "", None
    for literal, name, _, _ in Formatter().parse(form):
        text += literal
        if name is not None:
            if name == answer:
                answer_start = len(text)
            text += cells[name]
    return Document(text, answer_start)
