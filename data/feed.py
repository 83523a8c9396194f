"""One source as the mixer sees it: usable documents, shuffled and encoded, for the allowed epochs.

Documents are read and shuffled in blocks: neighbours in a source (questions about one paragraph,
pages of one book) do not meet in one batch. The first block is small, so that training begins soon,
and each is twice as large as the one before, up to what memory allows: the more books a block
holds, the more like the whole source is each part of it (benchmarks/order.py). Blocks and their
order depend only on the seed and the source's own order. `progress` is always the state after the
last document returned, never after those still queued; a run that resumes from it reads one block
again and continues with exactly the next document.
"""

import json
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar

from configs import schema
from configs.errors import Retryable, SourceError
from data.block import Block, Held
from data.heldout_choice import text_hash
from data.sources.base import HELD_OUT_ONE_IN, Document, Position, Source, hash_key, in_words
from data.waiting import FIRST_WAIT, watch

BLOCK_DOCUMENTS, BLOCK_BYTES = 1024, 2**20  # the first block ends with the document that reaches either
BLOCK_SECONDS = 2.0  # for which rows wait while a block is read
ENCODED_BYTES = 2**20  # of text encoded at once, which is several times faster than one document at a time
LARGE_LOSS, FEWEST_SEEN = 0.1, 100  # a share of the documents, once there are so many, of whose loss the user is told
NOTHING: Counter[str] = Counter()

Encoded = TypeVar("Encoded", bound=Sized)  # a document as returned by `encode`


@dataclass
class Progress:
    """The progress of a source. `asdict` makes it JSON.

    `position`: start of the current block of `epoch` (counted from 0). `given`: documents of that
    block used so far. `blocks`: how many the run has read before it. `bytes`: size of all text read,
    in UTF-8. `epoch_documents` includes copies that were dropped; `only_copies`: an epoch had nothing
    else.
    """

    epoch: int = 0
    position: Position = None
    given: int = 0
    blocks: int = 0
    epoch_documents: int = 0
    epoch_given: int = 0
    only_copies: bool = False
    documents: int = 0
    tokens: int = 0
    bytes: int = 0
    retries: int = 0
    skipped: dict[str, int] = field(default_factory=dict)


def times_read(progress: Mapping[str, Any]) -> int:
    """Return how often a source had been read to its end when what it gives now began; `progress`: as JSON. A source that
    ended, and that gives nothing more, is not being read again."""
    return max(0, progress["epoch"] - (progress["epoch_documents"] == 0))


class Entry(NamedTuple, Generic[Encoded]):
    """A document (None: end of an epoch), the progress after it, and what was read to find it."""

    document: Encoded | None
    position: Position
    given: int
    blocks: int
    num_bytes: int
    skipped: Mapping[str, int]
    text_hash: bytes = b""


