"""Documents from Hugging Face datasets, on the Hub or on this disk, streamed row by row.

The `datasets` library is used as a reader of rows and nothing else: its shuffle buffer and its `state_dict` do not resume
exactly. Order and position are ours. The smallest thing it can open is a *group*: a row group of a Parquet file, or a
whole file of any other format. An epoch visits groups in rounds: in each round every file gives one group, files and
the groups of each file in hash order. So a run that sees a hundredth of a dataset has seen some of every file.

Position: [round, order key of the file, row of the group]. Resuming opens one file and skips rows of one group.

Never written to a log: `HF_TOKEN`, and the presigned addresses that files are really read from.
"""

import logging
import time
from collections.abc import Callable, Iterator
from itertools import count, islice
from pathlib import Path
from string import Formatter
from typing import Any

from configs.catalog import FIELD_ALIASES
from data.sources import HELD_OUT_ONE_IN, Document, Position, Retryable, Source, SourceError, hash_key

METADATA_DELAYS = (1, 2, 4)  # seconds; one dropped request for metadata would otherwise end `load_dataset`
HELD_OUT_AT_ONCE = 4  # files read side by side for held-out text, so that one endless file does not provide all of it
LOCAL_BUILDERS = {"json", "csv", "parquet", "text", "arrow"}  # `dataset` may name one of these beside `data_files`


class HubSource(Source):
    """One split of one configuration of one dataset, at a pinned revision."""

    def __init__(self, spec, *, seed: int, pinned: dict | None = None):
        super().__init__(spec.label)
        self.spec, self.seed = spec, seed
        configure_library()
        folder = Path(spec.dataset).expanduser()
        self.is_local = spec.dataset in LOCAL_BUILDERS or folder.exists()
        self._path = str(folder) if self.is_local else spec.dataset
        revision = pinned["revision"] if pinned else None if self.is_local else self._newest_revision()
        self._dataset = self._call(lambda: self._load(revision))
        self._num_files = self._dataset.num_shards
        self._groups: dict[int, Any] = {}  # file -> the file with one shard a group
        self.pinned = {"revision": revision, "files": self._num_files}
        if pinned and pinned["files"] != self._num_files:
            self.notices.append(f"{self.label}: has {self._num_files} files now, {pinned['files']} when this run began")
        self._columns = self._find_columns(self._call(self._column_names))
        self._dataset = self._dataset.select_columns(list(dict.fromkeys(self._columns.values())))

    def size(self) -> str:
        where = "on this disk" if self.is_local else f"revision {self.pinned['revision'][:8]}"
        return f"{self._num_files:,} {'file' if self._num_files == 1 else 'files'}, {where}"

    def documents(self, epoch: int, position: Position = None) -> Iterator[tuple[Document, Position]]:
        first_round, first_key, first_row = position or [0, "", 0]
        for turn in count(first_round):
            groups_read = 0
            for key, file in self._order(epoch):
                if turn == first_round and key < first_key:
                    continue
                start = first_row if (turn, key) == (first_round, first_key) else 0
                group = self._group(file, turn, epoch)
                groups_read += group is not None
                for number, row in self._rows(group, start):
                    if (document := self._render(row)) is not None:
                        yield document, [turn, key, number + 1]
            # A round that was resumed in its middle says nothing about the files before it: look once more.
            if not groups_read and (turn > first_round or not first_key):
                return

    def held_out(self) -> Iterator[Document]:
        """Every twentieth row of the groups, a few files side by side."""
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
                elif (document := self._render(row)) is not None:
                    yield document

    def _order(self, epoch: int | str) -> list[tuple[str, int]]:
        return sorted((hash_key(self.seed, epoch, file), file) for file in range(self._num_files))

    def _round(self, turn: int) -> Iterator[Any]:
        """Groups of one held-out round; ends everything (None) when no file has any left."""
        found = False
        for _, file in self._order("held out"):
            if (group := self._group(file, turn, "held out")) is not None:
                found = True
                yield group
        if not found:
            yield None

    def _group(self, file: int, turn: int, epoch: int | str) -> Any | None:
        """The dataset of one group: the one that `file` gives in round `turn` of `epoch`; None if it has no more."""
        if file not in self._groups:
            one_file = self._dataset.shard(num_shards=self._num_files, index=file)
            try:
                self._groups[file] = self._call(one_file.reshard)
            except (OSError, ValueError) as error:
                self._skip_file(error)
                self._groups[file] = None
        groups = self._groups[file]
        if groups is None or turn >= groups.num_shards:
            return None
        order = sorted(range(groups.num_shards), key=lambda number: hash_key(self.seed, epoch, file, number))
        return groups.shard(num_shards=groups.num_shards, index=order[turn])

    def _rows(self, group: Any | None, start: int) -> Iterator[tuple[int, dict]]:
        """(number, row) of the rows of a group from number `start` on."""
        if group is None:
            return
        rows = islice(iter(group), start, None)
        for number in count(start):
            try:
                row = self._call(lambda: next(rows, None))
            except (OSError, ValueError) as error:
                return self._skip_file(error)
            if row is None:
                return None
            yield number, row

    def _skip_file(self, error: Exception) -> None:
        """A file that is damaged or gone does not stop the run; its remaining rows are left out."""
        self.skipped["unreadable file"] += 1
        self.notices.append(f"{self.label}: a file cannot be read and is left out ({first_line(error)})")

    def _render(self, row: dict) -> Document | None:
        """The row as a document; None (and counted) if a cell holds no text."""
        cells = {}
        for field, column in self._columns.items():
            if (text := cell_text(row[column])) is None:
                self.skipped[f"no text in {column!r}"] += 1
                return None
            cells[field] = text
        if not self.spec.fields:
            return Document(*cells.values())
        return render(self.spec.format, cells, answer=self.spec.fields[-1] if len(cells) > 1 else None)

    def _find_columns(self, there: list[str]) -> dict[str, str]:
        """Field -> column of the dataset, through FIELD_ALIASES where a name is not there."""
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

    def _column_names(self) -> list[str]:
        return self._dataset.column_names or list(next(iter(self._dataset), {}))

    def _newest_revision(self) -> str:
        from huggingface_hub import HfApi

        return self._call(lambda: HfApi().dataset_info(self.spec.dataset, timeout=10).sha)

    def _load(self, revision: str | None) -> Any:
        import datasets

        options = {"data_files": self.spec.data_files, "data_dir": self.spec.data_dir, "revision": revision}
        return datasets.load_dataset(self._path, self.spec.config, split=self.spec.split, streaming=True, **options)

    def _call(self, call: Callable[[], Any]) -> Any:
        """`call()`, patiently for metadata; its errors as SourceError (the user's) and Retryable (the network's).

        Whatever else is wrong with one file stays what it is: an OSError or a ValueError.
        """
        for delay in (*METADATA_DELAYS, None):
            try:
                return call()
            except Exception as error:
                if (message := self._users_error(error)) is not None:
                    raise SourceError(f"source {self.label}: {message}") from error
                if not is_network_trouble(error):
                    raise
                # A generator that failed is finished: only its caller can start it again.
                if delay is None or call.__name__ == "<lambda>" and hasattr(self, "_columns"):
                    raise Retryable(f"{self.label}: {first_line(error)}") from error
                time.sleep(delay)
        raise AssertionError("the last attempt returns or raises")
