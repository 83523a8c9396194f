"""Text for people: times, counts and sizes, lines of known width, and other people's text made fit to be shown."""

import itertools
import math
import re
import textwrap
import unicodedata

BIDI_CONTROLS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # would reorder the text around them


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


def printable(text: str) -> str:
    """Text without control characters (line breaks and tabs stay): a sample must not drive the reader's terminal."""
    return "".join(c for c in text if c in "\n\t" or (unicodedata.category(c) != "Cc" and c not in BIDI_CONTROLS))


def fenced(text: str) -> str:
    """A Markdown code block that holds `text` whatever it contains: the fence is longer than any run of backticks in
    it."""
    text = printable(text)
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}\n"


def table_cell(text: str) -> str:
    """Text for one cell of a Markdown table: one line, no cell borders."""
    return " ".join(printable(text).split()).replace("|", "\\|")
