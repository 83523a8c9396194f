"""Waiting for sources: how long, and what is reported meanwhile."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from configs.errors import Retryable

FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0  # seconds between two attempts when the network is down
LONGEST_SILENCE = 20.0  # seconds until a source that neither answers nor fails is reported
LOOKED_EVERY = 0.1  # seconds

Status = Callable[[str], None]  # shows a message until the next one; "" clears it


@contextmanager
def watch(label: str, status: Status) -> Iterator[Status]:
    """Yield a function that reports trouble with a source, for code that waits for the source.

    Silence is reported after LONGEST_SILENCE, whatever the source or its library waits for. On
    exit, what was reported is cleared.
    """
    wait = _Wait(
        status, f"{label}: no text for {LONGEST_SILENCE:.0f} s, still trying", time.monotonic() + LONGEST_SILENCE
    )
    _watcher.add(wait)
    try:
        yield wait.say
    finally:
        _watcher.discard(wait)
        with wait.lock:  # it may be reporting just now
            if wait.said:
                status("")
            wait.said = True


class _Wait:
    """A wait for a source. `said`: there is nothing to report any more."""

    def __init__(self, status: Status, silence: str, due: float):
        self.status, self.silence, self.due = status, silence, due
        self.lock, self.said = threading.Lock(), False

    def say(self, message: str) -> None:
        with self.lock:
            self.said = True
            self.status(message)

    def report_silence(self) -> None:
        with self.lock:
            if not self.said:
                self.said = True
                self.status(self.silence)


class _Watcher:
    """One thread that reports the silence of all sources: a source may be waited for as often as it has documents."""

    def __init__(self) -> None:
        self._waits: set[_Wait] = set()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def add(self, wait: _Wait) -> None:
        with self._lock:
            self._waits.add(wait)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._watch, daemon=True)
                self._thread.start()

    def discard(self, wait: _Wait) -> None:
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


def pause(label: str, error: Retryable, seconds: float, say: Status) -> float:
    """Report the error and sleep for `seconds`. Return how long to sleep the next time."""
    say(f"{label}: {error}, retrying in {seconds:.0f} s")
    time.sleep(seconds)
    return min(2 * seconds, LONGEST_WAIT)
