"""The record of every row a run has produced: append-only, one writer, any number of readers, no losses.

    stream.json    header, written once: what the stream was made from (see data/prepare.py)
    rows.bin       rows one after another (records of packing.row_dtype)
    states.jsonl   one line an append: {"rows": rows in all, "state": of every source after them, "check": ...}

An append is there once its line in states.jsonl is: rows are on the disk before the line is written. Whatever a crash
leaves behind that point is cut when a writer opens the journal. Nothing here is ever changed in place.
"""

import fcntl
import hashlib
import io
import json
import os
from bisect import bisect_left
from pathlib import Path

import numpy as np

from configs.errors import DiskFull
from data.files import room_on_disk, sync_folder, write_atomically

HEADER, ROWS, STATES = "stream.json", "rows.bin", "states.jsonl"
RUN_AHEAD = 0.08  # of the token budget: 8M tokens of 100M, two of the largest windows (data/order.py)
_CHECK = ', "check": "'


def run_ahead_rows(seq_length: int, token_budget: int) -> int:
    """Rows produced beyond the last one consumed, at most; and so the delay with which new weights take effect."""
    return int(RUN_AHEAD * token_budget) // seq_length


def read_header(folder: Path) -> dict | None:
    """stream.json, or None if the stream was never begun in earnest."""
    try:
        return json.loads((folder / HEADER).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def begin(folder: Path, header: dict) -> None:
    """An empty journal in `folder`; the header comes last, so a journal with a header is whole."""
    for name in (ROWS, STATES):
        (folder / name).unlink(missing_ok=True)
    write_atomically(folder / HEADER, (json.dumps(header, indent=1) + "\n").encode())


def _digest(body: bytes) -> str:
    return hashlib.blake2b(body, digest_size=8).hexdigest()


def _to_line(entry: dict) -> bytes:
    body = json.dumps(entry).encode()[:-1]
    return body + f'{_CHECK}{_digest(body)}"}}\n'.encode()


def _from_line(line: bytes) -> dict | None:
    """The entry, or None if the line is torn or damaged."""
    body, _, check = line.rpartition(_CHECK.encode())
    return json.loads(body + b"}") if check == f'{_digest(body)}"}}\n'.encode() else None


class JournalWriter:
    """Opens the journal in `folder` for appending, cut to its last whole append.

    `num_rows`: rows in it. `state`: what came with the last append, None if there is none. Waits for another writer
    to end: one that lost its trainer may live a moment longer.
    """

    def __init__(self, folder: Path, dtype: np.dtype):
        self.folder, self.dtype = folder, dtype
        self._rows = self._open(folder / ROWS)
        fcntl.flock(self._rows, fcntl.LOCK_EX)
        self._states = self._open(folder / STATES)
        sync_folder(folder)
        self.num_rows, self.state, self._states_size = self._last_append()
        self._cut()

    @staticmethod
    def _open(path: Path) -> io.FileIO:
        with room_on_disk(path):
            return open(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b", buffering=0)

    def _last_append(self) -> tuple[int, dict | None, int]:
        """(rows, state, size of states.jsonl) after the last append whose rows are all there."""
        num_rows, state, size, position = 0, None, 0, 0
        present = os.fstat(self._rows.fileno()).st_size // self.dtype.itemsize
        with (self.folder / STATES).open("rb") as lines:
            for line in lines:
                entry = _from_line(line)
                if entry is None or entry["rows"] > present:
                    break
                position += len(line)
                num_rows, state, size = entry["rows"], entry["state"], position
        return num_rows, state, size

    def _cut(self) -> None:
        for file, size in ((self._states, self._states_size), (self._rows, self.num_rows * self.dtype.itemsize)):
            file.truncate(size)
            file.seek(size)
            os.fsync(file.fileno())

    def append(self, rows: np.ndarray, state: dict) -> None:
        """Add `rows` (records) and the JSON `state` after them; both are on the disk on return. Raises DiskFull."""
        line = _to_line({"rows": self.num_rows + len(rows), "state": state})
        try:
            with room_on_disk(self.folder / ROWS):
                _write_all(self._rows, rows.tobytes())
                _write_all(self._states, line)
        except DiskFull:
            self._cut()
            raise
        self.num_rows += len(rows)
        self.state = state
        self._states_size += len(line)

    def close(self) -> None:
        self._states.close()
        self._rows.close()


def _write_all(file: io.FileIO, content: bytes) -> None:
    view = memoryview(content)
    while view:  # a disk that fills up takes a part first
        view = view[file.write(view) :]
    os.fsync(file.fileno())


class JournalReader:
    """Reads rows while a writer appends. Looking for new rows costs one `stat` when there are none."""

    def __init__(self, folder: Path, dtype: np.dtype):
        self.folder, self.dtype = folder, dtype
        self._read = 0  # bytes of states.jsonl understood so far
        self._num_rows = 0
        self._appends: list[tuple[int, int]] = []  # rows after each append, and where in states.jsonl its line begins
        self._mapped = np.empty(0, dtype=dtype)

    def num_rows(self) -> int:
        """Rows committed by now."""
        path = self.folder / STATES
        if path.exists() and path.stat().st_size > self._read:
            with path.open("rb") as states:
                states.seek(self._read)
                for line in states:
                    entry = _from_line(line)
                    if entry is None:  # still being written, or torn: the writer will cut it
                        break
                    self._num_rows = entry["rows"]
                    self._appends.append((self._num_rows, self._read))
                    self._read += len(line)
        return self._num_rows

    def state_with(self, num_rows: int) -> dict:
        """The state after the first append that completes `num_rows` rows. Raises IndexError if there is none yet."""
        if num_rows > self.num_rows():
            raise IndexError(f"row {num_rows} of {self._num_rows}")
        _, start = self._appends[bisect_left(self._appends, (num_rows, 0))]
        with (self.folder / STATES).open("rb") as states:
            states.seek(start)
            entry = _from_line(states.readline())
        assert entry is not None, "a line that was whole once stays as it is"
        return entry["state"]

    def rows(self, first: int, count: int) -> np.ndarray:
        """(count,) records, a view of the file. Raises IndexError if they are not all committed."""
        if first + count > self.num_rows():
            raise IndexError(f"rows {first}..{first + count - 1} of {self._num_rows}")
        if first + count > len(self._mapped):
            self._mapped = np.memmap(self.folder / ROWS, dtype=self.dtype, mode="r", shape=(self._num_rows,))
        return self._mapped[first : first + count]
