"""Text output: wrapped in a terminal, unchanged in a file. Without torch: the menu uses it."""

import os
import sys
from typing import TextIO

from configs.text import printable, wrapped

COLUMNS = 80  # assumed if there is no terminal, or if its width is unknown


def is_terminal(stream: TextIO | None) -> bool:
    return bool(stream and stream.isatty())


def columns_of(stream: TextIO) -> int:
    return (is_terminal(stream) and os.get_terminal_size(stream.fileno()).columns) or COLUMNS


def fitted(text: str, stream: TextIO | None = None) -> str:
    """Return `text` printable, and wrapped between words if `stream` (stdout) is a terminal."""
    stream, text = stream or sys.stdout, printable(text)
    return wrapped(text, columns_of(stream)) if is_terminal(stream) else text


def tell(text: str, stream: TextIO | None = None) -> None:
    print(fitted(text, stream), file=stream or sys.stdout)
