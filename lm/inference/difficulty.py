"""How hard a model expects its text to get, made visible: as colours in a terminal, as marks
under each line in a file.

A piece is text with the nats per token predicted for what follows it (by the value head), or None.
Never here: the prediction.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from configs.text import printable
from lm.inference.detokenize import text_pieces

MARKS = "▁▂▃▄▅▆▇█"
# Of xterm's 256 colours, from blue over grey to orange: distinct to the colour-blind.
COLOURS = (33, 74, 109, 145, 180, 215, 208, 202)
# The last mark is all above 5.25, which a model of a few million tokens predicts for hard text.
NATS_A_MARK = 0.75
LINE = 96  # characters per line with marks

Piece = tuple[str, float | None]
LEGEND = f"{MARKS[0]} below {NATS_A_MARK} nats a token to {MARKS[-1]} above {NATS_A_MARK * (len(MARKS) - 1)}"


def level(nats: float) -> int:
    """Return the index of a mark, 0 .. 7."""
    return min(int(nats / NATS_A_MARK), len(MARKS) - 1)


def pieces_of(tokens: Sequence[int], nats: Sequence[float | None], decode: Callable[[list[int]], str]) -> list[Piece]:
    """Return the text of each token with the prediction for what follows; a token that ends
    within a character adds no text yet."""
    pieces = text_pieces(tokens[: len(nats)], decode)
    return [(printable(text), nats[number - 1]) for number, text in pieces]


def coloured(pieces: Sequence[Piece]) -> str:
    return "".join(
        text if nats is None else f"\x1b[38;5;{COLOURS[level(nats)]}m{text}\x1b[39m" for text, nats in pieces
    )


def marked_lines(pieces: Sequence[Piece]) -> str:
    """Return lines of text, cut at LINE characters, each with a line of marks below it. Tabs
    become spaces, so that both align."""
    lines: list[str] = []
    text = marks = ""

    def flush() -> None:
        nonlocal text, marks
        lines.extend((text, marks) if text.strip() else (text,))
        text = marks = ""

    for piece, nats in pieces:
        for character in piece.replace("\t", "    "):
            if character == "\n" or len(text) == LINE:
                flush()
            if character != "\n":
                text += character
                marks += " " if nats is None else MARKS[level(nats)]
    flush()
    return "\n".join(line.rstrip() for line in lines)


def shows_colours() -> bool:
    """Return whether stdout is a colour terminal and the user allows colours (no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
