"""Opens files of rows (JSON, CSV, text) as UTF-8, in whatever encoding they are written (encoding.py).

The encoding is decided by the first bytes that are not plain ASCII and the few megabytes behind
them, so that a file of the Hub is read once. A few bytes that are not UTF-8 in a file that
otherwise is, or is ASCII, are passed on as they are: its readers put U+FFFD in their place.
"""

import codecs
import io
import threading
from importlib import import_module
from typing import IO, Any

from data.sources.encoding import ESCAPED, UTF_8, WIDE, Evidence, has_escapes

CHUNK = 1 << 20  # bytes
LOOKED_AT = 4  # chunks that decide
FEW = 3  # bytes that are not UTF-8: too few to tell an older encoding by
UNLIKE_ASCII = ("utf-16", "utf-32", *WIDE, *ESCAPED)
FEW_OF = 1000  # bytes; one in so many is few too, if the encoding is uncertain

_opening = threading.Lock()


class UncertainEncoding(ValueError):
    """The encoding of a file cannot be told with certainty."""


class AsUTF8(io.RawIOBase):
    """The content of a file in UTF-8, without a byte order mark. Raises UncertainEncoding while it is read."""

    def __init__(self, file: Any):
        self._file, self._buffer = file, memoryview(b"")
        self._at_start = True
        self._decoder: codecs.IncrementalDecoder | None = None
        self._is_known = False  # what it is written in: UTF-8, if there is no decoder

    def readable(self) -> bool:
        return True

    def readinto(self, into: Any) -> int:
        while not self._buffer:
            chunk = self._file.read(CHUNK)
            is_last = not chunk
            if not self._is_known and not is_plain(chunk):
                chunk = self._look_ahead(chunk)
            elif self._at_start:
                chunk = chunk.removeprefix(codecs.BOM_UTF8)
            self._at_start = False
            if self._decoder:
                chunk = self._decoder.decode(chunk, is_last).encode("utf-8", "replace")
            if is_last and not chunk:
                return 0
            self._buffer = memoryview(chunk)
        count = min(len(into), len(self._buffer))
        into[:count], self._buffer = self._buffer[:count], self._buffer[count:]
        return count

    def _look_ahead(self, chunk: bytes) -> bytes:
        """Decide on the encoding, and return `chunk` with the chunks that were read for that."""
        chunks, evidence = [chunk], Evidence()
        while len(chunks) < LOOKED_AT and (more := self._file.read(CHUNK)):
            chunks.append(more)
        for part in chunks:
            evidence.add(part)
        content, encoding = b"".join(chunks), evidence.encoding()
        if not encoding and evidence.num_stray > max(FEW, len(content) // FEW_OF):
            what = "its encoding is not certain (save it as UTF-8)" if encoding is None else "it is no text"
            raise UncertainEncoding(what)
        if encoding and encoding != UTF_8 and (encoding in UNLIKE_ASCII or evidence.num_stray > FEW):
            self._decoder = codecs.getincrementaldecoder(encoding)("replace")
        elif self._at_start:
            content = content.removeprefix(codecs.BOM_UTF8)
        # ASCII with a few other bytes is not decided: what follows may still be anything.
        self._is_known = bool(self._decoder or evidence.num_valid)
        return content

    def close(self) -> None:
        self._file.close()
        super().close()


def is_plain(chunk: bytes) -> bool:
    """Return whether the bytes are the same text in nearly every encoding."""
    return chunk.isascii() and b"\0" not in chunk and not has_escapes(chunk)


def open_as_utf8(
    path: Any, mode: str = "r", *, encoding: str | None = None, errors: str | None = None, newline: str | None = None
) -> IO[Any]:
    """Open a file for reading, as `open` does, on this disk, on the Hub or within an archive; an `encoding` other
    than UTF-8 is taken for the right one."""
    from datasets.utils.file_utils import xopen

    file = xopen(path, "rb")
    if encoding is None or codecs.lookup(encoding).name == "utf-8":
        encoding, file = "utf-8", io.BufferedReader(AsUTF8(file), CHUNK)
    return file if "b" in mode else io.TextIOWrapper(file, encoding, errors, newline)


def let_library_read_any_encoding() -> None:
    """Let open_as_utf8 take the place of `open` in the readers of the `datasets` library."""
    from datasets import DownloadConfig
    from datasets.streaming import extend_module_for_streaming

    with _opening:  # sources are opened in parallel
        for name in ("json", "text"):
            module = import_module(f"datasets.packaged_modules.{name}.{name}")
            # The library replaces `open` by its own too, once.
            extend_module_for_streaming(module.__name__, DownloadConfig())
            module.open = open_as_utf8  # type: ignore[attr-defined]
