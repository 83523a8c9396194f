"""Drops documents that were given before: by the same source in this epoch, or by another source.

    stream/documents.bin   a record for each document given: hash, source and epoch

A source keeps what it gave first: its next epoch gives it again, and copies in other sources are
dropped in all their epochs. Decisions are made in the order in which documents are given and
depend only on those before, as the rows do. Each state in the journal counts the records up to
then, which are on the disk before it: a resumed run drops exactly what it would have dropped.

Texts are equal if they differ only in letter case and white space (heldout.py: text_hash). The
first MOST_DOCUMENTS different ones are remembered, in about 150 MB; of others copies are kept.
"""

import io
import os
from pathlib import Path

import numpy as np

from configs.errors import UserError
from data.files import room_on_disk, write_all

DOCUMENTS = "documents.bin"
MOST_DOCUMENTS = 1_000_000
RECORD = np.dtype([("key", "<u8"), ("given", "<u8")])
AT_ONCE = 2**16  # records
EPOCH = 2**8  # `given` is epoch * EPOCH + source


class Duplicates:
    """The documents given so far; `num_records` of those in the file belong to the state resumed.

    Raises UserError if there are fewer.
    """

    def __init__(self, folder: Path, num_records: int):
        self.num_records = num_records
        self._given: dict[int, int] = {}
        self._new: list[tuple[int, int]] = []
        self._path = folder / DOCUMENTS
        with room_on_disk(self._path):
            self._file = io.FileIO(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644), "r+")
        if os.fstat(self._file.fileno()).st_size < num_records * RECORD.itemsize:
            raise UserError(f"{self._path} is not the one of this stream; delete {folder}, which is then made again")
        self._file.truncate(num_records * RECORD.itemsize)
        while len(records := np.frombuffer(self._file.read(AT_ONCE * RECORD.itemsize), RECORD)):
            self._given.update(zip(records["key"].tolist(), records["given"].tolist(), strict=True))

    def admit(self, source: int, text_hash: bytes, epoch: int) -> bool:
        """Return whether source number `source` may give a document in `epoch`; record it if so."""
        key, given = int.from_bytes(text_hash[:8], "little"), epoch * EPOCH + source
        before = self._given.get(key)
        if before is None and len(self._given) >= MOST_DOCUMENTS:
            return True
        if before is not None and (before % EPOCH != source or before == given):
            return False
        self._given[key] = given
        self._new.append((key, given))
        return True

    def save(self) -> int:
        """Write the new records to the disk and return how many there are now. Raises DiskFull."""
        with room_on_disk(self._path):
            write_all(self._file, np.array(self._new, RECORD).tobytes())
        self.num_records += len(self._new)
        self._new = []
        return self.num_records
