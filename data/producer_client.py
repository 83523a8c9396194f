"""Starts the data process, sends it orders, receives its events, and restarts it if it dies.

Runs on global rank 0 only. data/producer.py documents the orders and events. An error that the
process reports, or that it cannot be kept alive, is raised only by a wait for something that does
not exist yet: rows that are committed can be read in any case.
"""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

from configs.errors import ProducerDied, UserError
from data.producer_channel import OUT_OF_MEMORY
from data.sources.hub_client import without_secrets

MOST_DEATHS = 3  # consecutive, without a new row between them
SHORTEST_POLL, LONGEST_POLL = 0.002, 0.1  # seconds between two checks while waiting

ROOT = Path(__file__).resolve().parent.parent
PRODUCER_ENVIRONMENT = {
    "PYTHONUTF8": "1",
    "TOKENIZERS_PARALLELISM": "true",
    # Releases the memory of a large row group; Arrow's own pool keeps 200 MB of it.
    "ARROW_DEFAULT_MEMORY_POOL": "system",
}

Found = TypeVar("Found")


class Stopped(Exception):
    """The wait ended because `should_stop` returned true."""


class SourceInfo(NamedTuple):
    """A source on the start card. `notices`: to read once. `text_bytes`: of its text, if known."""

    label: str
    size: str
    first_line: str
    notices: list[str]
    text_bytes: int | None = None


class ProducerProcess:
    """A running `python -m data.producer`, restarted with the current `request` if it dies.

    `tell` keeps the request current. `sources` (by their numbers), `opened`, `ready`, `exhausted`:
    the events of the current process. `status`: its current work or trouble, or "". `notices`: to be
    shown once. `num_rows()`: rows committed so far, to be set once there is a journal; a death
    after new rows restarts the count of deaths.
    """

    def __init__(self, request: dict[str, Any]):
        self.status = ""
        self.notices: list[str] = []
        self._noticed: set[str] = set()
        self.num_rows: Callable[[], int] = lambda: 0
        self._request = request
        self._deaths, self._rows_at_death = 0, -1
        self._start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def _start(self) -> None:
        self.sources: dict[int, SourceInfo] = {}
        self.opened = self.exhausted = False
        self.ready: dict[str, Any] | None = None
        self._error: Exception | None = None
        self._events: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._last_words: deque[str] = deque(maxlen=20)
        paths = (str(ROOT), os.environ.get("PYTHONPATH", ""))
        self._process = subprocess.Popen(
            # -P: a folder "data" in the working directory must not be imported.
            [sys.executable, "-P", "-m", "data.producer"],
            env={**os.environ, **PRODUCER_ENVIRONMENT, "PYTHONPATH": os.pathsep.join(path for path in paths if path)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            start_new_session=True,  # Ctrl-C in the terminal is for the trainer alone
        )
        assert self._process.stdin, "a pipe"
        self.stdin = self._process.stdin
        self._listeners = [
            threading.Thread(target=_listen, args=(self._process.stdout, self._events), daemon=True),
            threading.Thread(target=_repeat, args=(self._process.stderr, self._last_words), daemon=True),
        ]
        for listener in self._listeners:
            listener.start()
        self._send(self._request)

    def tell(self, **news: Any) -> None:
        """Send the parts of the request that have changed."""
        self._request |= news
        self._send(news)

    def _send(self, order: dict[str, Any]) -> None:
        if self.stdin.closed:  # it ended with an error, raised once a missing row is needed
            return
        with suppress(BrokenPipeError):  # it is dead; `handle_events` will send a new one the whole request
            self.stdin.write(json.dumps(order) + "\n")
            self.stdin.flush()

    def handle_events(self) -> None:
        """Handle the events since the last call; restart the process if it died."""
        while True:
            try:
                event = self._events.get_nowait()
            except queue.Empty:
                return
            if event is None:
                self._died()
                return
            match event.pop("event"):
                case "source":
                    index = event.pop("index")
                    self.sources[index] = SourceInfo(**event)
                case "opened":
                    self.opened = True
                case "ready":
                    self.ready, self.status = event, ""
                case "status":
                    self.status = event["message"]
                case "notice":
                    if event["message"] not in self._noticed:  # a process that was restarted repeats some
                        self._noticed.add(event["message"])
                        self.notices.append(event["message"])
                case "exhausted":
                    self.exhausted = True
                case "error":
                    self._error = UserError(event["message"])

    def _died(self) -> None:
        code = self.end()
        if self._error or self.exhausted:
            return
        rows = self.num_rows()
        self._deaths = 1 if rows > self._rows_at_death else self._deaths + 1
        self._rows_at_death = rows
        if self._deaths < MOST_DEATHS:
            self._start()
            self.status = f"the data process ended with code {code} and was restarted"
        elif code in (OUT_OF_MEMORY, -signal.SIGKILL):  # the latter is Linux's way of saying it
            self._error = UserError(
                f"the data process was ended {self._deaths} times because there is not enough memory: raise the limit (`ulimit "
                "-v`, that of the container or job) or free some, then start again"
            )
        else:
            said = "".join(self._last_words) or "(nothing)"
            self._error = ProducerDied(
                f"the data process ended {self._deaths} times, code {code}; its last output:\n{said}"
            )

    def restart(self) -> None:
        """Start another process, with the request as it is now."""
        self.end()
        self._start()

    def end(self) -> int:
        """Close stdin, which ends the process, and free its resources. Return its exit code."""
        with suppress(BrokenPipeError):
            self.stdin.close()
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        for listener in self._listeners:
            listener.join(timeout=1)
        return code

    def wait(
        self, found_by: Callable[[], Found | None], should_stop: Callable[[], bool], on_status: Callable[[str], Any]
    ) -> Found:
        """Poll `found_by()` until it finds something, and return that.

        Sleeps are short, so that signal handlers run. `on_status` receives every status once, and "" when one is over.
        Raises the error that the producer reported, ProducerDied or Stopped.
        """
        poll, said = SHORTEST_POLL, ""
        while True:
            self.handle_events()
            if self.status != said:
                said = self.status
                on_status(said)
            if found := found_by():
                return found
            if self._error:
                raise self._error
            if should_stop():
                raise Stopped
            time.sleep(poll)
            poll = min(poll * 1.5, LONGEST_POLL)


def _listen(stdout: IO[str], events: "queue.SimpleQueue[dict[str, Any] | None]") -> None:
    with stdout, suppress(ValueError):  # a killed process may leave a partial last line
        for line in stdout:
            events.put(json.loads(line))
    events.put(None)


def _repeat(stderr: IO[str], last_words: deque[str]) -> None:
    with stderr:
        for line in stderr:
            line = without_secrets(line)  # a log line or traceback may hold the address it read
            last_words.append(line)
            sys.stderr.write(line)
