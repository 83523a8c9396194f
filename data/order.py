"""The order in which training reads the journal: shuffled within consecutive windows.

Neighbouring rows of the journal are pieces of the same few documents: read in sequence, the rows
of a step share one subject and teach less (benchmarks/order.py). Training's row i is therefore the
journal's row p(i), where p permutes each window and depends only on the seed and the window.
Resuming stays a seek: only i is stored.

The first windows are small, so that training begins before much is written. Two of the largest fit
into the run-ahead: while training reads one, the next is produced, and new weights apply after
both.

A window never crosses the row at which the finish of a run begins (data.finish), so that no row
of its text is read before it, and none of the other text after it.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np

FIRST_PART = 25  # the first window is this part of the largest; each is at most twice the one before


def finish_row(share: float | None, seq_length: int, token_budget: int) -> int | None:
    """Return the row with which the finish of a run begins; None: it has none.

    The finish has `share` of the tokens, and those by which the budget before it is not whole rows.
    """
    return None if share is None else max(1, int((1 - share) * token_budget) // seq_length)


def window_edges(
    num_rows: int, run_ahead_rows: int, begun: Sequence[int] = (0,), finish: int | None = None
) -> list[int]:
    """Return where each window begins, and `num_rows`, where the last one ends.

    `begun`: edges of the windows already read from, with the end of the last; these stay as they
    are if the run gets another number of rows. `finish`: a row that must be an edge as well.
    """
    edges = list(begun)
    largest = max(1, run_ahead_rows // 2)
    first = max(1, largest // FIRST_PART)
    while edges[-1] < num_rows:
        before = edges[-1] - edges[-2] if len(edges) > 1 else 0
        end = finish if finish is not None and edges[-1] < finish else num_rows
        edges.append(min(end, edges[-1] + min(max(first, 2 * before), largest)))
    return edges


class RowOrder:
    """The mapping from training's rows to rows of the journal."""

    def __init__(self, edges: Sequence[int], seed: int):
        self.edges, self.seed = edges, seed

    def window(self, row: int) -> tuple[int, int]:
        """Return (first row, end) of the window that holds training's row `row`."""
        i = bisect_right(self.edges, row, hi=len(self.edges) - 1)
        return self.edges[i - 1], self.edges[i]

    def edges_begun(self, row: int) -> list[int]:
        """Return the edges of the windows that hold training's rows before `row`."""
        return [edge for edge in self.edges if edge < row] + [self.window(row - 1)[1] if row else 0]

    def places(self, first: int, count: int, num_rows: int) -> Iterator[tuple[int, int, np.ndarray]]:
        """Yield where training's rows first .. first + count - 1 are: for each of their windows its
        first row and end in the journal, and the (n,) places of n rows within it.

        All are below `num_rows`, where the journal ends, and its last window with it, if the
        sources are used up early.
        """
        row = first
        while row < first + count:
            start, end = self.window(row)
            last, written = min(end, first + count), min(end, num_rows)
            yield start, written, permutation(self.seed, start, written - start)[row - start : last - start]
            row = last

    def journal_rows(self, first: int, count: int, num_rows: int) -> np.ndarray:
        """Return (count,) the journal's rows for training's rows first .. first + count - 1."""
        return np.concatenate([start + places for start, _, places in self.places(first, count, num_rows)])


@lru_cache(maxsize=2)  # a step may lie in two windows
def permutation(seed: int, start: int, length: int) -> np.ndarray:
    """Return (length,) a permutation of 0 .. length - 1.

    It sorts random bits, since the results of Generator.permutation, unlike those of a bit
    generator, may change with the version of NumPy (NEP 19).
    """
    bits = np.random.PCG64(np.random.SeedSequence((seed, start))).random_raw(length)
    return np.argsort(bits, kind="stable")
