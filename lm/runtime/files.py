"""File-system operations that crash safety rests on: hard links, the lock, logs that never end a run.

Linux and macOS. Nothing here depends on the content of the files.
"""

import io
import logging
import os
import re
import shutil
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from configs.errors import UserError
from data.files import bad_name, set_aside

log = logging.getLogger(__name__)

LARGEST_LOG = 50_000_000  # bytes
TEMPORARY = re.compile(r"\..+\.\d+\.tmp")  # of `temporary_name`


def link_as(source: Path, target: Path) -> None:
    """Make `target` another name of `source` in one step, replacing the file of that name."""
    if not same_file(source, target):
        os.replace(link_beside(source, target), target)


def has_hard_links(folder: Path) -> bool:
    """Return whether files in `folder`, which is made if need be, can have two names; True if it refuses files."""
    with suppress(OSError):  # which is said when the run writes
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(prefix=".link-", dir=folder) as file:
            other = Path(f"{file.name}-too")
            try:
                os.link(file.name, other)
            except OSError:
                return False
            other.unlink()
    return True


def link_beside(source: Path, target: Path) -> Path:
    """Give `source` a temporary name beside `target`, and return it.

    This is the first half of `link_as`, the only one that needs disk space. Where the file system
    has no hard links, it copies: the same safety for more disk space. A symbolic link gets another
    link to its target.
    """
    temporary = temporary_name(target)
    temporary.unlink(missing_ok=True)
    if source.is_symlink():
        temporary.symlink_to(os.path.realpath(source))
        return temporary
    try:
        os.link(source, temporary)
    except OSError:
        if not source.is_file():  # reading a pipe or a device may never end
            raise
        with source.open("rb") as original, temporary.open("wb") as copy:
            shutil.copyfileobj(original, copy, 1 << 20)
            copy.flush()
            os.fsync(copy.fileno())
        shutil.copystat(source, temporary)
    return temporary


def same_file(one: Path, other: Path) -> bool:
    """Return whether both are names of one file: renaming one to the other then does nothing."""
    return one.exists() and other.exists() and one.samefile(other)


def temporary_name(target: Path) -> Path:
    """Return a name beside `target` that TEMPORARY matches: `os.replace` stays within one file
    system."""
    return target.with_name(f".{target.stem}.{os.getpid()}.tmp")


def _ends_in_a_line(path: Path) -> bool:
    """Return whether a file's last line was not written to its end."""
    with path.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - 1))
        return file.read() not in (b"", b"\n")


class Appender:
    """The end of a log that never ends a run: what the disk refuses is kept, and written with what
    comes next. The first refusal is logged."""

    def __init__(self, path: Path):
        self.path = path
        self._file: io.FileIO | None = None
        self._waiting = b""  # for the disk to take it
        self._refused = self._begun = False

    def write(self, text: str) -> None:
        self._waiting += text.encode()
        try:
            if self._file is None:
                self._file = self.path.open("ab", buffering=0)
                if not self._begun and _ends_in_a_line(self.path):  # torn by a full disk: what follows would be its end
                    self._waiting = b"\n" + self._waiting
                self._begun = True
            while self._waiting:  # a disk that fills up accepts a part first
                self._waiting = self._waiting[self._file.write(self._waiting) :]
        except OSError as error:
            self._file = None  # opened anew: a disk that was unmounted is then found again
            self._tell(error)

    def sync(self) -> None:
        """Force what was written to the disk; from any thread."""
        try:
            if file := self._file:
                os.fsync(file.fileno())
        except OSError as error:
            self._tell(error)

    def _tell(self, error: OSError) -> None:
        if not self._refused:
            self._refused = True
            log.warning(
                "%s cannot be written (%s): training goes on, and it is tried again.", self.path, error.strerror
            )

    def close(self) -> None:
        if self._waiting:
            self.write("")
        with suppress(OSError):
            if self._file:
                self._file.close()
        self._file = None


def set_aside_unless_log(path: Path) -> None:
    """Set aside what is neither a file that `whole_lines` reads nor missing: a folder, a pipe, a
    device, a file of another kind."""
    if os.path.lexists(path) and not _is_log(path):
        log.warning("%s is no log of this program: it is now %s, and a new one begins.", path, set_aside(path).name)


def keep_copy(path: Path, content: str) -> None:
    """Keep a log with other `content` than this program's under another name as well, before it is
    cut."""
    link_as(path, copy := bad_name(path))
    log.warning("%s holds %s: the whole file is kept as %s.", path, content, copy.name)


def _is_log(path: Path) -> bool:
    return path.is_file() and path.stat().st_size <= LARGEST_LOG


class FolderLock:
    """A lock that keeps every other run out of `folder`, held within `with FolderLock(folder):`.

    The kernel releases it when the process dies, however it dies, so a stale `.lock` file never
    blocks a run. Raises UserError if another process holds it (named in the message), if the file
    cannot be written, or if the system has no such locks.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / ".lock"

    def __enter__(self) -> "FolderLock":
        if sys.platform == "win32":
            raise UserError(
                "Windows alone has no file locks of the kind that keeps two runs apart: start this inside WSL."
            )
        import fcntl

        folder = self.path.parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # Never through a link, since the file is emptied, nor a pipe, which would block.
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            self._file = open(os.open(self.path, flags, 0o666), "r+")
        except OSError as error:
            raise UserError(
                f"{self.path} cannot be written ({error.strerror or error}). {folder} has to be a folder that this user may "
                "write into; a symbolic link to one is enough."
            ) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            holder = self._file.read().strip()
            self._file.close()
            # Without a number, the other run has only just started.
            who, how = (f" (process {holder})", f" or `kill {holder}`") if holder else ("", "")
            raise UserError(
                f"Another run{who} is using {folder}. Wait for it, or stop it with Ctrl-C{how}: it saves before it leaves."
            ) from None
        except OSError as error:
            self._file.close()
            raise UserError(
                f"{self.path} cannot be locked ({error.strerror}). Put {folder} on a disk that supports locks; "
                "a symbolic link is enough."
            ) from error
        with suppress(OSError):  # it is for a message only
            os.truncate(self._file.fileno(), 0)
            os.write(self._file.fileno(), f"{os.getpid()}\n".encode())
        return self

    @property
    def is_lost(self) -> bool:
        """Whether the folder was removed or moved: another run may have one of that name by now."""
        try:
            return not os.path.samestat(self.path.stat(), os.fstat(self._file.fileno()))
        except FileNotFoundError:
            return True

    def regain(self) -> None:
        """Lock the folder that has the name now, or a new one. Raises UserError as at first."""
        self._file.close()
        self.__enter__()

    def __exit__(self, *_: object) -> None:
        # Releases the lock. The file stays: deleting it would let two runs lock two files.
        self._file.close()


def whole_lines(path: Path) -> list[str]:
    """Return the lines with their ends, without a torn last one; [] if there is no such file, or a
    larger one than any log is."""
    if not _is_log(path):
        return []
    with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
        return [line for line in file if line.endswith("\n")]
