"""Text output: wrapped in a terminal, unchanged in a file. Without torch: the menu uses it."""

import os
import sys
from typing import TextIO

from configs.text import printable, wrapped

SIZE = os.terminal_size((80, 24))  # assumed if there is no terminal, or if its size is unknown


def is_terminal(stream: TextIO | None) -> bool:
    return bool(stream and stream.isatty())


def size_of(stream: TextIO) -> os.terminal_size:
    size = os.get_terminal_size(stream.fileno()) if is_terminal(stream) else SIZE
    return size if all(size) else SIZE


def fitted(text: str, stream: TextIO | None = None) -> str:
    """Return `text` printable, and wrapped between words if `stream` (stdout) is a terminal."""
    stream, text = stream or sys.stdout, printable(text)
    return wrapped(text, size_of(stream).columns) if is_terminal(stream) else text


def tell(text: str, stream: TextIO | None = None) -> None:
    print(fitted(text, stream), file=stream or sys.stdout)
