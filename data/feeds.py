"""One source as the mixer sees it: usable documents, encoded, one at a time, for as many epochs as are allowed.

Texts are encoded in batches ahead of need, because that is several times faster; `progress` is always the state after
the last document handed out, never after those waiting, so what is saved leads exactly to the next document.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from data.sources import Document, Position, Retryable, Source, SourceError, in_words

FIRST_BATCH, LARGEST_BATCH = 2**16, 2**20  # bytes encoded at once: small at first, so that training can begin
BATCH_SECONDS = 0.5  # a slow source hands on what it has
FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0  # seconds between two tries when the network is down


@dataclass
class Progress:
    """Where a source stands. JSON by `asdict`. `position`: the next document of `epoch` (counted from 0)."""

    epoch: int = 0
    position: Position = None
    epoch_documents: int = 0
    documents: int = 0
    tokens: int = 0
    skipped: dict[str, int] = field(default_factory=dict)


class Entry(NamedTuple):
    """A document read (`text`; None: the end of an epoch), the position after it, what was left out before it."""

    text: str | None
    position: Position
    skipped: Counter[str]


class Feed:
    """`open_again()` gives the Source (and may raise Retryable); `encode(texts)` gives one sequence a text;
    `reason_to_skip(text)` says why a document is not used, or None; `trouble(message)` is called before waiting for
    the network, and with "" when it is back."""

    def __init__(
        self,
        spec: Any,
        open_again: Callable[[], Source],
        encode: Callable[[list[str]], Any],
        reason_to_skip: Callable[[str], str | None],
        trouble: Callable[[str], None],
        progress: Progress | None = None,
    ):
        self.label, self.repeat, self.max_documents = spec.label, spec.repeat, spec.max_documents
        self.progress = progress or Progress()
        self._open, self._encode = open_again, encode
        self._reason_to_skip, self._trouble = reason_to_skip, trouble
        self._source: Source | None = None
        self._seen: Counter[str] = Counter()  # what the source had left out when we last looked
        self._entries = self._read()
        self._waiting: deque[tuple[Entry, Sequence | None]] = deque()
        self._batch = FIRST_BATCH

    @property
    def finished(self) -> bool:
        """Its `repeat` epochs are over: `next_document` must not be called again."""
        return self.repeat is not None and self.progress.epoch >= self.repeat

    def next_document(self) -> Sequence | None:
        """The next document, encoded; None: the epoch has ended. Raises SourceError if the epoch had no document."""
        if not self._waiting:
            self._fill()
        entry, encoded = self._waiting.popleft()
        progress = self.progress
        for reason, count in entry.skipped.items():
            progress.skipped[reason] = progress.skipped.get(reason, 0) + count
        progress.position = entry.position
        if encoded is None:
            progress.epoch, progress.epoch_documents = progress.epoch + 1, 0
            return None
        progress.epoch_documents += 1
        progress.documents += 1
        progress.tokens += len(encoded)
        return encoded

    def _fill(self) -> None:
        batch, length, deadline = [], 0, time.monotonic() + BATCH_SECONDS
        while length < self._batch and not (batch and time.monotonic() > deadline):
            entry = next(self._entries, None)
            if entry is None:  # the last epoch allowed is read
                break
            batch.append(entry)
            length += len((entry.text or "").encode())  # not characters: an emoji may be four tokens of 100 bytes each
        self._batch = min(2 * self._batch, LARGEST_BATCH)
        encoded = iter(self._encode([entry.text for entry in batch if entry.text is not None]))
        self._waiting.extend((entry, None if entry.text is None else next(encoded)) for entry in batch)

    def _read(self) -> Iterator[Entry]:
        """Entries from `progress` on, through all epochs allowed."""
        epoch, position, used = self.progress.epoch, self.progress.position, self.progress.epoch_documents
        while self.repeat is None or epoch < self.repeat:
            skipped: Counter[str] = Counter()
            if self.max_documents is None or used < self.max_documents:
                for document, after in self._documents(epoch, position):
                    skipped += self._left_out()
                    text = document.text.encode("utf-8", "replace").decode()  # a lone surrogate cannot be tokenized
                    if reason := self._reason_to_skip(text):
                        skipped[reason] += 1
                        continue
                    yield Entry(text, after, skipped)
                    skipped = Counter()
                    used += 1
                    if used == self.max_documents:
                        break
            skipped += self._left_out()
            if not used:
                reasons = in_words(skipped) or "it is empty"
                raise SourceError(
                    f"source {self.label}: not one document can be used ({reasons}); "
                    "add text, or change min_text_length or the source in the preset"
                )
            yield Entry(None, None, skipped)
            epoch, position, used = epoch + 1, None, 0

    def _documents(self, epoch: int, position: Position) -> Iterator[tuple[Document, Position]]:
        """One epoch, waiting as long as it takes when the network is down."""
        wait = FIRST_WAIT
        while True:
            try:
                self._source = self._open()
                self._left_out()
                for document, after in self._source.documents(epoch, position):
                    if wait > FIRST_WAIT:
                        self._trouble("")
                        wait = FIRST_WAIT
                    yield document, after
                    position = after
                return
            except Retryable as error:
                wait = pause(self.label, error, wait, self._trouble)

    def _left_out(self) -> Counter[str]:
        """Documents the source itself left out since the last call, by reason."""
        if self._source is None:
            return Counter()
        new = self._source.skipped - self._seen
        self._seen = self._source.skipped.copy()
        return new


def pause(label: str, error: Retryable, seconds: float, trouble: Callable[[str], None]) -> float:
    """Say what is wrong and wait; returns how long to wait if it happens again."""
    trouble(f"{label}: {error}, retrying in {seconds:.0f} s")
    time.sleep(seconds)
    return min(2 * seconds, LONGEST_WAIT)
