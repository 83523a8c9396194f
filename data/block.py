"""Documents that were read together and wait to be given, in little memory."""

from collections import Counter
from typing import NamedTuple

from data.sources.base import BETWEEN_TURNS, Document, Position, Role, Turn

OBJECT_BYTES = 200  # of what Python keeps beside the text of a document, or of a turn


class Held(NamedTuple):
    """A document that waits in a block, as UTF-8: Python takes four bytes a letter where there is one emoji.

    `turns`: of a conversation, whose turn has how many characters.
    """

    text: bytes
    turns: tuple[tuple[Role, int], ...]
    text_hash: bytes

    @classmethod
    def of(cls, document: Document, text_hash: bytes) -> "Held":
        return cls(document.text.encode(), tuple((role, len(text)) for role, text in document.turns), text_hash)

    def document(self) -> Document:
        text, turns, start = self.text.decode(), [], 0
        for role, length in self.turns:
            turns.append(Turn(role, text[start : start + length]))
            start += length + len(BETWEEN_TURNS)
        return Document(text, turns=tuple(turns))

    def num_bytes(self) -> int:
        """Return about how much memory it takes."""
        return len(self.text) + OBJECT_BYTES * (1 + len(self.turns))


class Block(NamedTuple):
    """Usable documents that were read together, and what was read to find them. `after`: the start of
    the next block, or None at the end of the epoch."""

    documents: list[Held]
    num_bytes: int
    skipped: Counter[str]
    after: Position
