"""Opens compressed files for reading: .gz, .bz2, .xz and .zst, known by their suffix.

zstd is read here because the libraries read it wrongly: they stop after the first frame of a file
(pzstd and `cat a.zst b.zst` write several), take a file that was cut off for a whole one, and
refuse windows above 128 MiB (`zstd --long=31`).
"""

import bz2
import gzip
import io
import lzma
import zlib
from pathlib import Path
from typing import IO, Any, cast

import zstandard

ERRORS = (EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError)  # besides OSError, for damaged files
ZSTD_INPUT = 1024  # bytes at once, since each may become 32 kB
ZSTD_WINDOW = 2**31  # bytes of memory at most, if a file asks for so much


class ZstdFile(io.RawIOBase):
    """The content of a zstd file, as bytes. Raises zstandard.ZstdError, and EOFError for one cut off."""

    def __init__(self, file: Any):
        self._file, self._buffer = file, memoryview(b"")
        self._frame: Any = None  # None: between two frames
        self._input = b""

    def readable(self) -> bool:
        return True

    def readinto(self, into: Any) -> int:
        while not self._buffer:
            self._input = self._input or self._file.read(ZSTD_INPUT)
            if not self._input:
                if self._frame is not None:
                    raise EOFError("the compressed file is cut off")
                return 0
            if self._frame is None:
                self._frame = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW).decompressobj()
            self._buffer = memoryview(self._frame.decompress(self._input))
            self._input = self._frame.unused_data
            if self._frame.eof:
                self._frame = None
        count = min(len(into), len(self._buffer))
        into[:count], self._buffer = self._buffer[:count], self._buffer[count:]
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def zstd_file(file: Any, mode: str = "rb") -> IO[bytes]:
    """Return a file of the content of `file`, which is closed with it."""
    return io.BufferedReader(ZstdFile(file), 1 << 16)


def open_bytes(path: Path) -> IO[bytes]:
    """Open a file for reading, uncompressed. Raises OSError, and while it is read also ERRORS."""
    match path.suffix.lower():
        case ".gz":
            return cast(IO[bytes], gzip.open(path))
        case ".bz2":
            return bz2.open(path)
        case ".xz":
            return lzma.open(path)
        case ".zst":
            return zstd_file(path.open("rb"))
    return path.open("rb")


def register_zstd() -> None:
    """Let `fsspec`, and so the `datasets` library, read zstd with this module."""
    from fsspec.compression import register_compression

    register_compression("zstd", zstd_file, "zst", force=True)
