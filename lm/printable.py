"""Other people's text, made fit for a terminal and for Markdown."""

import re
import unicodedata

BIDI_CONTROLS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # would reorder the text around them


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
