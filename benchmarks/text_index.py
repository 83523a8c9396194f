"""All positions of a text sorted by the tokens before them, last token first: the exact longest match of a context.

One binary search finds the positions whose preceding tokens have most in common with the context's end. The index is one
file, mapped into memory: the text backwards, two bytes a token, and the sorted positions, four bytes a token. Not part of
the program: benchmarks/memory.py measures what it is worth.
"""

import mmap
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from lm.inference.memory import DEPTH, NOTHING, Match

MOST_COUNTED = 64  # positions of a match whose next tokens are counted, evenly spread
PARTS = 64  # into which the sort is divided, to bound its memory
WIDTH = 2  # bytes of a token


def build_index(tokens: np.ndarray, path: Path) -> None:
    """Write the index of `tokens` (n,), all below 2**16 - 1, to `path`."""
    backwards = np.full(len(tokens) + DEPTH, 2**16 - 1, dtype=">u2")  # before the first token is no token
    backwards[: len(tokens)] = tokens[::-1]
    edges = np.unique(np.quantile(tokens, np.linspace(0, 1, PARTS + 1), method="lower").astype(np.int64))
    edges[-1] += 1
    with path.open("wb") as file:
        file.write(backwards.tobytes())
        for low, high in pairwise(edges):
            inside = (backwards[1 : len(tokens)] >= low) & (backwards[1 : len(tokens)] < high)
            places = np.flatnonzero(inside) + 1  # nothing follows the newest token, at place 0
            keys = [_keys(backwards, places + start) for start in range(DEPTH - 4, -1, -4)]
            file.write(places[np.lexsort(keys)].astype(np.uint32).tobytes())


def _keys(backwards: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return four tokens in a row as one number, for each place."""
    first, second, third, fourth = (backwards[places + i].astype(np.uint64) for i in range(4))
    return first << 48 | second << 32 | third << 16 | fourth


class TextIndex:
    """What `build_index` has written."""

    def __init__(self, path: Path):
        with path.open("rb") as file:
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        num_tokens = (len(self._bytes) - WIDTH * DEPTH + 4) // (WIDTH + 4)
        self._places = memoryview(self._bytes)[WIDTH * (num_tokens + DEPTH) :].cast("I")

    def longest(self, context: Sequence[int]) -> Match:
        """Return the longest match of the end of `context`, of its last DEPTH tokens at most."""
        text, places = self._bytes, self._places
        query = np.array(context[: -DEPTH - 1 : -1], dtype=">u2").tobytes()

        def key(place: int) -> bytes:
            return text[WIDTH * place : WIDTH * place + size]

        size = len(query)
        found = bisect_left(places, query, key=key)
        size = max((_common(key(place), query) for place in places[max(0, found - 1) : found + 1]), default=0)
        if not size:
            return NOTHING
        first = bisect_left(places, query[:size], hi=found, key=key)
        end = bisect_right(places, query[:size], lo=found, key=key)
        step = -(-(end - first) // MOST_COUNTED)
        after = (text[WIDTH * place - WIDTH : WIDTH * place] for place in places[first:end:step])
        return Match(size // WIDTH, end - first, Counter(int.from_bytes(token) for token in after))


def _common(one: bytes, other: bytes) -> int:
    """Return how many bytes of whole tokens two texts have in common at the beginning."""
    return next((i for i in range(0, len(other), WIDTH) if one[i : i + WIDTH] != other[i : i + WIDTH]), len(other))
