"""Packs token sequences into rows as trees, so that the model reads a beginning that several of
them share only once.

A node is a token that the model reads; its context is its ancestors. Nodes are in depth-first
order, so the descendants of node j are the nodes behind it up to `end[j]`. Never here: the model.

Shapes: W nodes in a row, L tokens in a sequence.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Question(NamedTuple):
    """How probable are the last `num_scored` of `tokens` after those before them?"""

    tokens: tuple[int, ...]
    num_scored: int

    @property
    def read(self) -> tuple[int, ...]:
        """The tokens that the model reads: the last is only predicted."""
        return self.tokens[:-1]


class Row(NamedTuple):
    """A row of trees, as long as its `width` allows.

    `answers`: for each question its index, and the nodes (num_scored,) at which its tokens are
    predicted.
    """

    tokens: np.ndarray  # (W,) of the nodes; 0 behind the last
    depths: np.ndarray  # (W,) of each node, from 0: its position in its sequence
    ends: np.ndarray  # (W,) where the descendants of each node end
    num_nodes: int
    answers: list[tuple[int, np.ndarray]]


def pack(questions: Sequence[Question], width: int) -> list[Row]:
    """Pack questions into rows of `width` nodes, which is at least the longest sequence to be read.

    They are sorted, so that neighbours share the longest beginnings.
    """
    rows: list[Row] = []
    building = _Builder(width)
    for number in sorted(range(len(questions)), key=lambda number: questions[number].tokens):
        if not building.add(number, questions[number]):
            rows.append(building.row())
            building = _Builder(width)
            added = building.add(number, questions[number])
            assert added, "no row is wide enough"
    if building.answers:
        rows.append(building.row())
    return rows


class _Builder:
    """A row in the making. `path`: the nodes of the last sequence, from its beginning."""

    def __init__(self, width: int):
        self.width = width
        self.tokens: list[int] = []
        self.depths: list[int] = []
        self.ends: list[int] = []
        self.answers: list[tuple[int, np.ndarray]] = []
        self.path: list[int] = []

    def add(self, number: int, question: Question) -> bool:
        """Add a question; returns False if its new nodes do not fit."""
        read = question.read
        shared = 0
        for node, token in zip(self.path, read, strict=False):
            if self.tokens[node] != token:
                break
            shared += 1
        first = len(self.tokens)
        if first + len(read) - shared > self.width:
            return False
        self._close(shared)
        self.path += range(first, first + len(read) - shared)
        self.tokens += read[shared:]
        self.depths += range(shared, len(read))
        self.ends += [0] * (len(read) - shared)
        self.answers.append((number, np.array(self.path[-question.num_scored :])))
        return True

    def _close(self, length: int) -> None:
        """Note that the nodes of the path after the first `length` have all their descendants."""
        for node in self.path[length:]:
            self.ends[node] = len(self.tokens)
        del self.path[length:]

    def row(self) -> Row:
        self._close(0)
        used, unused = len(self.tokens), range(len(self.tokens), self.width)
        return Row(
            np.array(self.tokens + [0] * len(unused)),
            np.array(self.depths + [0] * len(unused)),
            np.array(self.ends + [node + 1 for node in unused]),  # each sees only itself
            used,
            self.answers,
        )
