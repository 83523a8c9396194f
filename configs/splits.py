"""The `split` of a dataset: one or several, each whole or a slice: "train[:10%]+validation"."""

import re
from typing import NamedTuple

PART = re.compile(r"(?P<name>[^\[\]+]+)(\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\])?")
EXAMPLES = '"train", "train[:1000]", "train[1000:2000]", "train[:10%]" or "train+validation"'


class Part(NamedTuple):
    """A split, from row `start` to before row `stop`, or from and to so many percent."""

    name: str
    start: int | None = None
    stop: int | None = None
    in_percent: bool = False

    @property
    def is_slice(self) -> bool:
        return (self.start, self.stop) != (None, None)

    def rows(self, num_rows: int) -> range:
        """Return the numbers of the rows, of `num_rows` in the split, as Python and `datasets` count them."""
        ends = (self.start, self.stop)
        if self.in_percent:
            start, stop = (None if end is None else round(end * num_rows / 100) for end in ends)
        else:
            start, stop = ends
        return range(num_rows)[start:stop]


def parse_split(split: str) -> list[Part]:
    """Return the parts of a split. Raises ValueError for one that cannot be understood."""
    parts = []
    for text in split.split("+"):
        found = PART.fullmatch(text.strip())
        ends = [end for end in (found["start"], found["stop"]) if end] if found else []
        if not found or len({end.endswith("%") for end in ends}) > 1:
            raise ValueError(f"write a split, a slice of one, or several: {EXAMPLES}")
        start, stop = (int(end.rstrip("%")) if end else None for end in (found["start"], found["stop"]))
        if any(abs(end) > 10**12 for end in (start, stop) if end is not None):
            raise ValueError("a slice has at most 1,000,000,000,000 rows")
        parts.append(Part(found["name"].strip(), start, stop, any(end.endswith("%") for end in ends)))
    return parts
