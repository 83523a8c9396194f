"""Saving in the background: the state is copied at once, and a thread writes the copy to the disk.

At most one checkpoint is being written; a save that comes before the last one is on the disk waits
for it.
"""

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from configs.errors import CheckpointError, SavingFailed
from lm.checkpoint import store

log = logging.getLogger(__name__)

MAX_FAILURES = 3  # in a row
# Pause after a save, in multiples of its duration: on a GPU saves would otherwise be due so soon
# that the disk would do nothing else.
REST = 5
RETRY_SECONDS = 1  # before the last save is tried again


class Saver:
    """The writer of checkpoints into `folder`, whose lock the caller holds. Each save first calls
    `sync_logs`: a checkpoint holds how far the logs are, and a power cut must not undo that."""

    def __init__(self, folder: Path, sync_logs: Callable[[], None] = lambda: None):
        self._folder, self._sync_logs = folder, sync_logs
        self._thread: threading.Thread | None = None
        self._failures: list[CheckpointError] = []  # in a row
        self._defect: BaseException | None = None
        self._rested_at = 0.0
        self._buffers: dict[tuple, Any] = {}  # of the last save's copy

    def save(self, state: dict[str, Any]) -> None:
        """Copy `state` and start writing it; it may change once this returns.

        A failure to write it is logged, and training continues until `check` raises.
        """
        self.wait()
        self._defect = None  # of an earlier save, which `check` has raised
        snapshot = store.Snapshot(state, self._buffers)
        self._buffers = snapshot.buffers
        self._thread = threading.Thread(target=self._write, args=(snapshot,), name="saver")
        self._thread.start()

    def _write(self, snapshot: store.Snapshot) -> None:
        began = time.monotonic()
        try:
            self._sync_logs()
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

    @property
    def has_failed(self) -> bool:
        """Whether the last save that ended could not be written."""
        return bool(self._failures or self._defect)

    def save_last(self, state: dict[str, Any]) -> None:
        """Save `state` and wait; if the disk refuses, try again, MAX_FAILURES times in all.

        Raises the CheckpointError of the last try.
        """
        for number in range(MAX_FAILURES):
            if number:
                time.sleep(RETRY_SECONDS)
            self.save(state)
            self.wait()
            if self._defect:
                raise self._defect
            if not self._failures:
                return
        raise self._failures[-1]
