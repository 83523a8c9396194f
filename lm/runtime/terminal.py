"""Sentences for whoever reads them: in a terminal, whose size counts, or in a file. No torch: the menu speaks, too."""

import os
import sys
from typing import TextIO

from configs.text import printable, wrapped

SIZE = os.terminal_size((80, 24))  # of a terminal that does not tell, and what is written for where there is none


def is_terminal(stream: TextIO | None) -> bool:
    return bool(stream and stream.isatty())


def size_of(stream: TextIO) -> os.terminal_size:
    size = os.get_terminal_size(stream.fileno()) if is_terminal(stream) else SIZE
    return size if all(size) else SIZE


def fitted(text: str, stream: TextIO | None = None) -> str:
    """`text` fit to be printed (on stdout), with lines that end between words if a terminal shows them."""
    stream, text = stream or sys.stdout, printable(text)
    return wrapped(text, size_of(stream).columns) if is_terminal(stream) else text


def tell(text: str, stream: TextIO | None = None) -> None:
    print(fitted(text, stream), file=stream or sys.stdout)
