"""Saving in the background: the state is copied at once, and a thread writes the copy to the disk.

At most one checkpoint is being written; a save that comes before the last one is on the disk waits
for it.
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
# Pause after a save, in multiples of its duration: on a GPU saves would otherwise be due so soon
# that the disk would do nothing else.
REST = 5


class Saver:
    """The writer of checkpoints into `folder`, whose lock the caller holds."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._thread: threading.Thread | None = None
        self._failures: list[CheckpointError] = []  # in a row
        self._defect: BaseException | None = None
        self._rested_at = 0.0

    def save(self, state: dict[str, Any]) -> None:
        """Copy `state` and start writing it; it may change once this returns.

        A failure to write it is logged, and training continues until `check` raises.
        """
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
            self._failures.append(error.with_traceback(None))  # its frames hold the snapshot
            log.error("%s", error)
        except BaseException as error:  # nobody would catch it in a thread: `check` raises it
            self._defect = error

    @property
    def writing(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def is_ready(self) -> bool:
        """Return whether the last save has ended, and REST times its duration has passed since."""
        return not self.writing and time.monotonic() >= self._rested_at

    def wait(self) -> None:
        """Wait until nothing is being written."""
        if self._thread:
            self._thread.join()

    def check(self) -> None:
        """Raise SavingFailed after MAX_FAILURES failures in a row, or a defect that a save met."""
        if self._defect:
            raise self._defect
        if len(self._failures) >= MAX_FAILURES:
            raise SavingFailed(f"{MAX_FAILURES} saves in a row failed. The last of them: {self._failures[-1]}")

    def check_last(self) -> None:
        """Wait for the last save, and raise its CheckpointError if it failed."""
        self.wait()
        self.check()
        if self._failures:
            raise self._failures[-1]
