"""What a source of documents is: four promises that every kind keeps.

- Order: an epoch is a fixed order of the source, decided by (seed, epoch, content) alone; each epoch has a new one.
- Position: every document comes with the JSON value that says where the next one starts; giving it back continues
  exactly there without reading what came before.
- Nothing stops a run: what cannot be read is left out and counted by reason in `skipped`. Only a source that is not
  there at all (`SourceError`) or a network that is down for the moment (`Retryable`) is raised.
- Held-out text is spread over the whole source and at most about 5% of it.

Sources never tokenize, mix, count repetitions, or apply `min_text_length` and `max_documents`: the producer does.
"""

import hashlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

PIECE_CHARACTERS = 16_384  # longer documents are split, so that mixing stays fine-grained and held-out text spread
HELD_OUT_ONE_IN = 20  # one piece in 20 may be held out: 5%

Position = Any  # a JSON value; None is the beginning of an epoch


class Document(NamedTuple):
    """`answer_start`: character offset at which the answer begins (the last of several rendered fields), if any."""

    text: str
    answer_start: int | None = None

    def pieces(self) -> "Iterator[Document]":
        """Documents of at most PIECE_CHARACTERS; joined they are this one."""
        if len(self.text) <= PIECE_CHARACTERS:
            yield self
            return
        start, first = 0, self.answer_start
        while start < len(self.text):
            end = end_of_piece(self.text, start)
            yield Document(self.text[start:end], None if first is None or first >= end else max(0, first - start))
            start = end


class Source(ABC):
    """One source of documents. `pinned` is JSON: what must be handed back to see the same data again."""

    def __init__(self, label: str):
        self.label = label
        self.pinned: dict = {}
        self.notices: list[str] = []  # sentences the user should read once
        self.skipped: Counter[str] = Counter()  # documents left out, by reason
        self.text_bytes: int | None = None  # in all, where that is known without reading it

    @abstractmethod
    def size(self) -> str:
        """How much there is, for people: "812 files, 12 MB"."""

    @abstractmethod
    def documents(self, epoch: int, position: Position = None) -> Iterator[tuple[Document, Position]]:
        """One epoch from `position` on: each document with the position of the next. Raises SourceError, Retryable."""

    @abstractmethod
    def held_out(self) -> Iterator[Document]:
        """Documents that may be set aside for evaluation: spread over the source, at most about 5% of it."""


def end_of_piece(text: str, start: int = 0) -> int:
    """Where the piece of `text` that begins at `start` ends: at the last blank line, else line end, else space of its
    second half."""
    longest = start + PIECE_CHARACTERS
    if len(text) <= longest:
        return len(text)
    half = start + PIECE_CHARACTERS // 2
    ends = (text.rfind(mark, half, longest) + len(mark) for mark in ("\n\n", "\n", " "))
    return next((end for end in ends if end > half), longest)


def hash_key(*parts: object) -> str:
    """16 hex digits that depend on all parts: the order of files and shards, and what is held out."""
    return hashlib.blake2b("\0".join(map(str, parts)).encode(), digest_size=8).hexdigest()


def in_words(reasons: Mapping[str, int]) -> str:
    """What was left out, for people: "2 empty, 1 unreadable"."""
    return ", ".join(f"{count:,} {reason}" for reason, count in reasons.items() if count)
