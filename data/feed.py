"""One source as the mixer sees it: usable documents, shuffled, encoded, one at a time, for as many epochs as allowed.

Documents are read, shuffled and encoded a block at a time: neighbours in a source (questions on one paragraph, pages of
one book) do not meet in one batch, and encoding many texts at once is several times faster. Blocks and their order are
a function of the seed and the source's own order alone. `progress` is always the state after the last document handed
out, never after those waiting; what is saved leads exactly to the next document by reading one block again.
"""

import json
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, NamedTuple, TypeVar

from configs import schema
from configs.errors import Retryable, SourceError
from data.sources.base import Document, Position, Source, hash_key, in_words

BLOCK_DOCUMENTS, BLOCK_BYTES = 1024, 2**20  # a block ends with the document that reaches either
FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0  # seconds between two tries when the network is down
LONGEST_SILENCE = 20.0  # seconds until it is said of a source that neither answers nor fails

Encoded = TypeVar("Encoded", bound=Sized)  # a document, as `encode` gives it
Status = Callable[[str], None]  # shows a message until the next one; "" shows none


@dataclass
class Progress:
    """Where a source stands. JSON by `asdict`. `position`: of the block being handed out in `epoch` (counted from 0);
    `given`: how many of its documents were. `bytes`: of all text read, in UTF-8."""

    epoch: int = 0
    position: Position = None
    given: int = 0
    epoch_documents: int = 0
    documents: int = 0
    tokens: int = 0
    bytes: int = 0
    retries: int = 0
    skipped: dict[str, int] = field(default_factory=dict)


class Entry(NamedTuple, Generic[Encoded]):
    """A document (None: the end of an epoch), where the source stands after it, and what was read to find it."""

    document: Encoded | None
    position: Position
    given: int
    num_bytes: int
    skipped: Counter[str]


