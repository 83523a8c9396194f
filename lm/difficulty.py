"""How hard a model expects its text to get, for the eye: colours in a terminal, marks under each line in a file.

A piece of text goes with the nats a token that are expected of what follows it (the value head predicts them), or None.
Never here: predicting them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from lm.metrics import printable

MARKS = "▁▂▃▄▅▆▇█"
COLOURS = (
    33,
    74,
    109,
    145,
    180,
    215,
    208,
    202,
)  # of xterm's 256, from blue over grey to orange: read by the colour-blind
EASIEST, HARDEST = 1.0, 5.0  # nats a token: the first mark ends half a nat above the one, the last begins as much below
LINE = 96  # characters of a line with marks

Piece = tuple[str, float | None]
LEGEND = f"{MARKS[0]} below {EASIEST + 0.5:g} nats a token to {MARKS[-1]} above {HARDEST - 0.5:g}"


def level(nats: float) -> int:
    """0 .. 7."""
    return min(max(int((nats - EASIEST) / (HARDEST - EASIEST) * len(MARKS)), 0), len(MARKS) - 1)


def pieces_of(tokens: Sequence[int], nats: Sequence[float | None], decode: Callable[[list[int]], str]) -> list[Piece]:
    """The text of each token with what is expected after it; a token that ends within a character adds none yet."""
    pieces, shown = [], 0
    for number, expected in enumerate(nats, start=1):
        text = decode(list(tokens[:number]))
        end = len(text if number == len(nats) else text.rstrip("\ufffd"))
        if end > shown:
            pieces.append((printable(text[shown:end]), expected))
            shown = end
    return pieces


def coloured(pieces: Sequence[Piece]) -> str:
    return "".join(
        text if nats is None else f"\x1b[38;5;{COLOURS[level(nats)]}m{text}\x1b[39m" for text, nats in pieces
    )


def marked_lines(pieces: Sequence[Piece]) -> str:
    """Lines of text, cut at LINE characters, each with a line of marks below it; spaces for tabs, so that they meet."""
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
    """Whether a person looks, and has not asked for none (no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
