"""Reads CSV files on the Hub or on this disk, every cell as the text that is written there.

pandas, with which the `datasets` library reads them, guesses types ("007" becomes 7), ends a file
at the first line with too many cells, or cuts the text of such a line without a word.
"""

import csv
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from data.sources.as_utf8 import open_as_utf8
from data.sources.hub_messages import format_of

LARGEST_CELL = 2**24  # characters; a quote that is never closed makes one cell of all that follows
NEVER_CLOSED = "unexpected end of data"  # what the reader says of such a quote at the end of a file


class CSVFiles:
    """Files by number; `config` and `manager` are those of the library. Raises what csv and the file system raise.

    A line with more cells than the header is a row of nulls, which no other line has; cells missing
    at the end of a line are empty.
    """

    def __init__(self, paths: list[str], config: Any, delimiter: str | None, manager: Any):
        self._paths, self._config, self._delimiter = paths, config, delimiter
        self._manager = manager  # opens compressed files and archives

    def schema(self, file: int) -> Any | None:
        """Return the Arrow schema of a file, or None if it is empty."""
        names = next((names for names, _ in self._contents(file)), None)
        return names and pa.schema([(name, pa.string()) for name in dict.fromkeys(names)])

    def group_sizes(self, file: int) -> list[int | None]:
        return [None]

    def tables(self, file: int, group: int, columns: list[str] | None, num_rows: int) -> Iterator[Any]:
        """Yield the file as Arrow tables of `num_rows` rows, with those of `columns` that exist (None: all)."""
        for names, lines in self._contents(file):
            places = {name: place for place, name in reversed(list(enumerate(names)))}  # of two, the first
            wanted = [name for name in places if columns is None or name in columns] or names[:1]
            for batch in batches(lines, num_rows):
                rows = [line + [""] * (len(names) - len(line)) if len(line) <= len(names) else None for line in batch]
                yield pa.table(
                    {name: pa.array([row and row[places[name]] for row in rows], pa.string()) for name in wanted}
                )

    def _contents(self, file: int) -> Iterator[tuple[list[str], Iterator[list[str]]]]:
        """Yield the header and the lines of a file, or of each in an archive."""
        csv.field_size_limit(LARGEST_CELL)
        config = self._config
        paths = list(self._manager.iter_files(self._manager.extract(self._paths[file])))
        # In an archive there may be other files too.
        for path in [path for path in paths if format_of(path.partition("::")[0]) == "csv"] or paths:
            with open_as_utf8(path, encoding=config.encoding, errors="replace", newline="") as text:
                for _ in range(config.skiprows or 0):
                    text.readline()
                lines: Iterator[list[str]] = filter(None, self._rows(text, self._paths[file]))
                names = config.names or (None if config.header is None else next(lines, None))
                if names is not None:
                    yield [str(name) for name in names], lines

    def _rows(self, text: Any, path: str) -> Iterator[list[str]]:
        """Yield the cells of each line, or of several that quotes join.

        A quote that no quoted cell begins with may join lines too, until the next one: such lines are
        taken one by one. Raises csv.Error if one is never closed and what follows is no table.
        """
        config = self._config
        tabs = ".tsv" in PurePosixPath(path).suffixes
        delimiter = self._delimiter or (config.sep if config.sep != "," else "\t" if tabs else ",")
        quotes = {"quotechar": config.quotechar, "escapechar": config.escapechar, "doublequote": config.doublequote}
        read: Callable[..., Any] = partial(csv.reader, delimiter=delimiter, quoting=config.quoting, **quotes)
        lines, width, number = Lines(text), len(config.names or ()), 0
        rows = read(lines)
        while True:
            problem = ""
            try:
                cells = next(rows, None)
            except csv.Error:
                if not width or len(lines.taken) == 1:
                    raise
                cells, problem, rows = [], NEVER_CLOSED, read(lines)  # within LARGEST_CELL
            if cells is None:
                return
            taken, lines.taken = lines.taken, []
            if width and len(taken) > 1 and (problem := problem or problem_of(taken, read)):
                num_whole = sum(line.count(delimiter) == width - 1 for line in taken)
                is_open = problem == NEVER_CLOSED
                if width > 1 and (num_whole == len(taken) or (is_open and 2 * num_whole > len(taken))):
                    lines.again.extendleft(reversed(taken[1:]))
                    taken, cells = taken[:1], taken[0].rstrip("\r\n").split(delimiter)
                elif is_open:
                    raise csv.Error(f"a quote that line {number + 1:,} opens is never closed")
            if width and len(cells) > width and not config.escapechar:  # quotes in cells may have backslashes
                escaped = list(read([line.replace('\\"', '""') for line in taken]))
                cells = escaped[0] if len(escaped) == 1 and len(escaped[0]) == width else cells
            width, number = width or len(cells), number + len(taken)
            yield cells


class Lines:
    """The lines of a file. `taken`: those that were read and are in no row yet; `again`: those to be read once more."""

    def __init__(self, text: Any):
        self._text = text
        self.taken: list[str] = []
        self.again: deque[str] = deque()

    def __iter__(self) -> "Lines":
        return self

    def __next__(self) -> str:
        self.taken.append(self.again.popleft() if self.again else next(self._text))
        return self.taken[-1]


def problem_of(lines: list[str], read: Callable[..., Any]) -> str:
    """Return what is wrong with the quotes of a row, or ""."""
    try:
        list(read(lines, strict=True))
    except csv.Error as error:
        return str(error)
    return ""


def batches(lines: Iterator[list[str]], num_rows: int) -> Iterator[list[list[str]]]:
    """Yield the lines in lists; if reading fails, first those before the failure."""
    batch: list[list[str]] = []
    try:
        for line in lines:
            batch.append(line)
            if len(batch) == num_rows:
                yield batch
                batch = []
    except Exception:  # of csv, or of the file system
        yield batch
        raise
    yield batch


def ragged_lines(table: Any) -> set[int]:
    """Return the numbers of the rows that were lines with too many cells."""
    return {number for number, is_null in enumerate(table.column(0).is_null().to_pylist()) if is_null}
