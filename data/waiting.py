"""Waiting for sources: how long, and what is reported meanwhile.

Reports are messages at level INFO: in the data process each is its status until the next one, and an
empty one clears it (data/producer_channel.py).
"""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from configs.errors import Retryable

FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0  # seconds between two attempts when the network is down
LONGEST_SILENCE = 20.0  # seconds until a source that neither answers nor fails is reported
LOOKED_EVERY = 0.1  # seconds

log = logging.getLogger(__name__)


@contextmanager
def watch(label: str) -> Iterator["Wait"]:
    """Yield the Wait for a source, with which its code reports failures.

    Silence is reported after LONGEST_SILENCE, whatever the source or its library waits for. On
    exit, what was reported is cleared.
    """
    wait = Wait(label)
    _watcher.add(wait)
    try:
        yield wait
    finally:
        _watcher.discard(wait)
        wait.end()


class Wait:
    """A wait for the source `label`. `_said`: its silence is not to be reported any more."""

    def __init__(self, label: str):
        self._label, self.due = label, time.monotonic() + LONGEST_SILENCE
        self._lock, self._said = threading.Lock(), False

    def pause(self, error: Retryable, seconds: float) -> float:
        """Report the error and sleep for `seconds`. Return how long to sleep the next time."""
        with self._lock:
            self._said = True
            log.info("%s: %s, retrying in %.0f s", self._label, error, seconds)
        time.sleep(seconds)
        return min(2 * seconds, LONGEST_WAIT)

    def report_silence(self) -> None:
        with self._lock:
            if not self._said:
                self._said = True
                log.info("%s: no text for %.0f s, still trying", self._label, LONGEST_SILENCE)

    def answered(self) -> None:
        """Take back what was reported, since there is text again. Silence counts from now on."""
        self.due = time.monotonic() + LONGEST_SILENCE
        if self._said:
            self.end()
            self._said = False

    def end(self) -> None:
        with self._lock:  # it may be reporting just now
            if self._said:
                log.info("")
            self._said = True


class _Watcher:
    """One thread that reports the silence of all sources: a source may be waited for as often as it has documents."""

    def __init__(self) -> None:
        self._waits: set[Wait] = set()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def add(self, wait: Wait) -> None:
        with self._lock:
            self._waits.add(wait)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._watch, daemon=True)
                self._thread.start()

    def discard(self, wait: Wait) -> None:
        with self._lock:
            self._waits.discard(wait)

    def _watch(self) -> None:
        while True:
            time.sleep(LOOKED_EVERY)
            now = time.monotonic()
            with self._lock:
                due = [wait for wait in self._waits if wait.due <= now]
            for wait in due:
                wait.report_silence()


_watcher = _Watcher()
