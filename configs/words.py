"""Facts in the words of a terminal: one printable line of known width, times, counts and sizes a person reads at once."""

import itertools
import math
import textwrap
import unicodedata


def cells(character: str) -> int:
    """Its width in a terminal."""
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def clip(text: str, width: int) -> str:
    """One printable line of at most `width` terminal cells: no control characters, a wide character counted as two."""
    text = "".join(character if character.isprintable() else " " for character in text)
    ends = list(itertools.accumulate(map(cells, text)))
    if not ends or ends[-1] <= width:
        return text
    fitting = itertools.takewhile(lambda end: end < width, ends)  # "<": one cell for the "…"
    return text[: len(list(fitting))] + "…"


def wrapped(text: str, width: int) -> str:
    """Lines of at most `width` terminal cells, broken between words and indented as they were; a longer word stays whole."""
    two_cells = "\0"  # stands behind a wide character, so that what counts characters counts cells
    lines = (
        textwrap.fill(
            "".join(character + two_cells * (cells(character) - 1) for character in line),
            width,
            subsequent_indent=line[: len(line) - len(line.lstrip())],
            break_long_words=False,
            break_on_hyphens=False,
        )
        for line in text.splitlines()
    )
    return "\n".join(lines).replace(two_cells, "")


def counted(number: int, noun: str) -> str:
    """1 layer, 2 layers, 6,104 layers."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def human_time(seconds: float) -> str:
    """45 s, 12 min, 3 h 20 min, 4.2 days."""
    if not math.isfinite(seconds):
        return "unknown"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{seconds / 86400:.1f} days"


def human_count(number: float) -> str:
    """950, 17.5k, 15.1M, 2.0B."""
    return _scaled(number, ["", "k", "M", "B", "T"])


def human_bytes(number: float) -> str:
    """512 B, 1.2 GB; decimal units, as on the disk's label."""
    return _scaled(number, [" B", " kB", " MB", " GB", " TB"])


def _scaled(number: float, units: list[str]) -> str:
    power = 0
    while abs(number) >= 999.5 and power < len(units) - 1:
        number, power = number / 1000, power + 1
    return f"{number:.0f}{units[power]}" if power == 0 or number >= 99.95 else f"{number:.1f}{units[power]}"
