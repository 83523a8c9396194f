"""The order of lines on a page where they are drawn from the bottom up, at random, or across columns.

PDFium and pypdf give the lines of a page as they are drawn. That is how they are read, but for files
of some programs. A page is sorted only if line after line goes up within a column, and read by columns
only if what is side by side is prose: a table is read row by row.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

LONG = 20  # characters of a line that tells the order: labels of figures and parts of formulas are shorter
MOST_UPWARD = 3  # lines that go up in a column of a page that is in order, such as a footnote drawn first
NEAR = 8  # lines before one, among which is that before it in its column
MIN_ROWS = 8  # of columns that are drawn row by row


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
    upward = sum(goes_up(line, long[max(0, number - NEAR) : number]) for number, line in enumerate(long))
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


def goes_up(line: Line, before: Sequence[Line]) -> bool:
    """Return whether a line is above the last one of its column."""
    last = next((other for other in reversed(before) if share(line, other) > 1 / 2), line)
    return line.bottom > last.top


def share(line: Line, other: Line) -> float:
    """Return how much of the narrower line's width is above or below the other."""
    narrower = min(line.right - line.left, other.right - other.left)
    return (min(line.right, other.right) - max(line.left, other.left)) / narrower if narrower > 0 else 0


def beside(line: Line, other: Line) -> bool:
    return share(line, other) <= 0 and line.bottom < other.top and other.bottom < line.top


def by_column(rows: Sequence[Sequence[Line]], text: str) -> list[Line]:
    """Return the lines of a page, with columns of prose that are drawn row by row one after the other.

    `rows`: the lines of `text`, each cut where it has a wide gap.
    """
    ordered: list[Line] = []
    first = 0
    while first < len(rows):
        last, gutters = first + 1, gaps(rows[first])
        while last < len(rows) and (common := shared(gutters, gaps(rows[last]))):
            last, gutters = last + 1, common
        columns = list(zip(*rows[first:last], strict=True))
        if last - first >= MIN_ROWS and all(flows(column, text) for column in columns):
            ordered += [line for column in columns for line in column]
        else:
            ordered += [row[0]._replace(end=row[-1].end, right=row[-1].right) for row in rows[first:last]]
        first = last
    return ordered


def gaps(row: Sequence[Line]) -> list[tuple[float, float]]:
    return [(before.right, after.left) for before, after in pairwise(row)]


def shared(gutters: list[tuple[float, float]], others: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return what rows have in common of the gaps between columns, or nothing if their columns are not the same."""
    if len(gutters) != len(others):
        return []
    common = [
        (max(left, other_left), min(right, other_right))
        for (left, right), (other_left, other_right) in zip(gutters, others, strict=True)
    ]
    return common if all(left < right for left, right in common) else []


def flows(column: Sequence[Line], text: str) -> bool:
    """Return whether the lines of a column are those of prose: most are full, and begin with a small letter."""
    width = max(line.right for line in column) - min(line.left for line in column)
    num_full = sum(line.right - line.left > 0.8 * width and line.end - line.start >= LONG for line in column)
    num_going_on = sum(text[line.start].islower() for line in column)
    return 3 * num_full > 2 * len(column) and 2 * num_going_on > len(column)
