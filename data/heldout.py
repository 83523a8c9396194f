"""Held-out text: chosen before training, spread over each source, never trained on.

Rows are packed per source (no row mixes sources), as in training: EOT document EOT document ...
EOT, so that the end of every document is predicted too. The last row is padded with end-of-text
tokens that no mask contains.

Shapes, for a source with n rows and m documents: rows (n, T+1) tokens; valid (n, T) targets that
count; answer (n, T) targets that belong to the answer of a question; starts (m, 2) row and column
of each document's opening end-of-text token. The target at [i, t] is rows[i, t + 1].
"""

import hashlib
import io
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from types import MappingProxyType

import numpy as np
from tokenizers import Tokenizer

from data.files import write_atomically
from data.packing import row_dtype
from data.sources.base import Document
from data.tokenizer import end_of_text, vocab_size

BYTES_PER_TOKEN = 3.5  # an estimate, for measuring text before there is a tokenizer
HASH_BYTES = 16
# A value is common if more documents than these have it; a field by which more are lost is a category.
FEW_DOCUMENTS, COMMON_SHARE, LARGEST_LOSS = 10, 0.05, 0.5
SMALL_SOURCE = 100  # documents of a source looked at if none of them was selected
SHORTEST_CUT, CUT_SHARE = 1_000, 0.05  # characters of a document whose end may be held out; its largest share
EMPTY: Mapping[bytes, int] = MappingProxyType({})


@lru_cache(maxsize=1)  # data/feed.py needs it twice for each document
def text_hash(text: str) -> bytes:
    """Return a hash that is equal for texts that differ only in letter case and white space."""
    normalised = " ".join(text.casefold().split())
    return hashlib.blake2b(normalised.encode("utf-8", "replace"), digest_size=HASH_BYTES).digest()


def cell_hashes(document: Document) -> dict[int, bytes]:
    """Return for each field that is not empty a hash that another document with it has as well."""
    return {n: text_hash(f"{n}\0{cell}") for n, cell in enumerate(document.cells) if cell.strip()}


def shared_cells(held_out: Iterable[Document], sample: Iterable[Document]) -> tuple[frozenset[bytes], list[int]]:
    """Return hashes of fields of the held-out documents: what shares one is not trained on; and
    the numbers of the fields that are not used, since that would cost too much.

    If a question about a paragraph is held out, training must not see the paragraph, nor another
    question with that answer. `sample`: documents of the source, which show what a field is: a
    value that many of them have ("yes") says nothing about a document, and a field by which most of
    them would be lost is a category.
    """
    seen, shared = list(map(cell_hashes, sample)), set[bytes]()
    counts = Counter(value for hashes in seen for value in hashes.values())
    common = max(FEW_DOCUMENTS, COMMON_SHARE * len(seen))
    fields: dict[int, set[bytes]] = {}
    for number, value in (item for document in held_out for item in cell_hashes(document).items()):
        if counts[value] <= common:
            fields.setdefault(number, set()).add(value)
    too_common = []
    for number, values in sorted(fields.items()):
        if sum(counts[value] for value in values) <= LARGEST_LOSS * len(seen):
            shared |= values
        else:
            too_common.append(number)
    return frozenset(shared), too_common


def collect(documents: Iterable[Document], num_tokens: float, min_text_length: int) -> dict[bytes, Document]:
    """Return documents of about `num_tokens` in all, each text once, by their hashes."""
    chosen, wanted = {}, num_tokens * BYTES_PER_TOKEN
    for document in documents:
        if wanted <= 0:
            break
        key = text_hash(document.text)
        if key in chosen or len(document.text) < min_text_length or not document.text.strip():
            continue
        chosen[key] = document
        wanted -= len(document.text.encode("utf-8", "replace"))
    return chosen


def collect_of_few(
    documents: Iterator[Document], min_text_length: int
) -> tuple[dict[bytes, Document], dict[bytes, int]]:
    """Hold out something of a source too small for 1 in 20 of its documents to be selected.

    Return documents as `collect` does, and cuts (HeldOut): the end of the longest document is held
    out, or the first one as a whole if all are short or have fields, or nothing if there is then
    nothing else to train on.
    """
    usable = collect(islice(documents, SMALL_SOURCE), math.inf, min_text_length)
    key, longest = max(usable.items(), key=lambda item: len(item[1].text), default=(b"", Document("")))
    if len(longest.text) < SHORTEST_CUT or (longest.cells and len(usable) > 1):
        return dict(islice(usable.items(), int(len(usable) > 1))), {}
    kept = start_of_end(longest.text)
    end = Document(longest.text[kept:])
    return {text_hash(end.text): end}, {key: kept}


