"""The record of every row that a run has produced: append-only, one writer, any number of readers.

    stream.json    header, written once: what the stream was made from (data/prepare.py)
    rows.bin       the rows, one after another (records of packing.row_dtype)
    states.jsonl   one line an append: {"rows": total, "crc32": of its rows, "state": of every source
                   then, "check": ...}

An append is committed by its line in states.jsonl, which is written once its rows are on the disk.
The check of a line is a digest of it and of the check before; the first one continues the header's.
So the journal vouches for all its rows, and for their order. A writer that opens it cuts what a
crash left after the last committed append, and everything from the first damage on: those rows are
made again. Nothing is ever changed in place.
"""

import fcntl
import hashlib
import io
import json
import os
import stat
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np

from configs.errors import DiskFull, StreamDamaged
from data.files import open_file, room_on_disk, sync_folder, write_all, write_atomically

HEADER, ROWS, STATES = "stream.json", "rows.bin", "states.jsonl"
RUN_AHEAD = 0.25  # of the token budget: two of the largest windows (order.py)
_CHECK = ', "check": "'


def run_ahead_rows(seq_length: int, token_budget: int) -> int:
    """Return how many rows may be produced beyond the last one consumed.

    It is also the delay after which new weights take effect.
    """
    return int(RUN_AHEAD * token_budget) // seq_length


def read_header(folder: Path) -> dict[str, Any] | None:
    """Read stream.json. Return None if it is missing (the stream was never fully prepared) or damaged."""
    try:
        with open_file(folder / HEADER) as file:
            header = json.load(file)
        check = header.pop("check")
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError):
        return None
    return header if check == _header_check(header) else None


def write_header(folder: Path, header: dict[str, Any]) -> None:
    """Begin a journal. Rows that were written under another header are cut by the next writer."""
    content = json.dumps(header | {"check": _header_check(header)}, indent=1) + "\n"
    write_atomically(folder / HEADER, content.encode())


def _header_check(header: dict[str, Any] | None) -> str:
    return _digest(json.dumps(header, sort_keys=True).encode())


def _digest(body: bytes) -> str:
    return hashlib.blake2b(body, digest_size=8).hexdigest()


def _to_line(entry: dict[str, Any], check_before: str) -> tuple[bytes, str]:
    """Return the line of states.jsonl and its check."""
    body = json.dumps(entry).encode()[:-1]
    check = _digest(check_before.encode() + body)
    return body + f'{_CHECK}{check}"}}\n'.encode(), check


def _from_line(line: bytes, check_before: str) -> dict[str, Any] | None:
    """Return the entry with its check, or None if the line is torn, damaged or not the next one."""
    body, _, check = line.rpartition(_CHECK.encode())
    return json.loads(line) if check == f'{_digest(check_before.encode() + body)}"}}\n'.encode() else None


class JournalWriter:
    """The writer of the journal in `folder`, which it first cuts to its last intact append.

    `num_rows`: rows in the journal. `state`: the state of the last append, or None. `damaged`:
    whether committed rows were cut. `seen(state)` is called for every append that is there. The
    constructor waits for another writer to end: one whose trainer was killed may live a moment
    longer. From the first append on of which `is_wanted(first row, end, state)` is False, all are cut.
    """

    def __init__(
        self,
        folder: Path,
        dtype: np.dtype,
        seen: Callable[[dict[str, Any]], Any] = lambda state: None,
        is_wanted: Callable[[int, int, dict[str, Any]], bool] = lambda first, end, state: True,
    ):
        self.folder, self.dtype = folder, dtype
        self._rows = _open_in_place(folder / ROWS)
        fcntl.flock(self._rows, fcntl.LOCK_EX)
        self._states = _open_in_place(folder / STATES)
        sync_folder(folder)
        self.num_rows, self.damaged, self._states_size = 0, False, 0
        self.state: dict[str, Any] | None = None
        self._check = _header_check(read_header(folder))
        self._read_appends(seen, is_wanted)
        self._cut()

    def _read_appends(
        self, seen: Callable[[dict[str, Any]], Any], is_wanted: Callable[[int, int, dict[str, Any]], bool]
    ) -> None:
        with (self.folder / STATES).open("rb") as lines:
            for line in lines:
                entry = _from_line(line, self._check)
                if entry is None or not self._has_rows(entry):
                    self.damaged = line.endswith(b"\n")  # a crash leaves a torn line, which is no damage
                    return
                if not is_wanted(self.num_rows, entry["rows"], entry["state"]):
                    return
                seen(entry["state"])
                self.num_rows, self.state, self._check = entry["rows"], entry["state"], entry["check"]
                self._states_size += len(line)

    def _has_rows(self, entry: dict[str, Any]) -> bool:
        """Return whether the next rows of the file are those of this append."""
        try:
            return crc32(self._rows.read((entry["rows"] - self.num_rows) * self.dtype.itemsize)) == entry["crc32"]
        except OSError:  # a place of the disk that cannot be read
            return False

    def _cut(self) -> None:
        for file, size in ((self._states, self._states_size), (self._rows, self.num_rows * self.dtype.itemsize)):
            file.truncate(size)
            file.seek(size)
            os.fsync(file.fileno())

    def append(self, rows: np.ndarray, state: dict[str, Any]) -> None:
        """Append `rows` (records) and the JSON `state` after them. Raises DiskFull.

        Both are on the disk on return.
        """
        content, num_rows = rows.tobytes(), self.num_rows + len(rows)
        line, check = _to_line({"rows": num_rows, "crc32": crc32(content), "state": state}, self._check)
        try:
            with room_on_disk(self.folder / ROWS):
                write_all(self._rows, content)
                write_all(self._states, line)
        except DiskFull:
            self._cut()
            raise
        self.num_rows, self.state, self._check = num_rows, state, check
        self._states_size += len(line)

    def close(self) -> None:
        self._states.close()
        self._rows.close()