class Feed(Generic[Encoded]):
    """The usable documents of one source, encoded.

    `open_again()` returns the Source and may raise Retryable. `encode(documents)` returns one
    `Encoded` for each. `reason_to_skip(document)` returns why it is not used, or None.
    `before_waiting()` is called between two documents when the network is down, and every BLOCK_SECONDS
    while a block is read.
    `largest_block`: bytes that a block takes at most, but for its last document.
    `admit(text_hash, epoch)` returns whether a document may be given, or was given before; None: all
    may. `kept_length(text)` returns how much of a text is used, if its end is held out
    (heldout_choice.py).
    """

    def __init__(
        self,
        spec: schema.Source,
        open_again: Callable[[], Source],
        encode: Callable[[list[Document]], Iterable[Encoded]],
        reason_to_skip: Callable[[Document], str | None],
        *,
        seed: int,
        largest_block: int = BLOCK_BYTES,
        progress: Progress | None = None,
        before_waiting: Callable[[], None] = lambda: None,
        admit: Callable[[bytes, int], bool] | None = None,
        kept_length: Callable[[str], int | None] = lambda text: None,
    ):
        self.label, self.repeat, self.max_documents = spec.label, spec.repeat, spec.max_documents
        self.progress = progress or Progress()
        self._open, self._encode = open_again, encode
        self._reason_to_skip, self._before_waiting = reason_to_skip, before_waiting
        self._seed, self._admit, self._kept_length = seed, admit, kept_length
        self._largest_block = max(BLOCK_BYTES, largest_block)
        self._skipped: Counter[str] = Counter()  # of this block, by the source or this feed
        self._lost: Counter[str] = Counter()  # documents skipped in all blocks
        self._notices: list[str] = []
        self._blocks = self._read()
        self._waiting: deque[Entry[Encoded]] = deque()

    @property
    def finished(self) -> bool:
        """Whether nothing is left to give; `next_document` must then not be called again."""
        return self.progress.only_copies or (self.repeat is not None and self.progress.epoch >= self.repeat)

    def new_notices(self) -> list[str]:
        """Return what the user should know and was not told yet."""
        notices, self._notices = self._notices, []
        return notices

    def next_document(self) -> Encoded | None:
        """Return the next document, encoded, or None at the end of an epoch.

        Raises SourceError if the epoch had no document.
        """
        while True:
            while not self._waiting:
                with watch(self.label) as self._wait:
                    self._waiting.extend(next(self._blocks))
            entry, progress = self._waiting.popleft(), self.progress
            progress.position, progress.given, progress.blocks = entry.position, entry.given, entry.blocks
            progress.bytes += entry.num_bytes
            self._count(entry.skipped)
            if entry.document is None:
                progress.only_copies = progress.epoch_given == 0
                progress.epoch, progress.epoch_documents, progress.epoch_given = progress.epoch + 1, 0, 0
                return None
            progress.epoch_documents += 1
            if self._admit is None or self._admit(entry.text_hash, progress.epoch):
                progress.epoch_given += 1
                progress.documents += 1
                progress.tokens += len(entry.document)
                return entry.document
            self._count({"duplicate": int(progress.epoch == 0)})  # once, however many epochs drop it

    def _count(self, skipped: Mapping[str, int]) -> None:
        for reason, count in skipped.items():
            if count:
                self.progress.skipped[reason] = self.progress.skipped.get(reason, 0) + count

    def _read(self) -> Iterator[list[Entry[Encoded]]]:
        """Yield what follows on `progress`, some documents at a time, through all allowed epochs."""
        epoch, position, given = self.progress.epoch, self.progress.position, self.progress.given
        number = self.progress.blocks
        used = self.progress.epoch_documents - given  # of this epoch, before the block
        is_told = used + given + epoch > 0  # by the run that is resumed
        while self.repeat is None or epoch < self.repeat:
            documents, ended = self._documents(epoch, position), False
            while not ended:
                room = None if self.max_documents is None else self.max_documents - used
                block = self._read_block(documents, room, number)
                used += len(block.documents)
                ended = block.after is None or used == self.max_documents
                if not used:
                    raise nothing_usable(self.label, block.skipped)
                is_told = is_told or self._notice_loss(used)
                yield from self._entries(block, epoch, position, given, number, ended)
                position, given, number = block.after, 0, number + 1
            epoch, position, used, is_told = epoch + 1, None, 0, True

    def _entries(
        self, block: Block, epoch: int, position: Position, given: int, number: int, ended: bool
    ) -> Iterator[list[Entry[Encoded]]]:
        """Yield the documents of a block in their shuffled order, some at a time, from number `given` on.

        They are taken out of the block, so that its memory is free before the next is read.
        """
        order = sorted(
            range(len(block.documents)), key=partial(hash_key, self._seed, epoch, json.dumps(position)), reverse=True
        )
        waiting = [block.documents[i] for i in order]
        block.documents.clear()
        num_documents = len(waiting)
        del waiting[max(0, num_documents - given) :]  # fewer are there if files were changed
        num_bytes, skipped = (0, NOTHING) if given else (block.num_bytes, block.skipped)  # the first entry counts them
        while waiting:
            batch, size = [], 0
            while waiting and size < ENCODED_BYTES:
                batch.append(waiting.pop())
                size += batch[-1].num_bytes()
            encoded = self._encode([held.document() for held in batch])
            entries = []
            for held, each in zip(batch, encoded, strict=True):
                given += 1
                entries.append(Entry(each, position, given, number, num_bytes, skipped, held.text_hash))
                num_bytes, skipped = 0, NOTHING
            if not waiting and not ended:
                entries[-1] = entries[-1]._replace(position=block.after, given=0, blocks=number + 1)
            yield entries
        if ended:
            yield [Entry(None, None, 0, number + 1, num_bytes, skipped)]

    def _notice_loss(self, num_used: int) -> bool:
        """Make a notice of it if many of the first documents are skipped. Return whether there are so many."""
        num_lost = self._lost.total()
        seen = num_used + num_lost
        held_out_as_meant = min(self._lost["held out"], seen // HELD_OUT_ONE_IN)
        if seen < FEWEST_SEEN or num_lost - held_out_as_meant <= LARGE_LOSS * seen:
            return False
        self._notices.append(
            f"{self.label}: {num_lost:,} of its first {seen:,} documents are skipped ({in_words(self._lost)})"
        )
        return True

    def _read_block(self, documents: Iterator[tuple[Document, Position]], room: int | None, number: int) -> Block:
        """Read block `number` of the run, of at most `room` usable documents."""
        most_bytes = min(BLOCK_BYTES << min(number, 32), self._largest_block)
        most_documents = BLOCK_DOCUMENTS * most_bytes // BLOCK_BYTES
        block: list[Held] = []
        size, num_bytes = 0, 0  # bytes in the block; bytes of all text read
        skipped = self._skipped = Counter()
        due = time.monotonic() + BLOCK_SECONDS
        for document, after in documents:
            if time.monotonic() > due:
                self._before_waiting()
                due = time.monotonic() + BLOCK_SECONDS
            read = document.text.encode("utf-8", "replace")  # a lone surrogate cannot be tokenized
            num_bytes += len(read)
            document = document._replace(text=read.decode())
            reason, kept = self._reason_to_skip(document), self._kept_length(document.text)
            if reason or kept == 0:
                for counts in (skipped, self._lost):
                    counts[reason or "held out"] += 1
                continue
            document = document._replace(text=document.text[:kept])
            block.append(Held.of(document, text_hash(document.text) if self._admit else b""))
            size += block[-1].num_bytes()  # not characters: an emoji may be four tokens of 100 bytes each
            if len(block) in (most_documents, room) or size >= most_bytes:
                return Block(block, num_bytes, skipped, after)
        return Block(block, num_bytes, skipped, None)

    def _documents(self, epoch: int, position: Position) -> Iterator[tuple[Document, Position]]:
        """Yield the documents of one epoch; retry without limit while the network is down. Those that `max_documents` leaves
        are the same in each."""
        wait, order = FIRST_WAIT, 0 if self.max_documents else epoch
        while True:
            try:
                source = self._open()
                # Only documents skipped from here on count: those between the last document and an
                # interruption are read again.
                seen = source.skipped.copy()
                for document, after in source.documents(order, position):
                    if source.skipped.total() > seen.total() and order == epoch:
                        self._count_skipped(source, seen)
                        seen = source.skipped.copy()
                    self._wait.answered()
                    yield document, after
                    position, wait = after, FIRST_WAIT
                if order == epoch:
                    self._count_skipped(source, seen)
                return
            except Retryable as error:
                self.progress.retries += 1
                self._before_waiting()
                wait = self._wait.pause(error, wait)

    def _count_skipped(self, source: Source, before: Counter[str]) -> None:
        skipped = source.skipped - before
        self._skipped += skipped
        if source.skips_documents:
            self._lost += skipped


def nothing_usable(label: str, skipped: Counter[str]) -> SourceError:
    """Return the error for a source of which every document is skipped, for these reasons."""
    return SourceError(
        f"source {label}: not one document can be used ({in_words(skipped) or 'it is empty'}); "
        "add text, or change min_text_length or the source in the preset"
    )