def start_of_end(text: str) -> int:
    """Return where the end of `text` that is held out begins: 2.5% to 5% of it.

    After a blank line, or else a line end or a space.
    """
    first, last = math.ceil((1 - CUT_SHARE) * len(text)), math.ceil((1 - CUT_SHARE / 2) * len(text))
    for mark in ("\n\n", "\n", " "):
        if (found := text.find(mark, first, last)) >= 0:
            return found + len(mark)
    return first


@dataclass(frozen=True)
class SourceRows:
    """The held-out text of one source (shapes: see the module)."""

    label: str
    rows: np.ndarray
    valid: np.ndarray
    answer: np.ndarray
    starts: np.ndarray

    @property
    def num_tokens(self) -> int:
        return int(self.valid.sum())

    def select(self, kept: np.ndarray) -> "SourceRows":
        """Return the rows `kept` (ascending numbers) and the documents that begin in them."""
        begins = np.isin(self.starts[:, 0], kept)
        starts = self.starts[begins].copy()
        starts[:, 0] = np.searchsorted(kept, starts[:, 0])
        return SourceRows(self.label, self.rows[kept], self.valid[kept], self.answer[kept], starts)

    def overlapping(self, kept: np.ndarray) -> "SourceRows":
        """Return windows of T tokens that score the targets of the rows `kept`, each target once.

        They are a quarter of T apart, and each scores its last quarter, so that at least three
        quarters of T come before each target; fewer only in the source's first row, which is as it
        was. No documents begin in them.
        """
        length = self.valid.shape[1]
        quarter = length // 4
        ends = np.append(np.arange(quarter, length, quarter), length)  # of the quarters of a row
        later = kept[kept > 0]
        first_tokens = ((later[:, None] - 1) * length + ends).ravel()
        scored = np.tile(np.arange(length) >= (length - np.diff(ends, prepend=0))[:, None], (len(later), 1))
        if len(kept) > len(later):
            first_tokens, scored = np.append(0, first_tokens), np.vstack((np.ones(length, dtype=bool), scored))
        places = first_tokens[:, None] + np.arange(length)
        tokens = np.append(self.rows[:, :-1].ravel(), self.rows[-1:, -1])
        return SourceRows(
            self.label,
            tokens[first_tokens[:, None] + np.arange(length + 1)],
            self.valid.ravel()[places] & scored,
            self.answer.ravel()[places] & scored,
            np.empty((0, 2), dtype=np.int64),
        )

    def document(self, number: int) -> tuple[list[int], int]:
        """Return a document's tokens and how many of them precede its answer.

        The tokens fill at least a row if the document is that long. The count is 0 if there is no
        answer or the document begins with it.
        """
        row, column = self.starts[number]
        tokens = self.rows[row : row + 2, :-1].ravel()[column:]
        ends = np.flatnonzero(tokens[1:] == tokens[0])
        tokens = tokens[: ends[0] + 1] if len(ends) else tokens
        answer = np.flatnonzero(self.answer[row : row + 2].ravel()[column:][: len(tokens) - 1])
        return tokens.tolist(), int(answer[0]) + 1 if len(answer) and answer[0] else 0