class Append(NamedTuple):
    """A line of states.jsonl: where it begins, the CRC-32 of its rows, the check of the line before."""

    offset: int
    crc32: int
    check_before: str


class JournalReader:
    """A reader of rows while a writer appends. Without new rows, a check costs one `stat`.

    It must be replaced if a writer has cut rows.
    """

    def __init__(self, folder: Path, dtype: np.dtype):
        self.folder, self.dtype = folder, dtype
        self._file = _status(folder / STATES)  # the writer's; somebody else may put another in its place
        self._read = 0  # bytes of states.jsonl parsed so far
        self._check = ""  # of the last line
        self._appends: list[Append] = []
        self._ends: list[int] = []  # the number of rows after each append

    def num_rows(self) -> int:
        """Return the number of rows committed so far. Raises StreamDamaged if some have gone."""
        path = self.folder / STATES
        file = _status(path)
        size = file.st_size if file else 0
        if size < self._read or (self._file and not (file and os.path.samestat(file, self._file))):
            raise _damaged(path, "it has lost rows, or was replaced")
        self._file = file
        if size > self._read:
            if not self._appends:
                self._check = _header_check(read_header(self.folder))
            with path.open("rb") as states:
                states.seek(self._read)
                for line in states:
                    entry = _from_line(line, self._check)
                    if entry is None:  # still being written, or torn: the writer will cut it
                        break
                    self._appends.append(Append(self._read, entry["crc32"], self._check))
                    self._ends.append(entry["rows"])
                    self._check = entry["check"]
                    self._read += len(line)
        return self._ends[-1] if self._ends else 0

    def state_with(self, num_rows: int) -> dict[str, Any]:
        """Return the state after the first append that completes `num_rows` rows.

        Raises IndexError if there is none yet, StreamDamaged.
        """
        if num_rows > self.num_rows():
            raise IndexError(f"row {num_rows} of {self.num_rows()}")
        append = self._appends[bisect_left(self._ends, num_rows)]
        entry = None
        with suppress(OSError), open_file(self.folder / STATES) as states:
            states.seek(append.offset)
            entry = _from_line(states.readline(), append.check_before)
        if entry is None:
            raise _damaged(self.folder / STATES, f"the state after {num_rows:,} rows is not the one that was written")
        return entry["state"]

    def rows(self, first: int, count: int) -> np.ndarray:
        """Return (count,) records, read from the file.

        Raises IndexError for uncommitted rows, StreamDamaged for rows that are not those that were
        written.
        """
        if first + count > self.num_rows():
            raise IndexError(f"rows {first}..{first + count - 1} of {self.num_rows()}")
        parts, row = [], first
        while row < first + count:
            number = bisect_right(self._ends, row)
            start, end = self._ends[number - 1] if number else 0, self._ends[number]
            parts.append(self._append(number, start, end)[row - start : first + count - start])
            row = end
        return np.concatenate(parts) if parts else np.empty(0, self.dtype)

    def cut(self, num_rows: int) -> None:
        """Remove the appends after the one that ends with `num_rows`. There must be no writer."""
        if num_rows < self.num_rows():
            with _open_in_place(self.folder / STATES) as states:
                states.truncate(self._appends[bisect_right(self._ends, num_rows)].offset)

    def _append(self, number: int, start: int, end: int) -> np.ndarray:
        """Return the rows of one append, start .. end - 1."""
        path, wrong = self.folder / ROWS, f"rows {start:,} to {end:,} are not those that were written"
        try:
            with open_file(path) as file:
                file.seek(start * self.dtype.itemsize)
                content = file.read((end - start) * self.dtype.itemsize)
        except OSError as error:
            raise _damaged(path, wrong) from error
        if crc32(content) != self._appends[number].crc32:
            raise _damaged(path, wrong)
        return np.frombuffer(content, self.dtype)


def _open_in_place(path: Path) -> io.FileIO:
    """Open a file that is cut and written, never through a link: that may lead to any file of this user."""
    with room_on_disk(path):
        return open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644), "r+b", buffering=0)


def _status(path: Path) -> os.stat_result | None:
    """Return the status of the file that has this name now; None: none has."""
    with suppress(OSError):
        status = path.stat()
        return status if stat.S_ISREG(status.st_mode) else None
    return None


def _damaged(path: Path, what: str) -> StreamDamaged:
    return StreamDamaged(
        f"{path} is damaged: {what}. It is made again from the sources, now or at the next start; if this repeats, check the "
        "disk"
    )
