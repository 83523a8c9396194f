"""Documents from Hugging Face datasets, on the Hub or on this disk, streamed row by row.

The `datasets` library only reads rows: its shuffle buffer and its `state_dict` do not resume
exactly, so order and position are ours. The smallest unit to open is a *group*: a row group of a
Parquet file (parquet.py), or a whole file of any other format. An epoch visits groups in rounds: each round
takes one group of every file; files, and the groups of each file, are in hash order. So a run that
sees a hundredth of a dataset has seen some of all files. Files that are one group are often a domain
each, such as a year or a genre: they stay open, as many as AT_ONCE until all of these are used up,
and a round takes TURN documents of each.

Position: [round, order key of the file, document of the group, pieces of it that were read]. Resuming
opens one file and skips rows of one group; files that are not Parquet are read again up to there
(MODEL_INSTRUCTIONS.md).

Each file is read with its own types and, if it is Parquet or CSV, only the wanted columns of it
(cells.py makes text of them): files of one dataset may differ in everything else. What is dropped
is counted in the first epoch alone, so that it is counted once.

Files in other encodings are read as UTF-8 (as_utf8.py), and single bytes that are not become
U+FFFD. What the library cannot parse (a JSON line with a lone surrogate, "\\ud800") ends its file
there, counted as unreadable, or is an error with the library's message if no file can be read.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, count, islice
from typing import Any

from configs.errors import Retryable, SourceError
from configs.schema import HFSource
from configs.text import clip, counted
from data.sources import cells, conversations, lines
from data.sources.base import HELD_OUT_ONE_IN, Document, Position, Source, hash_key
from data.sources.columns import find_columns, lacks, no_text
from data.sources.csv_files import CSVFiles, ragged_lines
from data.sources.hub_client import (
    NoAnswer,
    causes,
    configure_library,
    find,
    first_line,
    is_request_error,
    last_failure,
)
from data.sources.hub_files import DataFile, Group, digest_of_files, open_files
from data.sources.hub_listing import IN_REPOSITORY
from data.sources.hub_messages import advice_for, remedy
from data.sources.parquet import ParquetFiles
from data.sources.text import CHANGED

AT_ONCE, TURN = 8, 16
HELD_OUT_AT_ONCE = 4  # groups read alternately, so that no endless file provides all held-out text
FILES_LOOKED_AT = 4  # at the start: for their columns, and for what is wrong with them
MOST_UNREADABLE = 20  # files at the start, before the first that can be read, and in notices
MOST_WITHOUT_TEXT = 1000  # rows at the start, so many of them in each of a few other files than the first
ROWS_OF_OTHERS = 125
ROWS_AT_ONCE = 100  # decoded, so that of whole books not too many are in memory

Rows = Iterator[tuple[int, dict[str, Any]]]  # (number of a document in its group, cells by field)
Rest = tuple[list[tuple[int, dict[str, Any]]], Rows]  # of a group: what was read of it, and what was not


class UnreadableFile(Exception):
    """A file is damaged or missing."""


class HubSource(Source):
    """One split of one configuration of one dataset, at a pinned revision."""

    def __init__(self, spec: HFSource, *, seed: int, pinned: dict | None = None):
        super().__init__(spec.label)
        self.spec, self.seed = spec, seed
        configure_library()
        self.pinned = {"revision": pinned["revision"] if pinned else None}
        try:
            self._files = self._translate(self._open)
        except UnreadableFile as error:
            raise self._cannot_open(error) from error
        self._num_files = len(self._files)
        self._has_whole_files = not all(isinstance(file.reader, ParquetFiles) for file in self._files)
        self._groups: dict[int, tuple[int | str, list[Group]]] = {}  # file -> (epoch, order of its groups)
        self.pinned["files"] = self._num_files
        if spec.is_local and (pinned is None or "digest" in pinned):  # streams of older versions have none
            self.pinned["digest"] = digest_of_files(file.name for file in self._files)
        if pinned and pinned["files"] != self._num_files:
            self.notices.append(f"{self.label}: has {self._num_files} files now, {pinned['files']} when this run began")
        elif pinned and pinned.get("digest") != self.pinned.get("digest"):
            self.notices.append(
                f"{self.label}: {CHANGED}; it goes on after as many rows, of which some may come "
                "twice or not at all, or be text that is held out"
            )
        self._unreadable: set[int] = set()  # files that a notice names
        self._schemas = self._look_at_files()
        self._columns = find_columns(self.spec, self._schemas, self.notices)  # field -> column, or field inside of one
        found = (
            cells.locate(name, schema.names) for name in self._columns.values() for schema in self._schemas.values()
        )
        # The columns to read of each file, as far as its format allows.
        self._wanted = list(dict.fromkeys(place[0] for place in found if place)) or None
        self._unseen = set(self._columns.values())  # columns of which no text was read yet
        self._rows_without_text: int | None = None  # at the start, before the first with text

    def size(self) -> str:
        where = "on this disk" if self.spec.is_local else f"revision {self.pinned['revision'][:8]}"
        return f"{self._num_files:,} {'file' if self._num_files == 1 else 'files'}, {where}"

    def documents(self, epoch: int, position: Position = None) -> Iterator[tuple[Document, Position]]:
        skipped = self.skipped if epoch == 0 else Counter()
        is_at_the_start = epoch == 0 and position is None
        self._unseen = set(self._columns.values()) if is_at_the_start else set()
        self._rows_without_text = 0 if is_at_the_start else None
        place = position or [0, "", 0, 0]
        for batch in self._batches(epoch):
            if batch[-1][0] >= place[1]:
                yield from self._documents_of(batch, epoch, place, skipped)
                place = [0, "", 0, 0]
        if self._rows_without_text:
            raise SourceError(no_text(self.spec, self._columns, self._schemas, "all its rows", skipped))

    def _batches(self, epoch: int) -> list[list[tuple[str, int]]]:
        """Return (order key, file) of the files that are read in turns, one batch after another."""
        order = self._order(epoch)
        size = AT_ONCE if self._has_whole_files else max(1, len(order))
        return [order[first : first + size] for first in range(0, len(order), size)]

    def _documents_of(
        self, batch: list[tuple[str, int]], epoch: int, position: list[Any], skipped: Counter[str]
    ) -> Iterator[tuple[Document, Position]]:
        first_round, first_key, first_row, pieces_read = position
        waiting: dict[int, Rest | None] = {}
        num_rows, num_with_text = Counter[int](), Counter[int]()  # of files that are read from their beginning
        for turn in count(first_round):
            num_files = 0
            for key, file in batch:
                if turn == first_round and key < first_key:
                    continue
                resumed = (turn, key) == (first_round, first_key)
                rows = self._rows_in_turn(file, turn, epoch, first_row if resumed else 0, waiting, skipped)
                if rows is None:
                    continue
                num_files += 1
                from_beginning = num_rows[file] if turn else not resumed
                for number, row in rows:
                    start = pieces_read if resumed and number == first_row else 0
                    for piece, document in enumerate(islice(self._render(row, skipped), start, None), start + 1):
                        if document.text.strip():
                            num_with_text[file] += 1
                            self._rows_without_text = None
                        yield document, [turn, key, number, piece]
                    num_rows[file] += bool(from_beginning)
                    self._count_without_text(file, skipped)
                is_whole = waiting.get(file) is None and len(self._groups[file][1]) == 1
                if is_whole and num_rows[file] and not num_with_text[file]:
                    self._name_without_text(file, f"has no text in any of its {counted(num_rows[file], 'row')}")
            # A round resumed in its middle says nothing about the files before it: try one more.
            if not num_files and (turn > first_round or not first_key):
                return

    def _rows_in_turn(
        self,
        file: int,
        turn: int,
        epoch: int,
        start: int,
        waiting: dict[int, Rest | None],
        skipped: Counter[str],
    ) -> Rows | None:
        """Return what `_rows` yields of that part of a file which round `turn` reads, from document `start` on; None if it
        has no such part. `waiting`: of whole files the rest; None: there is none."""
        is_parquet = isinstance(self._files[file].reader, ParquetFiles)
        group = self._group(file, turn if is_parquet else 0, epoch, skipped)
        if group is None or (file in waiting and waiting[file] is None):
            return None
        if is_parquet:
            return self._rows(file, group, start, skipped)
        first, rows = waiting.get(file) or ([], self._rows(file, group, max(start, turn * TURN), skipped))

        def of_turn() -> Rows:
            waiting[file] = None
            for number, row in chain(first, rows):
                if number >= (turn + 1) * TURN:
                    waiting[file] = [(number, row)], rows
                    return
                yield number, row

        return of_turn()

    def _count_without_text(self, file: int, skipped: Counter[str]) -> None:
        """Look into other files if so many rows at the start have no text."""
        if self._rows_without_text is None:
            return
        self._rows_without_text += 1
        if self._rows_without_text == MOST_WITHOUT_TEXT - ROWS_OF_OTHERS * len(self._others(file)):
            self._look_for_text(file, skipped)

    def _others(self, file: int) -> list[int]:
        """Return a few other files than `file`."""
        return [other for other in range(self._num_files) if other != file][:FILES_LOOKED_AT]

    def _look_for_text(self, file: int, skipped: Counter[str]) -> None:
        """Raise SourceError unless a few other files than `file` have text in their first rows."""
        for other in self._others(file):
            if (group := self._group(other, 0, 0, skipped)) is not None:
                rows = islice(self._rows(other, group, 0, Counter()), ROWS_OF_OTHERS)
                if any(document.text.strip() for _, row in rows for document in self._render(row, Counter())):
                    return
        where = f"the first {MOST_WITHOUT_TEXT:,} rows"
        raise SourceError(no_text(self.spec, self._columns, self._schemas, where, skipped))

    def held_out(self, part: int = 0) -> Iterator[Document]:
        """Yield every twentieth row of the groups, from a few files alternately. Which row of a group is
        the first is left to chance: many groups have fewer than twenty."""
        groups = self._held_out_groups()
        readers: list[Iterator[dict[str, Any]]] = []
        while True:
            at_once = AT_ONCE if self._has_whole_files else HELD_OUT_AT_ONCE
            while len(readers) < at_once and (pair := next(groups, None)) is not None:
                readers.append(self._one_in_twenty(*pair, part))
            if not readers:
                return
            for reader in list(readers):
                row = next(reader, None)
                if row is None:
                    readers.remove(reader)
                else:
                    yield from self._render(row, Counter())

    def _one_in_twenty(self, file: int, group: Group, part: int) -> Iterator[dict[str, Any]]:
        start = int(hash_key(self.seed, "held out", file, group.number), 16) + part
        first = start % HELD_OUT_ONE_IN
        for number, row in self._rows(file, group, 0, Counter()):
            if number % HELD_OUT_ONE_IN == first:
                yield row

    def _order(self, epoch: int | str) -> list[tuple[str, int]]:
        return sorted((hash_key(self.seed, epoch, file), file) for file in range(self._num_files))

    def _held_out_groups(self) -> Iterator[tuple[int, Group]]:
        """Yield (file, group): in each round one group of every file that has another."""
        for turn in count():
            found = False
            for _, file in self._order("held out"):
                if (group := self._group(file, turn, "held out", Counter())) is not None:
                    found = True
                    yield file, group
            if not found:
                return

    def _group(self, file: int, turn: int, epoch: int | str, skipped: Counter[str]) -> Group | None:
        """Return the group of `file` in round `turn` of `epoch`, or None if it has no more."""
        if self._groups.get(file, (None,))[0] != epoch:
            try:
                groups = self._translate(self._files[file].groups)
            except UnreadableFile as error:  # a damaged or missing file does not stop the run
                groups = []
                if turn == 0:
                    skipped["unreadable file"] += 1
                    self._name_unreadable(file, error)
            order = sorted(groups, key=lambda group: hash_key(self.seed, epoch, file, group.number))
            self._groups[file] = epoch, order
        order = self._groups[file][1]
        return order[turn] if turn < len(order) else None

    def _rows(self, file: int, group: Group, start: int, skipped: Counter[str]) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield (number, cells by field) of the documents of a group from number `start` on: its
        rows, or their text joined, counted from the group's first."""
        size, end = self.spec.rows_per_document, self.spec.rows_until
        if size == 1 and not end:
            yield from self._single_rows(file, group, start, skipped)
            return
        [field] = self._columns  # text_field alone
        rows = self._single_rows(file, group, group.start + (0 if end else start * size), skipped)
        texts = ((number - group.start, cells.cell_text(row[field])) for number, row in rows)
        for number, text in lines.until(texts, end) if end else lines.by_number(texts, size):
            if number >= start:
                yield number, {field: text}

    def _single_rows(
        self, file: int, group: Group, start: int, skipped: Counter[str]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield (number, cells by field) of the rows of a group from number `start` on."""
        reader, tables = self._files[file].reader, self._files[file].tables(group, self._wanted, ROWS_AT_ONCE)
        number, start = 0, max(start, group.start)
        try:
            while (table := self._translate(partial(next, tables, None))) is not None:
                missing = [lacks(name, table.schema) for name in self._columns.values()]
                if number == 0 and any(missing):
                    self._name_without_text(file, next(filter(None, missing)))
                end = len(table) if group.stop is None else min(len(table), group.stop - number)
                for first in range(max(0, start - number), end, ROWS_AT_ONCE):
                    rows = table.slice(first, min(ROWS_AT_ONCE, end - first))
                    columns = [
                        self._translate(partial(cells.read_cells, rows, name)) for name in self._columns.values()
                    ]
                    self._refuse_numbers(columns)
                    ragged = ragged_lines(rows) if isinstance(reader, CSVFiles) else set()
                    for row, values in enumerate(zip(*columns, strict=True)):
                        if row in ragged:
                            skipped["line with too many cells"] += 1
                        else:
                            yield number + first + row, dict(zip(self._columns, values, strict=True))
                number += len(table)
                if group.stop is not None and number >= group.stop:
                    return
        except UnreadableFile as error:  # and the run continues
            skipped["unreadable row group" if isinstance(reader, ParquetFiles) else "unreadable file"] += 1
            self._name_unreadable(file, error)

    def _refuse_numbers(self, columns: list[list[Any]]) -> None:
        """Raise SourceError if the first texts of one of `columns` are nothing but numbers."""
        for name, values in zip(self._columns.values(), columns, strict=True):
            if name not in self._unseen:
                continue
            texts = [text for value in values if (text := (cells.cell_text(value) or "").strip())]
            if cells.are_numbers(texts):
                raise SourceError(
                    f"source {self.label}: {name!r} of {self.spec.dataset} holds nothing but numbers, such as "
                    f"{clip(texts[0], 40)!r}: token ids or vectors, not text; name a column that holds text"
                )
            if texts:
                self._unseen.discard(name)

    def _render(self, row: dict[str, Any], skipped: Counter[str]) -> Iterator[Document]:
        """Yield the row as a document in pieces, or count it as skipped.

        Of several fields, the answer and at least one other must hold text; the others may be null.
        """
        if self.spec.messages:
            yield from self._conversation(row, skipped)
            return
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

    def _conversation(self, row: dict[str, Any], skipped: Counter[str]) -> Iterator[Document]:
        """Yield the conversation of a row in pieces, or count it as skipped."""
        try:
            in_columns = isinstance(self.spec.messages, list)
            for document in conversations.documents_of(list(row.values()), in_columns=in_columns):
                if document:
                    yield document
                else:
                    skipped[conversations.LONG_EXCHANGE] += 1
        except conversations.NoConversation as reason:
            skipped[str(reason)] += 1
            notice = f"{self.label}: {clip(reason.detail, 200)}"
            if reason.detail and notice not in self.notices and len(self.notices) < MOST_UNREADABLE:
                self.notices.append(notice)

    def _look_at_files(self) -> dict[str, Any]:
        """Return the schemas of the first files by name, at least one if any file has columns.

        Report those that cannot be read. Raise SourceError if that is all of them.
        """
        schemas: dict[str, Any] = {}
        unreadable: SourceError | None = None
        for file in range(self._num_files):
            if file >= FILES_LOOKED_AT and schemas:
                break
            try:
                schema = self._translate(self._files[file].schema)
                if schema is not None and schema.names:
                    schemas[clip(self._files[file].name, 200)] = schema
            except UnreadableFile as error:
                unreadable = unreadable or self._cannot_open(error, clip(self._files[file].name, 200))
                self._name_unreadable(file, error)
                if len(self._unreadable) >= MOST_UNREADABLE:
                    break
        if unreadable and not schemas:
            raise unreadable
        return schemas

    def _name_unreadable(self, file: int, error: UnreadableFile) -> None:
        """Say which file is skipped, once."""
        if file not in self._unreadable and len(self._unreadable) < MOST_UNREADABLE:
            name = clip(self._files[file].name, 200)
            self.notices.append(f"{self.label}: skipping {name}, which cannot be read: {error}")
        self._unreadable.add(file)

    def _name_without_text(self, file: int, problem: str) -> None:
        """Say which file has no text, or not where it was looked for, once."""
        name = clip(self._files[file].name, 200)
        if not any(name in notice for notice in self.notices) and len(self.notices) < MOST_UNREADABLE:
            self.notices.append(f"{self.label}: {name} {problem}")

    def _cannot_open(self, error: Exception, name: str = "that file") -> SourceError:
        name = IN_REPOSITORY.sub("", name)
        return SourceError(
            f"source {self.label}: cannot open {self.spec.dataset}: {error}; {remedy(name)}, or name other files in data_files"
        )

    def _open(self) -> list[DataFile]:
        """Return the files at the pinned revision; pin the one of the preset if none is pinned."""
        listed: list[str] = []
        if not self.spec.is_local:
            found = find("dataset", self.spec.dataset, self.pinned["revision"] or self.spec.revision)
            self.pinned["revision"] = found["sha"]
            listed = [file["rfilename"] for file in found.get("siblings") or []]
        return open_files(self.spec, self.pinned["revision"], listed, self.notices)

    def _translate(self, call: Callable[[], Any]) -> Any:
        """Run the library's `call()`; raise only SourceError, Retryable, UnreadableFile or MemoryError."""
        last_failure.error = None
        try:
            return call()
        except (SourceError, MemoryError):  # a file is not skipped because this process is short of memory
            raise
        except Exception as error:
            if advice := advice_for(error, self.spec):
                raise SourceError(f"source {self.label}: {advice}") from error
            if is_network_trouble(error) or last_failure.error:
                raise Retryable(first_line(last_failure.error or error)) from error
            raise UnreadableFile(first_line(error)) from error


def is_network_trouble(error: Exception) -> bool:
    """Return whether the error may pass by itself.

    NoAnswer is not the only such error: a connection can also break in the middle of a long file.
    """
    kinds = NoAnswer | ConnectionError | TimeoutError
    return any(isinstance(link, kinds) or is_request_error(link) for link in causes(error))
