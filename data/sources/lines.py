"""Documents whose lines are the rows of a dataset."""

import re
from collections.abc import Iterable, Iterator
from itertools import groupby

MOST_LINES = 10_000  # of a document that ends at an empty row or a heading; after them another one begins
HEADING = re.compile(r"\s*(= [^=\n]+ =|# [^\n]+)\s*")  # of a whole text, in WikiText and in Markdown

Lines = Iterable[tuple[int, str | None]]  # the number of each row of a group, and its text
Documents = Iterator[tuple[int, str]]  # the number of each document of a group, and its text


def by_number(lines: Lines, size: int) -> Documents:
    """Join `size` rows at a time, counted from row 0."""
    for number, part in groupby(lines, lambda line: line[0] // size):
        yield number, _joined([text for _, text in part if text is not None])


def until(lines: Lines, end: str) -> Documents:
    """Join the rows before each "empty" row, or from each "heading" to the next; all lines of the group are needed."""
    number, document = 0, list[str]()
    for _, text in lines:
        empty = text is None or not text.strip()
        ended = empty if end == "empty" else bool(text and HEADING.fullmatch(text))
        if ended or len(document) == MOST_LINES:
            if any(line.strip() for line in document):
                yield number, _joined(document)
                number += 1
            document = []
        if not (ended and empty):
            document.append(text or "")
    if any(line.strip() for line in document):
        yield number, _joined(document)


def _joined(lines: list[str]) -> str:
    return "\n".join(line.removesuffix("\n") for line in lines)
