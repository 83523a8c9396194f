"""Logging of a run: messages on the terminal of the first rank, and with their time in `run.log`.

Modules log to `logging.getLogger(__name__)`. A record with `extra=RAW` contains control characters
of our own (colours) and is shown unchanged. Nothing here raises: a log that cannot be written
never ends a run.
"""

import logging
import re
import threading
from contextlib import suppress
from logging.handlers import MemoryHandler
from pathlib import Path

from tqdm import tqdm

from configs.text import printable
from lm.runtime.files import set_aside_unless_log
from lm.runtime.terminal import fitted

RAW = {"raw": True}
_COLOURS = re.compile("\x1b\\[[0-9;]*m")
_LOGGER = logging.getLogger("lm")


def log_status(status: str) -> None:
    """Log what is waited for; "", when the wait is over, is nothing to log."""
    if status:
        _LOGGER.info("%s", status)


class _Terminal(logging.Handler):
    """A handler that writes lines to stdout, above a progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        with suppress(OSError):  # a terminal or pipe that is gone: run.log has it all the same
            tqdm.write(text if getattr(record, "raw", False) else fitted(text))


class _File(logging.FileHandler):
    def format(self, record: logging.LogRecord) -> str:
        return printable(_COLOURS.sub("", super().format(record)))

    def handleError(self, record: logging.LogRecord) -> None:
        pass


class _Kept(MemoryHandler):
    """Keeps records until there is a file, its target, to hand them to."""

    def shouldFlush(self, record: logging.LogRecord) -> bool:
        return self.target is not None


def show_log(is_first: bool) -> None:
    """Show what is logged from now on, on the first rank only, and keep it for `open_run_log`."""
    close_run_log()
    _LOGGER.setLevel(logging.INFO)
    _LOGGER.propagate = False
    _LOGGER.handlers = [_Terminal(), _Kept(capacity=0)] if is_first else [logging.NullHandler()]
    threading.excepthook = _show_defect


def _show_defect(thread: threading.ExceptHookArgs) -> None:
    """Show what ended a thread, unless a disk did: a library (TensorBoard) then tells its caller too."""
    if not isinstance(thread.exc_value, OSError):
        threading.__excepthook__(thread)


def open_run_log(folder: Path) -> None:
    """Append what is logged between `show_log` and `close_run_log` to `folder/run.log`."""
    try:
        set_aside_unless_log(folder / "run.log")
        file = _File(folder / "run.log", encoding="utf-8")
    except OSError as error:
        _LOGGER.handlers = [handler for handler in _LOGGER.handlers if not isinstance(handler, _Kept)]
        _LOGGER.warning("%s cannot be written (%s): this run has no log there.", folder / "run.log", error.strerror)
        return
    file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    for handler in _LOGGER.handlers:
        if isinstance(handler, _Kept):
            handler.setTarget(file)
            handler.flush()


def close_run_log() -> None:
    for handler in _LOGGER.handlers:
        if isinstance(handler, _Kept) and handler.target:
            with suppress(OSError):
                handler.target.close()
            handler.setTarget(None)
