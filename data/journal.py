"""The record of every row that a run has produced: append-only, one writer, any number of readers.

    stream.json    header, written once: what the stream was made from (data/prepare.py)
    rows.bin       the rows, one after another (records of packing.row_dtype)
    states.jsonl   one line an append: {"rows": total, "state": of every source then, "check": ...}

An append is committed by its line in states.jsonl, which is written once its rows are on the disk.
A writer that opens the journal cuts whatever a crash left after the last committed append. Nothing
is ever changed in place, and no row is lost.
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
from data.files import room_on_disk, sync_folder, write_all, write_atomically

HEADER, ROWS, STATES = "stream.json", "rows.bin", "states.jsonl"
RUN_AHEAD = 0.08  # of the token budget: 8M tokens of 100M, two of the largest windows (order.py)
_CHECK = ', "check": "'


def run_ahead_rows(seq_length: int, token_budget: int) -> int:
    """Return how many rows may be produced beyond the last one consumed.

    It is also the delay after which new weights take effect.
    """
    return int(RUN_AHEAD * token_budget) // seq_length


def read_header(folder: Path) -> dict | None:
    """Read stream.json. Return None if the stream was never fully prepared."""
    try:
        return json.loads((folder / HEADER).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def begin(folder: Path, header: dict) -> None:
    """Create an empty journal. The header comes last: a journal with a header is complete."""
    for name in (ROWS, STATES):
        (folder / name).unlink(missing_ok=True)
    write_atomically(folder / HEADER, (json.dumps(header, indent=1) + "\n").encode())


def _digest(body: bytes) -> str:
    return hashlib.blake2b(body, digest_size=8).hexdigest()


def _to_line(entry: dict) -> bytes:
    body = json.dumps(entry).encode()[:-1]
    return body + f'{_CHECK}{_digest(body)}"}}\n'.encode()


def _from_line(line: bytes) -> dict | None:
    """Return the entry, or None if the line is torn or damaged."""
    body, _, check = line.rpartition(_CHECK.encode())
    return json.loads(body + b"}") if check == f'{_digest(body)}"}}\n'.encode() else None


class JournalWriter:
    """The writer of the journal in `folder`, which it first cuts to its last committed append.

    `num_rows`: rows in the journal. `state`: the state of the last append, or None. The
    constructor waits for another writer to end: one whose trainer was killed may live a moment
    longer.
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
        """Return (rows, state, size of states.jsonl) after the last append with all its rows."""
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
        """Append `rows` (records) and the JSON `state` after them. Raises DiskFull.

        Both are on the disk on return.
        """
        line = _to_line({"rows": self.num_rows + len(rows), "state": state})
        try:
            with room_on_disk(self.folder / ROWS):
                write_all(self._rows, rows.tobytes())
                write_all(self._states, line)
        except DiskFull:
            self._cut()
            raise
        self.num_rows += len(rows)
        self.state = state
        self._states_size += len(line)

    def close(self) -> None:
        self._states.close()
        self._rows.close()


class JournalReader:
    """A reader of rows while a writer appends. Without new rows, a check costs one `stat`."""

    def __init__(self, folder: Path, dtype: np.dtype):
        self.folder, self.dtype = folder, dtype
        self._read = 0  # bytes of states.jsonl parsed so far
        self._num_rows = 0
        self._appends: list[tuple[int, int]] = []  # rows after each append, offset of its line
        self._mapped = np.empty(0, dtype=dtype)

    def num_rows(self) -> int:
        """Return the number of rows committed so far."""
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
        """Return the state after the first append that completes `num_rows` rows.

        Raises IndexError if there is none yet.
        """
        if num_rows > self.num_rows():
            raise IndexError(f"row {num_rows} of {self._num_rows}")
        _, start = self._appends[bisect_left(self._appends, (num_rows, 0))]
        with (self.folder / STATES).open("rb") as states:
            states.seek(start)
            entry = _from_line(states.readline())
        assert entry is not None, "a line that was whole once stays as it is"
        return entry["state"]

    def rows(self, first: int, count: int) -> np.ndarray:
        """Return (count,) records, a view of the file. Raises IndexError for uncommitted rows."""
        if first + count > self.num_rows():
            raise IndexError(f"rows {first}..{first + count - 1} of {self._num_rows}")
        if first + count > len(self._mapped):
            self._mapped = np.memmap(self.folder / ROWS, dtype=self.dtype, mode="r", shape=(self._num_rows,))
        return self._mapped[first : first + count]
