"""Crash-safe writes: whole files replaced atomically, folders synced, DiskFull for a full disk."""

import errno
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from configs.errors import DiskFull

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def room_on_disk(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise DiskFull(
            f"cannot write {path}: {error.strerror}; make room there and start again: nothing that was written is lost"
        ) from error


def write_all(file: io.FileIO, content: bytes) -> None:
    """Write `content` where an unbuffered file stands; it is on the disk when this returns."""
    view = memoryview(content)
    while view:  # a disk that fills up accepts a part first
        view = view[file.write(view) :]
    os.fsync(file.fileno())


def write_atomically(path: Path, content: bytes) -> None:
    """Replace the content of `path` as a whole or, after a crash, not at all. Raises DiskFull."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with room_on_disk(path), temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except DiskFull:
        temporary.unlink(missing_ok=True)  # missing if the disk had no space for its name
        raise
    temporary.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Force new names in `folder` to the disk; otherwise a power cut may undo a rename."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
