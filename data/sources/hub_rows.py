"""The rows of a dataset's files, and what is done about files that cannot be read.

The smallest unit to open is a *group*: a row group of a Parquet file (parquet.py), or a whole file of
any other format. Each file is read with its own types and, if it is Parquet or CSV, only the wanted
columns of it (cells.py makes text of them): files of one dataset may differ in everything else.

Files in other encodings are read as UTF-8 (as_utf8.py), and single bytes that are not become
U+FFFD. What the library cannot parse (a JSON line with a lone surrogate, "\\ud800") ends its file
there, counted as unreadable, or is an error with the library's message if no file can be read.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from configs.errors import Retryable, SourceError
from configs.schema import HFSource
from configs.text import clip
from data.sources import cells, lines
from data.sources.base import hash_key
from data.sources.columns import find_columns, lacks
from data.sources.csv_files import CSVFiles, ragged_lines
from data.sources.hub_client import NoAnswer, causes, first_line, is_request_error, last_failure
from data.sources.hub_files import DataFile, Group
from data.sources.hub_listing import IN_REPOSITORY
from data.sources.hub_messages import advice_for, remedy
from data.sources.parquet import ParquetFiles

FILES_LOOKED_AT = 4  # at the start: for their columns, and for what is wrong with them
MOST_UNREADABLE = 20  # files at the start, before the first that can be read, and in notices
ROWS_AT_ONCE = 100  # decoded, so that of whole books not too many are in memory

Rows = Iterator[tuple[int, dict[str, Any]]]  # (number of a document in its group, cells by field)


class UnreadableFile(Exception):
    """A file is damaged or missing."""


class HubRows:
    """The groups of one dataset's files, and their rows. `notices` gets what the user should know.

    Raises SourceError if no file can be read, or none has the columns of `spec`.
    """

    def __init__(self, spec: HFSource, files: list[DataFile], *, seed: int, notices: list[str]):
        self.spec, self.files, self.seed, self.notices = spec, files, seed, notices
        self._groups: dict[int, tuple[int | str, list[Group]]] = {}  # file -> (epoch, order of its groups)
        self._unreadable: set[int] = set()  # files that a notice names
        self.schemas = self._look_at_files()
        self.columns = find_columns(spec, self.schemas, notices)  # field -> column, or field inside of one
        found = (cells.locate(name, schema.names) for name in self.columns.values() for schema in self.schemas.values())
        # The columns to read of each file, as far as its format allows.
        self._wanted = list(dict.fromkeys(place[0] for place in found if place)) or None
        self._unseen = set(self.columns.values())  # columns of which no text was read yet

    def begin(self, *, at_the_start: bool) -> None:
        """Begin an epoch, or the middle of one: only at the start a column may turn out to hold numbers."""
        self._unseen = set(self.columns.values()) if at_the_start else set()

    def is_parquet(self, file: int) -> bool:
        return isinstance(self.files[file].reader, ParquetFiles)

    def num_groups(self, file: int) -> int:
        """Return of how many groups a file is, in which `group` has looked."""
        return len(self._groups[file][1])

    def group(self, file: int, turn: int, epoch: int | str, skipped: Counter[str]) -> Group | None:
        """Return the group of `file` in round `turn` of `epoch`, or None if it has no more."""
        if self._groups.get(file, (None,))[0] != epoch:
            try:
                groups = translated(self.files[file].groups, self.spec)
            except UnreadableFile as error:  # a damaged or missing file does not stop the run
                groups = []
                if turn == 0:
                    skipped["unreadable file"] += 1
                    self._name_unreadable(file, error)
            order = sorted(groups, key=lambda group: hash_key(self.seed, epoch, file, group.number))
            self._groups[file] = epoch, order
        order = self._groups[file][1]
        return order[turn] if turn < len(order) else None

    def read(self, file: int, group: Group, start: int, skipped: Counter[str]) -> Rows:
        """Yield (number, cells by field) of the documents of a group from number `start` on: its
        rows, or their text joined, counted from the group's first."""
        size, end = self.spec.rows_per_document, self.spec.rows_until
        if size == 1 and not end:
            yield from self._single_rows(file, group, start, skipped)
            return
        [field] = self.columns  # text_field alone
        rows = self._single_rows(file, group, group.start + (0 if end else start * size), skipped)
        texts = ((number - group.start, cells.cell_text(row[field])) for number, row in rows)
        for number, text in lines.until(texts, end) if end else lines.by_number(texts, size):
            if number >= start:
                yield number, {field: text}

    def _single_rows(self, file: int, group: Group, start: int, skipped: Counter[str]) -> Rows:
        """Yield (number, cells by field) of the rows of a group from number `start` on."""
        reader, tables = self.files[file].reader, self.files[file].tables(group, self._wanted, ROWS_AT_ONCE)
        number, start = 0, max(start, group.start)
        try:
            while (table := translated(partial(next, tables, None), self.spec)) is not None:
                missing = [lacks(name, table.schema) for name in self.columns.values()]
                if number == 0 and any(missing):
                    self.name_without_text(file, next(filter(None, missing)))
                end = len(table) if group.stop is None else min(len(table), group.stop - number)
                for first in range(max(0, start - number), end, ROWS_AT_ONCE):
                    rows = table.slice(first, min(ROWS_AT_ONCE, end - first))
                    columns = [
                        translated(partial(cells.read_cells, rows, name), self.spec) for name in self.columns.values()
                    ]
                    self._refuse_numbers(columns)
                    ragged = ragged_lines(rows) if isinstance(reader, CSVFiles) else set()
                    for row, values in enumerate(zip(*columns, strict=True)):
                        if row in ragged:
                            skipped["line with too many cells"] += 1
                        else:
                            yield number + first + row, dict(zip(self.columns, values, strict=True))
                number += len(table)
                if group.stop is not None and number >= group.stop:
                    return
        except UnreadableFile as error:  # and the run continues
            skipped["unreadable row group" if self.is_parquet(file) else "unreadable file"] += 1
            self._name_unreadable(file, error)

    def _refuse_numbers(self, columns: list[list[Any]]) -> None:
        """Raise SourceError if the first texts of one of `columns` are nothing but numbers."""
        for name, values in zip(self.columns.values(), columns, strict=True):
            if name not in self._unseen:
                continue
            texts = [text for value in values if (text := (cells.cell_text(value) or "").strip())]
            if cells.are_numbers(texts):
                raise SourceError(
                    f"source {self.spec.label}: {name!r} of {self.spec.dataset} holds nothing but numbers, such as "
                    f"{clip(texts[0], 40)!r}: token ids or vectors, not text; name a column that holds text"
                )
            if texts:
                self._unseen.discard(name)

    def _look_at_files(self) -> dict[str, Any]:
        """Return the schemas of the first files by name, at least one if any file has columns.

        Report those that cannot be read. Raise SourceError if that is all of them.
        """
        schemas: dict[str, Any] = {}
        unreadable: SourceError | None = None
        for number, file in enumerate(self.files):
            if number >= FILES_LOOKED_AT and schemas:
                break
            try:
                schema = translated(file.schema, self.spec)
                if schema is not None and schema.names:
                    schemas[clip(file.name, 200)] = schema
            except UnreadableFile as error:
                unreadable = unreadable or cannot_open(self.spec, error, clip(file.name, 200))
                self._name_unreadable(number, error)
                if len(self._unreadable) >= MOST_UNREADABLE:
                    break
        if unreadable and not schemas:
            raise unreadable
        return schemas

    def _name_unreadable(self, file: int, error: UnreadableFile) -> None:
        """Say which file is skipped, once."""
        if file not in self._unreadable and len(self._unreadable) < MOST_UNREADABLE:
            name = clip(self.files[file].name, 200)
            self.notices.append(f"{self.spec.label}: skipping {name}, which cannot be read: {error}")
        self._unreadable.add(file)

    def name_without_text(self, file: int, problem: str) -> None:
        """Say which file has no text, or not where it was looked for, once."""
        name = clip(self.files[file].name, 200)
        if not any(name in notice for notice in self.notices) and len(self.notices) < MOST_UNREADABLE:
            self.notices.append(f"{self.spec.label}: {name} {problem}")


def translated(call: Callable[[], Any], spec: HFSource) -> Any:
    """Run the library's `call()`; raise only SourceError, Retryable, UnreadableFile or MemoryError."""
    last_failure.error = None
    try:
        return call()
    except (SourceError, MemoryError):  # a file is not skipped because this process is short of memory
        raise
    except Exception as error:
        if advice := advice_for(error, spec):
            raise SourceError(f"source {spec.label}: {advice}") from error
        if is_network_trouble(error) or last_failure.error:
            raise Retryable(first_line(last_failure.error or error)) from error
        raise UnreadableFile(first_line(error)) from error


def cannot_open(spec: HFSource, error: Exception, name: str = "that file") -> SourceError:
    name = IN_REPOSITORY.sub("", name)
    return SourceError(
        f"source {spec.label}: cannot open {spec.dataset}: {error}; {remedy(name)}, or name other files in data_files"
    )


def is_network_trouble(error: Exception) -> bool:
    """Return whether the error may pass by itself.

    NoAnswer is not the only such error: a connection can also break in the middle of a long file.
    """
    kinds = NoAnswer | ConnectionError | TimeoutError
    return any(isinstance(link, kinds) or is_request_error(link) for link in causes(error))
