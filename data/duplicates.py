"""Drops documents that were given before: by the same source in this epoch, or by another source.

A source keeps what it gave first: its next epoch gives it again, and copies in other sources are
dropped in all their epochs. Decisions are made in the order in which documents are given and
depend only on those before, as the rows do. Each state in the journal holds the records since the
state before: a resumed run adds up those of all states, and drops exactly what it would have
dropped.

Texts are equal if they differ only in letter case and white space (heldout_choice.py: text_hash). The
first MOST_DOCUMENTS different ones are remembered, in about 150 MB; of others copies are kept.
"""

from base64 import b64decode, b64encode

import numpy as np

MOST_DOCUMENTS = 1_000_000
RECORD = np.dtype([("key", "<u8"), ("given", "<u8")])
SOURCES = 2**8  # more than there may be: `given` is epoch * SOURCES + source


class Duplicates:
    """The documents given so far."""

    def __init__(self) -> None:
        self._given: dict[int, int] = {}
        self._new: list[tuple[int, int]] = []

    def add(self, records: str) -> None:
        """Add what `new_records` returned earlier."""
        found = np.frombuffer(b64decode(records), RECORD)
        self._given.update(zip(found["key"].tolist(), found["given"].tolist(), strict=True))

    def admit(self, source: int, text_hash: bytes, epoch: int) -> bool:
        """Return whether source number `source` may give a document in `epoch`; record it if so."""
        key, given = int.from_bytes(text_hash[:8], "little"), epoch * SOURCES + source
        before = self._given.get(key)
        if before is None and len(self._given) >= MOST_DOCUMENTS:
            return True
        if before is not None and (before % SOURCES != source or before == given):
            return False
        self._given[key] = given
        self._new.append((key, given))
        return True

    def forget(self) -> None:
        """Let every document be given again."""
        self._given, self._new = {}, []

    def new_records(self) -> str:
        """Return the records since the last call, as text: 22 characters a document."""
        records, self._new = np.array(self._new, RECORD), []
        return b64encode(records.tobytes()).decode()
