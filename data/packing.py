"""Packs documents into rows of T + 1 token ids, without gaps or padding.

The stream is EOT document EOT document ...: every document begins with the end-of-text token. Row
i holds the stream's tokens i*T .. i*T + T: it starts with the last token of row i - 1, and every
token of the stream is predicted once.

Shapes: a record is {"tokens": (T+1) uint16 or uint32, "source": (T+1) uint8}; `source` is the
index of each token's source (the end-of-text token belongs to the document that it opens). A stream
with conversations has {"loss_mask": (T+1) bool} as well: whether the loss counts each token.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np


def row_dtype(seq_length: int, vocab_size: int, *, loss_mask: bool = False) -> np.dtype:
    """Return the dtype of one row in the journal; `loss_mask`: of a stream with conversations."""
    token = np.uint16 if vocab_size <= 2**16 else np.uint32
    fields = [("tokens", token), ("source", np.uint8), *([("loss_mask", np.bool_)] if loss_mask else [])]
    return np.dtype([(name, kind, (seq_length + 1,)) for name, kind in fields])


class Packer:
    """A buffer of documents; `take()` returns the whole rows so far and keeps the remainder.

    `num_rows`: rows produced since the beginning of the stream, taken or not.
    """

    def __init__(self, dtype: np.dtype, end_of_text: int):
        self.dtype = dtype
        self.seq_length = dtype["tokens"].shape[0] - 1
        self.end_of_text = end_of_text
        self._parts: dict[str, list[np.ndarray]] = {name: [] for name in dtype.names or ()}  # not taken yet
        self._length = 0  # tokens held
        self._taken = 0  # rows handed out

    @property
    def waiting(self) -> int:
        """Whole rows that `take()` would return."""
        return max(0, self._length - 1) // self.seq_length

    @property
    def num_rows(self) -> int:
        return self._taken + self.waiting

    def add(self, tokens: np.ndarray, source: int, loss_mask: np.ndarray | None = None) -> None:
        """Append one document (without its end-of-text token) from source number `source`.

        `loss_mask` (n,): whether the loss counts each token; default: all. It always counts the end-of-text token.
        """
        length = len(tokens) + 1
        fields = {"tokens": np.append(self.end_of_text, tokens), "source": np.full(length, source, dtype=np.uint8)}
        if "loss_mask" in self._parts:
            fields["loss_mask"] = np.ones(length, dtype=bool) if loss_mask is None else np.append(True, loss_mask)
        self._append(fields)

    def _append(self, fields: Mapping[str, Any]) -> None:
        for name, parts in self._parts.items():
            parts.append(np.asarray(fields[name]).astype(self.dtype[name].base))
        self._length += len(fields["tokens"])

    def _held(self, name: str) -> np.ndarray:
        parts = self._parts[name]
        return np.concatenate(parts) if parts else np.empty(0, dtype=self.dtype[name].base)

    def take(self) -> np.ndarray:
        """Return (waiting,) records: every whole row not taken before."""
        rows = np.empty(self.waiting, dtype=self.dtype)
        self._taken += len(rows)
        for field, parts in self._parts.items():
            flat = self._held(field)
            if len(rows):
                windows = np.lib.stride_tricks.sliding_window_view(flat, self.seq_length + 1)
                rows[field] = windows[:: self.seq_length][: len(rows)]
            parts[:] = [flat[len(rows) * self.seq_length :]]
        self._length = len(self._held("tokens"))
        return rows

    def cut(self, num_rows: int) -> np.ndarray:
        """Drop the tokens after the first `num_rows` rows, or after those taken if these are more.

        Return the source (n,) of each token dropped.
        """
        kept = max(0, num_rows - self._taken) * self.seq_length + 1
        dropped = self._held("source")[kept:]
        for field, parts in self._parts.items():
            parts[:] = [self._held(field)[:kept]]
        self._length = len(self._held("tokens"))
        return dropped

    def state(self) -> dict:
        """Return the remainder after `take()`, at most T tokens, as JSON."""
        assert not self.waiting, "take() the rows before asking for the state"
        return {"rows": self._taken} | {name: self._held(name).astype(int).tolist() for name in self._parts}

    def load_state(self, state: dict) -> None:
        self._taken, self._length = state["rows"], 0
        for parts in self._parts.values():
            parts.clear()
        self._append(state)


def chain_digest(before: str, tokens: np.ndarray, num_tokens: int, loss_mask: np.ndarray | None = None) -> str:
    """Return the digest `before` chained with rows (B, T+1) of which `num_tokens` are predicted.

    It is SHA-256 over all text trained on in its order, however that was cut into steps, and over what
    of it the loss counts, `loss_mask` (B, T+1), if that is not everything.
    """
    seq_length = tokens.shape[1] - 1
    for number, row in enumerate(tokens):
        length = min(seq_length, num_tokens - number * seq_length) + 1
        seen = row[:length].astype("<u4").tobytes()
        if loss_mask is not None:
            seen += loss_mask[number, :length].tobytes()
        before = hashlib.sha256(before.encode() + seen).hexdigest()
    return before
