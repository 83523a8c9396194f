"""Crash-safe writes: whole files replaced atomically, folders synced, DiskError for what the disk
refuses."""

import errno
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from configs.errors import DiskError, DiskFull

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# Read-only after an error, failing, unplugged, unmounted, or another user's.
FAILING = {errno.EIO, errno.EROFS, errno.ENODEV, errno.ENXIO, errno.ESTALE, errno.ENOTCONN, errno.EACCES, errno.EPERM}
NO_SYNC = {errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.ENOSYS}  # of a folder, on shared and network drives
GONE = {errno.ENOENT, errno.ENOTDIR}  # a folder that was removed meanwhile


@contextmanager
def room_on_disk(path: Path) -> Iterator[None]:
    """Raise DiskError in place of an OSError that means that `path` cannot be written."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise DiskFull(
                f"cannot write {path}: {error.strerror}; make room there and start again: nothing that was written is lost"
            ) from error
        if error.errno in FAILING | GONE:
            raise DiskError(
                f"cannot write {path}: {error.strerror}; see to that disk or folder and start again: nothing that was "
                "written is lost"
            ) from error
        raise


def bad_name(path: Path) -> Path:
    """Return the first name `<name>.bad-<n>` beside `path` that is free."""
    return next(name for number in count(1) if not os.path.lexists(name := path.with_name(f"{path.name}.bad-{number}")))


def set_aside(path: Path) -> Path:
    """Rename `path`, a file, folder or anything else, to its `bad_name`, and return that."""
    return path.rename(bad_name(path))


def set_aside_unless_file(path: Path, *, or_link: bool = False) -> Path | None:
    """Set aside what has this name and is no file, such as a folder or a pipe; with `or_link`, a link to a file too.
    Return its new name, if any."""
    is_file = path.is_file() and not (or_link and path.is_symlink())
    return set_aside(path) if os.path.lexists(path) and not is_file else None


def open_file(path: Path) -> io.BufferedReader:
    """Open a file for reading. Raises OSError for a pipe or device too, whose reading might never end."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "no file", str(path))
    return path.open("rb")


def write_all(file: io.FileIO, content: bytes) -> None:
    """Write `content` at the current position of an unbuffered file; it is on the disk when this returns."""
    view = memoryview(content)
    while view:  # a disk that fills up accepts a part first
        view = view[file.write(view) :]
    os.fsync(file.fileno())


def write_atomically(path: Path, content: bytes) -> None:
    """Replace the content of `path` as a whole or, after a crash, not at all. What has its name and
    is no file is set aside. Raises DiskError."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with room_on_disk(path):
            for name in (path, temporary):
                set_aside_unless_file(name)
            temporary.unlink(missing_ok=True)  # of a crash, or a link: never written through
            with temporary.open("xb", buffering=0) as file:
                write_all(file, content)
            temporary.replace(path)
            sync_folder(path.parent)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)  # it has its name, unless the disk refused


def sync_folder(folder: Path) -> None:
    """Force new names in `folder` to the disk, if its file system can; otherwise a power cut may undo a rename."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_SYNC:
            raise
    finally:
        os.close(descriptor)
