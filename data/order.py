"""The order in which training reads the journal: shuffled within windows that follow one another.

Neighbours in the journal are pieces of the same few documents: read as they lie, a step is of one subject, and the same
rows teach less (benchmarks/order.py). Training's row i is therefore the journal's row p(i), where p permutes each window
and is a function of the seed and the window alone. Resuming stays a seek: nothing but i is remembered.

The first windows are small, so that training begins before much is written. Two of the largest fit into the run-ahead:
while one is trained on, the next is made, and weights that change hold behind both.
"""

from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

FIRST_PART = 8  # the first window is one eighth of the largest; each is at most twice the one before


def window_edges(num_rows: int, run_ahead_rows: int, begun: Sequence[int] = (0,)) -> list[int]:
    """Where windows begin, and `num_rows`, where the last one ends. `begun`: the edges of those already read from, with
    the end of the last, which stay as they are if the run is given another number of rows."""
    edges = list(begun)
    largest = max(1, run_ahead_rows // 2)
    first = max(1, largest // FIRST_PART)
    while edges[-1] < num_rows:
        before = edges[-1] - edges[-2] if len(edges) > 1 else 0
        edges.append(min(num_rows, edges[-1] + min(max(first, 2 * before), largest)))
    return edges


class RowOrder:
    """Training's rows as rows of the journal."""

    def __init__(self, edges: Sequence[int], seed: int):
        self.edges, self.seed = edges, seed

    def window(self, row: int) -> tuple[int, int]:
        """The first row of the window that holds training's row `row`, and the first row after it."""
        i = bisect_right(self.edges, row, hi=len(self.edges) - 1)
        return self.edges[i - 1], self.edges[i]

    def edges_begun(self, row: int) -> list[int]:
        """The edges of the windows that training's rows before `row` are from."""
        return [edge for edge in self.edges if edge < row] + [self.window(row - 1)[1] if row else 0]

    def journal_rows(self, first: int, count: int, num_rows: int) -> np.ndarray:
        """(count,) the journal's rows for training's rows first .. first + count - 1, which are below `num_rows`: where
        the journal ends, and its last window with it, if the sources were used up early."""
        parts, row = [], first
        while row < first + count:
            start, end = self.window(row)
            last = min(end, first + count)
            order = permutation(self.seed, start, min(end, num_rows) - start)
            parts.append(start + order[row - start : last - start])
            row = last
        return np.concatenate(parts)


@lru_cache(maxsize=2)  # a step may lie in two windows
def permutation(seed: int, start: int, length: int) -> np.ndarray:
    """(length,) a permutation of 0 .. length - 1. Sorted random bits rather than Generator.permutation, whose results may
    change with the version of NumPy: those of a bit generator may not (NEP 19)."""
    bits = np.random.PCG64(np.random.SeedSequence((seed, start))).random_raw(length)
    return np.argsort(bits, kind="stable")