class Feed(Generic[Encoded]):
    """`open_again()` gives the Source (and may raise Retryable); `encode(texts)` gives one `Encoded` a text;
    `reason_to_skip(text)` says why a document is not used, or None; `status` hears of trouble, maybe from another
    thread; `before_waiting()` is called between two documents when the network is down."""

    def __init__(
        self,
        spec: schema.Source,
        open_again: Callable[[], Source],
        encode: Callable[[list[str]], Iterable[Encoded]],
        reason_to_skip: Callable[[str], str | None],
        status: Status,
        *,
        seed: int,
        progress: Progress | None = None,
        before_waiting: Callable[[], None] = lambda: None,
    ):
        self.label, self.repeat, self.max_documents = spec.label, spec.repeat, spec.max_documents
        self.progress = progress or Progress()
        self._open, self._encode = open_again, encode
        self._reason_to_skip, self._status, self._before_waiting = reason_to_skip, status, before_waiting
        self._seed = seed
        self._skipped: Counter[str] = Counter()  # for the block being read, by the source or by us
        self._blocks = self._read()
        self._waiting: deque[Entry[Encoded]] = deque()

    @property
    def finished(self) -> bool:
        """Its `repeat` epochs are over: `next_document` must not be called again."""
        return self.repeat is not None and self.progress.epoch >= self.repeat

    def next_document(self) -> Encoded | None:
        """The next document, encoded; None: the epoch has ended. Raises SourceError if the epoch had no document."""
        while not self._waiting:
            with watch(self.label, self._status) as self._say:
                self._waiting.extend(next(self._blocks))
        entry, progress = self._waiting.popleft(), self.progress
        progress.position, progress.given = entry.position, entry.given
        progress.bytes += entry.num_bytes
        for reason, count in entry.skipped.items():
            progress.skipped[reason] = progress.skipped.get(reason, 0) + count
        if entry.document is None:
            progress.epoch, progress.epoch_documents = progress.epoch + 1, 0
            return None
        progress.epoch_documents += 1
        progress.documents += 1
        progress.tokens += len(entry.document)
        return entry.document

    def _read(self) -> Iterator[list[Entry[Encoded]]]:
        """Blocks from `progress` on, through all epochs allowed."""
        epoch, position, given = self.progress.epoch, self.progress.position, self.progress.given
        used = self.progress.epoch_documents - given  # before the block
        while self.repeat is None or epoch < self.repeat:
            documents, ended = self._documents(epoch, position), False
            while not ended:
                room = None if self.max_documents is None else self.max_documents - used
                texts, num_bytes, skipped, after = self._read_block(documents, room)
                used += len(texts)
                ended = after is None or used == self.max_documents
                if not used:
                    reasons = in_words(skipped) or "it is empty"
                    raise SourceError(
                        f"source {self.label}: not one document can be used ({reasons}); "
                        "add text, or change min_text_length or the source in the preset"
                    )
                order = sorted(range(len(texts)), key=partial(hash_key, self._seed, epoch, json.dumps(position)))
                encoded = self._encode([texts[i] for i in order])
                entries = [Entry(each, position, i + 1, 0, Counter()) for i, each in enumerate(encoded)]
                if ended:
                    entries.append(Entry(None, None, 0, 0, Counter()))
                else:
                    entries[-1] = entries[-1]._replace(position=after, given=0)
                entries[0] = entries[0]._replace(num_bytes=num_bytes, skipped=skipped)
                yield entries[min(given, len(texts)) :]
                position, given = after, 0
            epoch, position, used = epoch + 1, None, 0

    def _read_block(
        self, documents: Iterator[tuple[Document, Position]], room: int | None
    ) -> tuple[list[str], int, Counter[str], Position]:
        """Usable texts, at most `room`; bytes read and documents left out for them; where the next block begins (None:
        the epoch has ended)."""
        texts: list[str] = []
        size, num_bytes = 0, 0  # of the block; of all that was read
        skipped = self._skipped = Counter()
        for document, after in documents:
            read = document.text.encode("utf-8", "replace")  # a lone surrogate cannot be tokenized
            num_bytes += len(read)
            text = read.decode()
            if reason := self._reason_to_skip(text):
                skipped[reason] += 1
                continue
            texts.append(text)
            size += len(read)  # not characters: an emoji may be four tokens of 100 bytes each
            if len(texts) in (BLOCK_DOCUMENTS, room) or size >= BLOCK_BYTES:
                return texts, num_bytes, skipped, after
        return texts, num_bytes, skipped, None

    def _documents(self, epoch: int, position: Position) -> Iterator[tuple[Document, Position]]:
        """One epoch, waiting as long as it takes when the network is down."""
        wait = FIRST_WAIT
        while True:
            try:
                source = self._open()
                # Only what is left out from here on counts: what followed the last document before a break is met again.
                seen = source.skipped.copy()
                for document, after in source.documents(epoch, position):
                    if source.skipped.total() > seen.total():
                        self._skipped += source.skipped - seen
                        seen = source.skipped.copy()
                    yield document, after
                    position, wait = after, FIRST_WAIT
                self._skipped += source.skipped - seen
                return
            except Retryable as error:
                self.progress.retries += 1
                self._before_waiting()
                wait = pause(self.label, error, wait, self._say)


@contextmanager
def watch(label: str, status: Status) -> Iterator[Status]:
    """For whatever asks a source: gives what to say trouble with; after LONGEST_SILENCE without a word says so itself,
    whatever the source or its library is waiting for; in the end takes back what was said."""
    said = False

    def say(message: str) -> None:
        nonlocal said
        said = True
        timer.cancel()
        status(message)

    message = f"{label}: no text for {LONGEST_SILENCE:.0f} s, still trying"
    timer = threading.Timer(LONGEST_SILENCE, say, (message,))
    timer.daemon = True
    timer.start()
    try:
        yield say
    finally:
        timer.cancel()
        timer.join()  # it may be speaking just now
        if said:
            status("")


def pause(label: str, error: Retryable, seconds: float, say: Status) -> float:
    """Say what is wrong and wait; returns how long to wait if it happens again."""
    say(f"{label}: {error}, retrying in {seconds:.0f} s")
    time.sleep(seconds)
    return min(2 * seconds, LONGEST_WAIT)