class HeldOut:
    """The held-out rows of every source, in the preset's order, and the hashes of their texts.

    `cuts`: of documents whose end is held out, by their hashes, how many characters are trained on.
    """

    def __init__(self, sources: Sequence[SourceRows], hashes: frozenset[bytes], cuts: Mapping[bytes, int] = EMPTY):
        self.sources = list(sources)
        self.hashes = hashes
        self.cuts = cuts

    @property
    def num_tokens(self) -> int:
        return sum(source.num_tokens for source in self.sources)

    def documents(self, count: int) -> list[tuple[str, list[int], int]]:
        """Return (label, tokens, tokens before the answer) of up to `count` documents.

        They come from the sources round-robin, spread over each; see `SourceRows.document`.
        """
        sources = [source for source in self.sources if len(source.starts)]
        count = min(count, sum(len(source.starts) for source in sources))
        found = []
        for number in range(count):
            source = sources[number % len(sources)]
            found.append((source.label, *source.document((2 * number + 1) * len(source.starts) // (2 * count))))
        return found

    def beginnings(self, count: int, length: int) -> list[tuple[str, list[int]]]:
        """Return (label, first tokens) of `count` documents, to be continued.

        All tokens before the answer, or half of the document, but at most `length`.
        """
        return [
            (label, tokens[: min(length, before_answer or (len(tokens) + 1) // 2)])
            for label, tokens, before_answer in self.documents(count)
        ]

    def subset(self, num_tokens: int) -> "HeldOut":
        """Return about `num_tokens` of it: always the same rows, evenly spread over each source.

        Sources keep their proportions; every source that has rows keeps at least one.
        """
        return self._with_rows(num_tokens, SourceRows.select)

    def overlapping(self, num_tokens: int) -> "HeldOut":
        """Return windows that score the same targets as `subset`; see `SourceRows.overlapping`."""
        return self._with_rows(num_tokens, SourceRows.overlapping)

    def _with_rows(self, num_tokens: int, take: Callable[[SourceRows, np.ndarray], SourceRows]) -> "HeldOut":
        share = min(1.0, num_tokens / max(1, self.num_tokens))
        chosen = []
        for source in self.sources:
            count = len(source.rows)
            keep = min(count, max(1, round(share * count)))
            chosen.append(take(source, (np.arange(keep) * count) // max(1, keep)))
        return HeldOut(chosen, self.hashes, self.cuts)

    def _arrays(self) -> dict[str, np.ndarray]:
        arrays = {
            "labels": np.array([source.label for source in self.sources]),
            "hashes": _hash_array(sorted(self.hashes)),
            "cut_hashes": _hash_array(self.cuts),
            "cut_lengths": np.array(list(self.cuts.values()), dtype=np.int64),
        }
        for i, source in enumerate(self.sources):
            for name in ("rows", "valid", "answer", "starts"):
                arrays[f"{name}_{i}"] = getattr(source, name)
        return arrays

    def digest(self) -> str:
        """Return a digest of the content, whatever version of NumPy wrote the file."""
        digest = hashlib.blake2b(digest_size=16)
        for name, array in self._arrays().items():
            digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def save(self, path: Path) -> None:
        buffer = io.BytesIO()
        np.savez(buffer, **self._arrays())  # type: ignore[arg-type]  # no array is named allow_pickle
        write_atomically(path, buffer.getvalue())

    @classmethod
    def load(cls, path: Path) -> "HeldOut":
        with np.load(path, allow_pickle=False) as arrays:
            sources = [
                SourceRows(str(label), *(arrays[f"{name}_{i}"] for name in ("rows", "valid", "answer", "starts")))
                for i, label in enumerate(arrays["labels"])
            ]
            cuts = zip(map(bytes, arrays["cut_hashes"]), arrays["cut_lengths"].tolist(), strict=True)
            return cls(sources, frozenset(map(bytes, arrays["hashes"])), dict(cuts))


def _hash_array(hashes: Iterable[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(hashes), dtype=np.uint8).reshape(-1, HASH_BYTES)


def pack(label: str, documents: Sequence[Document], tokenizer: Tokenizer, seq_length: int) -> SourceRows:
    """Tokenize and pack the held-out documents of one source."""
    end = end_of_text(tokenizer)
    tokens: list[int] = []
    answer: list[bool] = []
    starts: list[int] = []
    for document, encoding in zip(
        documents,
        tokenizer.encode_batch([document.text for document in documents], add_special_tokens=False),
        strict=True,
    ):
        starts.append(len(tokens))
        tokens += [end, *encoding.ids]
        first = document.answer_start
        answer += [False, *(first is not None and stop > first for _, stop in encoding.offsets)]
    if tokens:
        tokens.append(end)
        answer.append(False)
    num_targets = max(0, len(tokens) - 1)
    num_rows = -(-num_targets // seq_length)
    flat = np.full(num_rows * seq_length + 1, end, dtype=row_dtype(seq_length, vocab_size(tokenizer))["tokens"].base)
    flat[: len(tokens)] = tokens
    is_answer = np.zeros(len(flat), dtype=bool)
    is_answer[: len(answer)] = answer
    positions = np.arange(num_rows)[:, None] * seq_length + np.arange(seq_length + 1)
    return SourceRows(
        label,
        flat[positions],
        (np.arange(num_rows * seq_length) < num_targets).reshape(num_rows, seq_length),
        is_answer[1:].reshape(num_rows, seq_length),
        np.array([divmod(start, seq_length) for start in starts], dtype=np.int64).reshape(-1, 2),
    )
