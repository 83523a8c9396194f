"""The interface of a source of documents: four promises that every kind keeps.

- Order: an epoch is a fixed order of the source, which depends on (seed, epoch, content) alone;
  each epoch has a new one.
- Position: every document comes with the JSON value that says where the next one starts; passing
  it back resumes exactly there. What came before is read again in the same row group or file at most.
- Fault tolerance: what cannot be read is skipped and counted by reason in `skipped`. Only a
  missing source (`SourceError`) or a network that is temporarily down (`Retryable`) is raised.
- Held-out text is spread over the whole source and at most about 5% of it.

Sources never tokenize, mix, count repetitions, or apply `min_text_length` and `max_documents`: the
producer does.
"""

import hashlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

# Longer documents are split, so that mixing stays fine-grained and held-out text is spread.
PIECE_CHARACTERS = 16_384
HELD_OUT_ONE_IN = 20  # one piece in 20 may be held out: 5%

Position = Any  # a JSON value; None is the beginning of an epoch
Role = Literal["system", "user", "assistant"]
BETWEEN_TURNS = "\n\n"  # in the text of a conversation


class Turn(NamedTuple):
    """What one side of a conversation says; `system` comes before both."""

    role: Role
    text: str


class Document(NamedTuple):
    """One document.

    `answer_start`: character offset of the answer (the last of several rendered fields), if any.
    `cells`: the fields that the text was made of, in the preset's order, if there are several; of a
    conversation, what it begins with. `turns`: of a conversation, whose `text` is theirs, joined by BETWEEN_TURNS.
    """

    text: str
    answer_start: int | None = None
    cells: tuple[str, ...] = ()
    turns: tuple[Turn, ...] = ()

    def pieces(self) -> "Iterator[Document]":
        """Yield documents of at most PIECE_CHARACTERS; joined, they are this one."""
        if len(self.text) <= PIECE_CHARACTERS:
            yield self
            return
        start, first = 0, self.answer_start
        while start < len(self.text):
            end = end_of_piece(self.text, start)
            answer_start = None if first is None or first >= end else max(0, first - start)
            yield Document(self.text[start:end], answer_start, self.cells)
            start = end


class Source(ABC):
    """One source of documents. `pinned`: JSON to be passed back to see the same data again."""

    skips_documents = True  # what `skipped` counts; else files or pages

    def __init__(self, label: str):
        self.label = label
        self.pinned: dict = {}
        self.notices: list[str] = []  # sentences the user should read once
        self.skipped: Counter[str] = Counter()  # by reason
        self.text_bytes: int | None = None  # size of all text, where it is known without reading

    @abstractmethod
    def size(self) -> str:
        """Return how much there is, for people: "812 files, 12 MB"."""

    @abstractmethod
    def documents(self, epoch: int, position: Position = None) -> Iterator[tuple[Document, Position]]:
        """Yield each document of an epoch from `position` on, with the position of the next.

        Raises SourceError, Retryable.
        """

    @abstractmethod
    def held_out(self, part: int = 0) -> Iterator[Document]:
        """Yield documents that may be held out: spread over the source, about 5% at most.

        `part`, below HELD_OUT_ONE_IN: another 5% for each; all of them are the source.
        """


def end_of_piece(text: str, start: int = 0) -> int:
    """Return where the piece of `text` that begins at `start` ends.

    It ends at the last blank line of its second half, else the last line end, else the last space.
    """
    longest = start + PIECE_CHARACTERS
    if len(text) <= longest:
        return len(text)
    half = start + PIECE_CHARACTERS // 2
    ends = (text.rfind(mark, half, longest) + len(mark) for mark in ("\n\n", "\n", " "))
    return next((end for end in ends if end > half), longest)


def hash_key(*parts: object) -> str:
    """Return 16 hex digits of all parts: they order files and shards, select held-out text."""
    return hashlib.blake2b("\0".join(map(str, parts)).encode(), digest_size=8).hexdigest()


def in_words(reasons: Mapping[str, int]) -> str:
    """List skipped items by reason, for people: "2 empty, 1 unreadable"."""
    return ", ".join(f"{count:,} {reason}" for reason, count in reasons.items() if count)
