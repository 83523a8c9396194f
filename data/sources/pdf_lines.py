"""The order of lines on a page whose lines are drawn from the bottom up, or at random.

PDFium and pypdf give the lines of a page as they are drawn. That is how they are read, but for files
of some programs, where line after line goes up the page within one column. Only such a page is sorted.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

LONG = 20  # characters of a line that tells the order: labels of figures and parts of formulas are shorter
MOST_UPWARD = 3  # lines that go up in a column of a page that is in order, such as a footnote drawn first


class Line(NamedTuple):
    """A line's place in the text of a page and on it, in points."""

    start: int
    end: int
    left: float
    bottom: float
    right: float
    top: float


def in_columns(lines: Sequence[Line]) -> Sequence[Line]:
    """Return the lines of a page from the top of the leftmost column on, or as they are if they are in order."""
    long = [line for line in lines if line.end - line.start >= LONG]
    upward = sum(after.bottom > line.top and share(line, after) > 1 / 2 for line, after in pairwise(long))
    if upward <= MOST_UPWARD or 4 * upward <= len(long):
        return lines
    columns: list[list[float]] = []  # left and right
    for line in sorted(long, key=lambda line: line.left):
        if columns and line.left < columns[-1][1]:
            columns[-1][1] = max(columns[-1][1], line.right)
        else:
            columns.append([line.left, line.right])
    levels = sorted(long, key=lambda line: line.bottom)
    if len(columns) == 1 and any(beside(line, above) for line, above in pairwise(levels)):
        return lines  # a line across two columns hides where they end
    step = sorted(line.top - line.bottom for line in long)[len(long) // 2] / 2

    def place(line: Line) -> tuple[int, int, float]:
        column = max((number for number, (left, _) in enumerate(columns) if left <= line.left + step), default=0)
        return column, -round(line.bottom / step), line.left

    return sorted(lines, key=place)


def share(line: Line, other: Line) -> float:
    """Return how much of the narrower line's width is above or below the other."""
    narrower = min(line.right - line.left, other.right - other.left)
    return (min(line.right, other.right) - max(line.left, other.left)) / narrower if narrower > 0 else 0


def beside(line: Line, other: Line) -> bool:
    return share(line, other) <= 0 and line.bottom < other.top and other.bottom < line.top
