"""Text for people: times, counts, sizes, lines of known width, foreign text made safe to show."""

import itertools
import math
import re
import textwrap
import unicodedata

BIDI_CONTROLS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # they reorder text


def cells(character: str) -> int:
    """Return the width of a character in a terminal: 2 cells if it is wide, else 1."""
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def clip(text: str, width: int) -> str:
    """Cut text to one printable line of at most `width` terminal cells."""
    text = "".join(character if character.isprintable() else " " for character in text)
    ends = list(itertools.accumulate(map(cells, text)))
    if not ends or ends[-1] <= width:
        return text
    fitting = itertools.takewhile(lambda end: end < width, ends)  # "<" leaves one cell for the "…"
    return text[: len(list(fitting))] + "…"


def wrapped(text: str, width: int) -> str:
    """Wrap text between words at `width` terminal cells, and keep the indentation of lines.

    A longer word stays whole.
    """
    two_cells = "\0"  # follows each wide character, so that textwrap counts cells
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
    """Format a number with its noun: 1 layer, 2 layers, 6,104 layers."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def human_time(seconds: float) -> str:
    """Format a duration: 45 s, 12 min, 3 h 20 min, 4.2 days."""
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
    """Format a count: 950, 17.5k, 15.1M, 2.0B."""
    return _scaled(number, ["", "k", "M", "B", "T"])


def human_bytes(number: float) -> str:
    """Format a size in decimal units, as on a disk's label: 512 B, 1.2 GB."""
    return _scaled(number, [" B", " kB", " MB", " GB", " TB"])


def _scaled(number: float, units: list[str]) -> str:
    power = 0
    while abs(number) >= 999.5 and power < len(units) - 1:
        number, power = number / 1000, power + 1
    return f"{number:.0f}{units[power]}" if power == 0 or number >= 99.95 else f"{number:.1f}{units[power]}"


def printable(text: str) -> str:
    """Remove control characters except line breaks and tabs: text must not drive the terminal. Lone surrogates, which
    names of files may hold and no output takes, become U+FFFD."""
    text = re.sub("[\ud800-\udfff]", "\ufffd", text)
    return "".join(c for c in text if c in "\n\t" or (unicodedata.category(c) != "Cc" and c not in BIDI_CONTROLS))


def fenced(text: str) -> str:
    """Return a Markdown code block; its fence is longer than any run of backticks in `text`."""
    text = printable(text)
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}\n"


def table_cell(text: str) -> str:
    """Return text for one cell of a Markdown table: one line, without cell borders."""
    return " ".join(printable(text).split()).replace("|", "\\|")
