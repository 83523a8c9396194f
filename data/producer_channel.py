"""Both directions between trainer and producer: events out, orders in (see data/producer.py)."""

import json
import logging
import os
import sys
import threading
from typing import IO, Any

OUT_OF_MEMORY = 3  # exit code of the data process


class Events:
    """The events for the trainer, from any thread: one JSON line each, written to `channel`."""

    def __init__(self, channel: IO[str]):
        self._channel, self._lock = channel, threading.Lock()

    def emit(self, event: str, **content: Any) -> None:
        with self._lock:
            self._channel.write(json.dumps({"event": event, **content}) + "\n")

    def send_log(self) -> None:
        """Send what is logged in data/ from now on: at level INFO it is the status until the next one ("" if
        there is none), from WARNING on a notice, to be shown once."""
        logger = logging.getLogger("data")
        logger.setLevel(logging.INFO)
        logger.propagate = False
        logger.handlers = [_LogSender(self)]


class _LogSender(logging.Handler):
    def __init__(self, events: Events):
        super().__init__()
        self._events = events

    def emit(self, record: logging.LogRecord) -> None:
        event = "notice" if record.levelno >= logging.WARNING else "status"
        self._events.emit(event, message=record.getMessage())


class Orders:
    """The latest orders of the trainer.

    A thread keeps them current, and ends the process when stdin closes.
    """

    def __init__(self, request: dict, run_ahead: int):
        self.run_ahead = run_ahead
        self.consumed: int = request["consumed"]
        self.wanted: int = request["wanted"]  # rows that the trainer waits for, or has
        self.weight_changes: list[tuple[int, list[float]]] = request["weight_changes"]
        self._go: bool = request["go"]
        self._news = threading.Condition()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        for line in sys.stdin:
            try:
                order = json.loads(line)
            except ValueError:  # the trainer was killed while it wrote the line
                break
            with self._news:
                self.weight_changes = order.get("weight_changes", self.weight_changes)
                self.consumed = max(self.consumed, order.get("consumed", 0))
                self.wanted = max(self.wanted, order.get("wanted", 0))
                self._go |= order.get("go", False)
                self._news.notify()
        os._exit(0)  # the trainer is gone; the journal may be abandoned at any instant

    def wait_for_go(self) -> None:
        with self._news:
            self._news.wait_for(lambda: self._go)

    @property
    def limit(self) -> int:
        """How many rows may exist now, to within a document."""
        return max(self.consumed + self.run_ahead, self.wanted)

    def wait_for_room(self, num_rows: int, room: int) -> None:
        """Wait until after `num_rows` there may be `room` more, or the trainer waits for the next."""
        with self._news:
            self._news.wait_for(lambda: self.limit - num_rows >= room or self.wanted > num_rows)
