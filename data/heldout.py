"""Held-out text: chosen before training (heldout_choice.py), spread over each source, never trained on.

Rows are packed per source (no row mixes sources), as in training: EOT document EOT document ...
EOT, so that the end of every document is predicted too. The last row is padded with end-of-text
tokens that no mask contains. Of conversations only what training learns counts.

Shapes, for a source with n rows and m documents: rows (n, T+1) tokens; valid (n, T) targets that
count; answer (n, T) targets that belong to the answer of a question; starts (m, 2) row and column
of each document's opening end-of-text token. The target at [i, t] is rows[i, t + 1].
"""

import hashlib
import io
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from data.chat_template import ChatTemplate
from data.encoder import encode_each
from data.files import write_atomically
from data.heldout_choice import EMPTY, HASH_BYTES
from data.packing import row_dtype
from data.sources.base import Document
from data.tokenizer import encode_with_offsets, end_of_text, vocab_size


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
        # Where the next one begins, or at the last target: templates may put the end-of-text token into a conversation.
        ends = np.append(self.starts[1:] @ (self.valid.shape[1], 1), np.flatnonzero(self.valid)[-1] + 1)
        length = ends[number] - self.starts[number] @ (self.valid.shape[1], 1)
        tokens = self.rows[row : row + 2, :-1].ravel()[column:][:length]
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
        """Return (label, tokens, tokens before the answer) of up to `count` documents, each once.

        They come from the sources round-robin, spread over each, or from the first, the last and those spread
        between them if there are more sources than documents; see `SourceRows.document`.
        """
        sources = [source for source in self.sources if len(source.starts)]
        if len(sources) > count:
            sources = [sources[number * (len(sources) - 1) // max(1, count - 1)] for number in range(count)]
        most = max((len(source.starts) for source in sources), default=0)
        turns = [source for turn in range(most) for source in sources if turn < len(source.starts)][:count]
        in_all, given, found = Counter(source.label for source in turns), Counter[str](), []
        for source in turns:
            place = (2 * given[source.label] + 1) * len(source.starts) // (2 * in_all[source.label])
            given[source.label] += 1
            found.append((source.label, *source.document(place)))
        return found

    def without(self, labels: Collection[str]) -> "HeldOut":
        """Return that of the other sources."""
        return HeldOut([source for source in self.sources if source.label not in labels], self.hashes, self.cuts)

    def beginnings(self, count: int, length: int, longest_question: int = 0) -> list[tuple[str, list[int]]]:
        """Return (label, first tokens) of `count` documents, to be continued.

        All tokens before the answer, or half of the document: at most `length`, or `longest_question` if an
        answer follows, since nobody can answer half of a question.
        """
        found = []
        for label, tokens, before_answer in self.documents(count):
            whole_question = 0 < before_answer <= longest_question
            most = before_answer if whole_question else min(length, before_answer or (len(tokens) + 1) // 2)
            found.append((label, tokens[:most]))
        return found

    def subset(self, num_tokens: int, watched: Collection[str] = ()) -> "HeldOut":
        """Return about `num_tokens` of it: always the same rows, evenly spread over each source.

        Sources keep their proportions; every source that has rows keeps at least one. Those with the labels
        `watched` have as many tokens for themselves, so that no row of the others depends on them.
        """
        return self._with_rows(num_tokens, watched, SourceRows.select)

    def overlapping(self, num_tokens: int, watched: Collection[str] = ()) -> "HeldOut":
        """Return windows that score the same targets as `subset`; see `SourceRows.overlapping`."""
        return self._with_rows(num_tokens, watched, SourceRows.overlapping)

    def _with_rows(
        self, num_tokens: int, watched: Collection[str], take: Callable[[SourceRows, np.ndarray], SourceRows]
    ) -> "HeldOut":
        there = Counter[bool]()  # tokens of the sources that are watched, or not
        for source in self.sources:
            there[source.label in watched] += source.num_tokens
        chosen = []
        for source in self.sources:
            share = min(1.0, num_tokens / max(1, there[source.label in watched]))
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


def pack(
    label: str,
    documents: Sequence[Document],
    tokenizer: Tokenizer,
    seq_length: int,
    template: ChatTemplate | None = None,
) -> SourceRows:
    """Tokenize and pack the held-out documents of one source. Conversations need a template."""
    end = end_of_text(tokenizer)
    tokens: list[int] = []
    answer: list[bool] = []
    counts: list[bool] = []
    starts: list[int] = []
    for ids, of_answer, loss_mask in _encoded(documents, tokenizer, template):
        starts.append(len(tokens))
        tokens += [end, *ids]
        answer += [False, *of_answer]
        counts += [True, *loss_mask]
    if tokens:
        tokens.append(end)
    num_targets = max(0, len(tokens) - 1)
    num_rows = -(-num_targets // seq_length)
    flat = np.full(num_rows * seq_length + 1, end, dtype=row_dtype(seq_length, vocab_size(tokenizer))["tokens"].base)
    flat[: len(tokens)] = tokens
    masks = np.zeros((2, len(flat)), dtype=bool)
    masks[0, : len(tokens)] = [*counts, True] if tokens else []
    masks[1, : len(answer)] = answer
    valid, is_answer = masks[:, 1:].reshape(2, num_rows, seq_length)
    positions = np.arange(num_rows)[:, None] * seq_length + np.arange(seq_length + 1)
    return SourceRows(
        label,
        flat[positions],
        valid,
        is_answer,
        np.array([divmod(start, seq_length) for start in starts], dtype=np.int64).reshape(-1, 2),
    )


def _encoded(
    documents: Sequence[Document], tokenizer: Tokenizer, template: ChatTemplate | None
) -> Iterator[tuple[list[int], list[bool], list[bool]]]:
    """Yield for each document its tokens, which of them are the answer, and which of them count."""
    each = encode_each(partial(encode_with_offsets, tokenizer), template, documents)
    for document, encoded in zip(documents, each, strict=True):
        if document.turns:
            tokens, loss_mask = (array.tolist() for array in encoded)
            yield tokens, loss_mask, loss_mask
        else:
            first = document.answer_start
            answer = [first is not None and stop > first for _, stop in encoded.offsets]
            yield encoded.ids, answer, [True] * len(answer)
