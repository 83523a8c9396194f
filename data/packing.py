"""Packs documents into rows of T + 1 token ids, without gaps or padding.

The stream is EOT document EOT document ...: every document begins with the end-of-text token. Row
i holds the stream's tokens i*T .. i*T + T: it starts with the last token of row i - 1, and every
token of the stream is predicted once.

Shapes: a record is {"tokens": (T+1) uint16 or uint32, "source": (T+1) uint8}; `source` is the
index of each token's source (the end-of-text token belongs to the document that it opens).
"""

import hashlib

import numpy as np


def row_dtype(seq_length: int, vocab_size: int) -> np.dtype:
    """Return the dtype of one row in the journal."""
    token = np.uint16 if vocab_size <= 2**16 else np.uint32
    return np.dtype([("tokens", token, (seq_length + 1,)), ("source", np.uint8, (seq_length + 1,))])


class Packer:
    """A buffer of documents; `take()` returns the whole rows so far and keeps the remainder.

    `num_rows`: rows produced since the beginning of the stream, taken or not.
    """

    def __init__(self, dtype: np.dtype, end_of_text: int):
        self.dtype = dtype
        self.seq_length = dtype["tokens"].shape[0] - 1
        self.end_of_text = end_of_text
        self._tokens: list[np.ndarray] = []
        self._source: list[np.ndarray] = []
        self._length = 0  # tokens held
        self._taken = 0  # rows handed out

    @property
    def waiting(self) -> int:
        """Whole rows that `take()` would return."""
        return max(0, self._length - 1) // self.seq_length

    @property
    def num_rows(self) -> int:
        return self._taken + self.waiting

    def add(self, tokens: np.ndarray, source: int) -> None:
        """Append one document (without its end-of-text token) from source number `source`."""
        document = np.empty(len(tokens) + 1, dtype=self.dtype["tokens"].base)
        document[0] = self.end_of_text
        document[1:] = tokens
        self._append(document, np.full(len(document), source, dtype=np.uint8))

    def _append(self, tokens: np.ndarray, source: np.ndarray) -> None:
        self._tokens.append(tokens)
        self._source.append(source)
        self._length += len(tokens)

    def take(self) -> np.ndarray:
        """Return (waiting,) records: every whole row not taken before."""
        rows = np.empty(self.waiting, dtype=self.dtype)
        self._taken += len(rows)
        for field, parts in (("tokens", self._tokens), ("source", self._source)):
            flat = np.concatenate(parts) if parts else np.empty(0, dtype=self.dtype[field].base)
            if len(rows):
                windows = np.lib.stride_tricks.sliding_window_view(flat, self.seq_length + 1)
                rows[field] = windows[:: self.seq_length][: len(rows)]
            parts[:] = [flat[len(rows) * self.seq_length :]]
        self._length = len(self._tokens[0])
        return rows

    def cut(self, num_rows: int) -> np.ndarray:
        """Drop the tokens after the first `num_rows` rows, or after those taken if these are more.

        Return the source (n,) of each token dropped.
        """
        kept = max(0, num_rows - self._taken) * self.seq_length + 1
        tokens, source = np.concatenate(self._tokens)[:kept], np.concatenate(self._source)
        self._tokens, self._source, self._length = [tokens], [source[:kept]], len(tokens)
        return source[kept:]

    def state(self) -> dict:
        """Return the remainder after `take()`, at most T tokens, as JSON."""
        assert not self.waiting, "take() the rows before asking for the state"
        tokens = np.concatenate(self._tokens) if self._tokens else np.empty(0)
        source = np.concatenate(self._source) if self._source else np.empty(0)
        return {"rows": self._taken, "tokens": tokens.astype(int).tolist(), "source": source.astype(int).tolist()}

    def load_state(self, state: dict) -> None:
        self._taken = state["rows"]
        self._tokens, self._source, self._length = [], [], 0
        self._append(
            np.array(state["tokens"], dtype=self.dtype["tokens"].base), np.array(state["source"], dtype=np.uint8)
        )


def chain_digest(before: str, tokens: np.ndarray, num_tokens: int) -> str:
    """Return the digest `before` chained with rows (B, T+1) of which `num_tokens` are predicted.

    It is SHA-256 over all text trained on in its order, however that was cut into steps.
    """
    seq_length = tokens.shape[1] - 1
    for number, row in enumerate(tokens):
        seen = row[: min(seq_length, num_tokens - number * seq_length) + 1]
        before = hashlib.sha256(before.encode() + seen.astype("<u4").tobytes()).hexdigest()
    return before
