"""Saving while training goes on: a copy of the state is taken at once, a thread of its own brings it to the disk.

At most one checkpoint is being written; a save that comes before the last one is on the disk waits for it.
"""

import logging
import threading
import time
from pathlib import Path
from typing import Any

from configs.errors import CheckpointError, SavingFailed
from lm.checkpoint import store

log = logging.getLogger(__name__)

MAX_FAILURES = 3  # in a row
REST = 5  # times as long as the last save took: with a GPU they come so soon that the disk would do nothing else


class Saver:
    """Writes into `folder`, whose lock the caller holds."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._thread: threading.Thread | None = None
        self._failures: list[CheckpointError] = []  # in a row
        self._defect: BaseException | None = None
        self._rested_at = 0.0

    def save(self, state: dict[str, Any]) -> None:
        """Returns as soon as `state` may change. A failure to write it is logged; training goes on, until `check`."""
        self.wait()
        snapshot = store.Snapshot(state)
        self._thread = threading.Thread(target=self._write, args=(snapshot,), name="saver")
        self._thread.start()

    def _write(self, snapshot: store.Snapshot) -> None:
        began = time.monotonic()
        try:
            store.write(self._folder, snapshot)
            self._failures.clear()
            ended = time.monotonic()
            self._rested_at = ended + REST * (ended - began)
        except CheckpointError as error:
            error.__cause__ = None
            self._failures.append(error.with_traceback(None))  # whose frames hold a copy of the state
            log.error("%s", error)
        except BaseException as error:  # a thread cannot raise it to anybody
            self._defect = error

    @property
    def writing(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def is_ready(self) -> bool:
        """Whether the last save is on the disk, and has been for REST times as long as it took."""
        return not self.writing and time.monotonic() >= self._rested_at

    def wait(self) -> None:
        """Until nothing is being written."""
        if self._thread:
            self._thread.join()

    def check(self) -> None:
        """Raises SavingFailed if MAX_FAILURES saves in a row have failed by now, and whatever else went wrong in one."""
        if self._defect:
            raise self._defect
        if len(self._failures) >= MAX_FAILURES:
            raise SavingFailed(f"{MAX_FAILURES} saves in a row failed. The last of them: {self._failures[-1]}")

    def check_last(self) -> None:
        """Waits, and raises the CheckpointError of the last save, if it failed."""
        self.wait()
        self.check()
        if self._failures:
            raise self._failures[-1]
