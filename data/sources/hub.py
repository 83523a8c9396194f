"""Documents from Hugging Face datasets, on the Hub or on this disk, streamed row by row.

The `datasets` library only reads rows: its shuffle buffer and its `state_dict` do not resume
exactly, so order and position are ours. An epoch visits groups of rows (hub_rows.py) in rounds: each
round takes one group of every file; files, and the groups of each file, are in hash order. So a run
that sees a hundredth of a dataset has seen some of all files. Files that are one group are often a
domain each, such as a year or a genre: they stay open, as many as AT_ONCE until all of these are used
up, and a round takes TURN documents of each.

Position: [round, order key of the file, document of the group, pieces of it that were read]. Resuming
opens one file and skips rows of one group; files that are not Parquet are read again up to there
(MODEL_INSTRUCTIONS.md).

What is dropped is counted in the first epoch alone, so that it is counted once.
"""

from collections import Counter
from collections.abc import Iterator
from itertools import chain, count, islice
from typing import Any

from configs.errors import SourceError
from configs.schema import HFSource
from configs.text import clip, counted
from data.sources import cells, conversations
from data.sources.base import HELD_OUT_ONE_IN, Document, Position, Source, hash_key
from data.sources.columns import no_text
from data.sources.hub_client import configure_library, find
from data.sources.hub_files import DataFile, Group, digest_of_files, open_files
from data.sources.hub_rows import (
    FILES_LOOKED_AT,
    MOST_UNREADABLE,
    HubRows,
    Rows,
    UnreadableFile,
    cannot_open,
    translated,
)
from data.sources.text import CHANGED

AT_ONCE, TURN = 8, 16
HELD_OUT_AT_ONCE = 4  # groups read alternately, so that no endless file provides all held-out text
MOST_WITHOUT_TEXT = 1000  # rows at the start, so many of them in each of a few other files than the first
ROWS_OF_OTHERS = 125

Rest = tuple[list[tuple[int, dict[str, Any]]], Rows]  # of a group: what was read of it, and what was not


class HubSource(Source):
    """One split of one configuration of one dataset, at a pinned revision."""

    def __init__(self, spec: HFSource, *, seed: int, pinned: dict | None = None):
        super().__init__(spec.label)
        self.spec, self.seed = spec, seed
        configure_library()
        self.pinned = {"revision": pinned["revision"] if pinned else None}
        try:
            files: list[DataFile] = translated(self._open, spec)
        except UnreadableFile as error:
            raise cannot_open(spec, error) from error
        self._num_files = len(files)
        self.pinned["files"] = self._num_files
        if spec.is_local and (pinned is None or "digest" in pinned):  # streams of older versions have none
            self.pinned["digest"] = digest_of_files(file.name for file in files)
        if pinned and pinned["files"] != self._num_files:
            self.notices.append(f"{self.label}: has {self._num_files} files now, {pinned['files']} when this run began")
        elif pinned and pinned.get("digest") != self.pinned.get("digest"):
            self.notices.append(
                f"{self.label}: {CHANGED}; it goes on after as many rows, of which some may come "
                "twice or not at all, or be text that is held out"
            )
        self._rows = HubRows(spec, files, seed=seed, notices=self.notices)
        self._has_whole_files = not all(map(self._rows.is_parquet, range(self._num_files)))
        self._rows_without_text: int | None = None  # at the start, before the first with text

    def size(self) -> str:
        where = "on this disk" if self.spec.is_local else f"revision {self.pinned['revision'][:8]}"
        return f"{self._num_files:,} {'file' if self._num_files == 1 else 'files'}, {where}"

    def documents(self, epoch: int, position: Position = None) -> Iterator[tuple[Document, Position]]:
        skipped = self.skipped if epoch == 0 else Counter()
        is_at_the_start = epoch == 0 and position is None
        self._rows.begin(at_the_start=is_at_the_start)
        self._rows_without_text = 0 if is_at_the_start else None
        place = position or [0, "", 0, 0]
        for batch in self._batches(epoch):
            if batch[-1][0] >= place[1]:
                yield from self._documents_of(batch, epoch, place, skipped)
                place = [0, "", 0, 0]
        if self._rows_without_text:
            raise SourceError(no_text(self.spec, self._rows.columns, self._rows.schemas, "all its rows", skipped))

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
                is_whole = waiting.get(file) is None and self._rows.num_groups(file) == 1
                if is_whole and num_rows[file] and not num_with_text[file]:
                    self._rows.name_without_text(file, f"has no text in any of its {counted(num_rows[file], 'row')}")
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
        """Return the rows of that part of a file which round `turn` reads, from document `start` on; None if it
        has no such part. `waiting`: of whole files the rest; None: there is none."""
        is_parquet = self._rows.is_parquet(file)
        group = self._rows.group(file, turn if is_parquet else 0, epoch, skipped)
        if group is None or (file in waiting and waiting[file] is None):
            return None
        if is_parquet:
            return self._rows.read(file, group, start, skipped)
        first, rows = waiting.get(file) or ([], self._rows.read(file, group, max(start, turn * TURN), skipped))

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
            if (group := self._rows.group(other, 0, 0, skipped)) is not None:
                rows = islice(self._rows.read(other, group, 0, Counter()), ROWS_OF_OTHERS)
                if any(document.text.strip() for _, row in rows for document in self._render(row, Counter())):
                    return
        where = f"the first {MOST_WITHOUT_TEXT:,} rows"
        raise SourceError(no_text(self.spec, self._rows.columns, self._rows.schemas, where, skipped))

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
        for number, row in self._rows.read(file, group, 0, Counter()):
            if number % HELD_OUT_ONE_IN == first:
                yield row

    def _order(self, epoch: int | str) -> list[tuple[str, int]]:
        return sorted((hash_key(self.seed, epoch, file), file) for file in range(self._num_files))

    def _held_out_groups(self) -> Iterator[tuple[int, Group]]:
        """Yield (file, group): in each round one group of every file that has another."""
        for turn in count():
            found = False
            for _, file in self._order("held out"):
                if (group := self._rows.group(file, turn, "held out", Counter())) is not None:
                    found = True
                    yield file, group
            if not found:
                return

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
                skipped[f"no text in {self._rows.columns[field]!r}"] += 1
            else:
                yield from Document(text).pieces()
            return
        filled = {field: text or "" for field, text in texts.items()}
        *others, answer = self.spec.fields
        for needed in ([answer], others):
            if needed and not any(filled[field].strip() for field in needed):
                skipped[f"no text in {self._rows.columns[needed[0]]!r}"] += 1
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

    def _open(self) -> list[DataFile]:
        """Return the files at the pinned revision; pin the one of the preset if none is pinned."""
        listed: list[str] = []
        if not self.spec.is_local:
            found = find("dataset", self.spec.dataset, self.pinned["revision"] or self.spec.revision)
            self.pinned["revision"] = found["sha"]
            listed = [file["rfilename"] for file in found.get("siblings") or []]
        return open_files(self.spec, self.pinned["revision"], listed, self.notices)
