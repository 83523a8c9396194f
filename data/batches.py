"""The trainer's side of the stream: starts the producer, reads its rows, restarts it when it dies.

Lives on global rank 0 only. It never reads a source, tokenizes or writes a row: data/producer.py does, in a process of
its own. Rows that are committed can be read whatever happens to the producer; its errors are raised only when a row is
needed that is not there.

Shapes: B rows, T seq_length: rows are (B, T+1) token ids and (B, T+1) source numbers.
"""

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from configs.schema import Preset, UserError
from data.heldout import HeldOut
from data.hub_client import without_secrets
from data.journal import JournalReader
from data.packing import row_dtype
from data.preparation import HELD_OUT, tokenizer_path
from data.producer import run_ahead_rows

MOST_DEATHS = 3  # in a row without a new row between them
SHORTEST_POLL, LONGEST_POLL = 0.002, 0.1  # seconds between two looks while waiting


class StreamEnded(Exception):
    """Every source is used up. `num_rows`: all the rows there will ever be."""

    def __init__(self, num_rows: int):
        super().__init__(f"the sources are used up after {num_rows} rows")
        self.num_rows = num_rows


class ProducerDied(Exception):
    """It was started MOST_DEATHS times and ended each time without a new row."""


class Stopped(Exception):
    """`should_stop` said so while waiting."""


ROOT = Path(__file__).resolve().parent.parent
PRODUCER_ENVIRONMENT = {
    "PYTHONPATH": str(ROOT),
    "PYTHONUTF8": "1",
    "TOKENIZERS_PARALLELISM": "true",
    "ARROW_DEFAULT_MEMORY_POOL": "system",  # gives back what a large row group took; Arrow's own pool keeps 200 MB of it
}


class SourceInfo(NamedTuple):
    """A source as the start card shows it. `notices`: sentences to read once."""

    label: str
    size: str
    first_line: str
    notices: list[str]


class StreamInfo(NamedTuple):
    vocab_size: int
    tokenizer_sha256: str
    tokenizer_path: Path


def never() -> bool:
    return False


def ignore(status: str) -> None:
    pass


class Stream:
    """The run's rows, from the first to `token_budget`. Creating it starts the producer, which writes nothing before
    `begin()`.

    `start_row`: rows already trained on. `weight_changes`: [(from_row, weights)] so far, as given to change_weights.
    `wait_seconds`: time spent blocked in rows(). `status`: what the producer is busy or in trouble with, or "".
    `epochs`: how often each source label has begun anew.
    """

    def __init__(
        self,
        preset: Preset,
        checkpoint_dir: Path,
        token_budget: int,
        *,
        start_row: int = 0,
        weight_changes: Sequence[tuple[int, list[float]]] = (),
    ):
        self.seq_length = preset.model.seq_length
        self.run_ahead_rows = run_ahead_rows(self.seq_length, token_budget)
        self.stream_dir = Path(checkpoint_dir).absolute() / "stream"
        self.wait_seconds = 0.0
        self.status = ""
        self.epochs: dict[str, int] = {}
        self.held_out: HeldOut | None = None
        self._num_sources = len(preset.data.all_sources)
        self._preset_json = preset.to_json()
        self._token_budget = token_budget
        self._consumed = self._wanted = start_row
        self._weight_changes = [(int(row), list(weights)) for row, weights in weight_changes]
        self._went = False
        self._reader: JournalReader | None = None
        self._deaths, self._rows_at_death = 0, -1
        self._start()

    # ---- the process ------------------------------------------------------------------------------------------

    def _start(self) -> None:
        self._sources: dict[int, SourceInfo] = {}
        self._opened = self._exhausted = False
        self._ready: dict | None = None
        self._error: Exception | None = None
        self._events: queue.SimpleQueue[dict | None] = queue.SimpleQueue()
        self._last_words: deque[str] = deque(maxlen=20)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "data.producer"],  # -P: a folder "data" where the user stands is not ours
            env={**os.environ, **PRODUCER_ENVIRONMENT},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            start_new_session=True,  # Ctrl-C in the terminal is for the trainer alone
        )
        self._listeners = [
            threading.Thread(target=_listen, args=(self._process.stdout, self._events), daemon=True),
            threading.Thread(target=_repeat, args=(self._process.stderr, self._last_words), daemon=True),
        ]
        for listener in self._listeners:
            listener.start()
        request = {
            "preset": self._preset_json,
            "stream_dir": str(self.stream_dir),
            "token_budget": self._token_budget,
            "weight_changes": self._weight_changes,
            "consumed": self._consumed,
            "wanted": self._wanted,
        }
        self._send(request)
        if self._went:
            self._send({"go": True})

    def _send(self, order: dict) -> None:
        if self._process.stdin.closed:  # it ended with an error, which waits until a row is needed that is not there
            return
        with suppress(BrokenPipeError):  # it is dead: _look will notice, and a new one is told everything
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()

    def _look(self) -> None:
        """Take in what the producer said since the last look; start it again if it died."""
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
                    self._sources[index] = SourceInfo(**event)
                case "opened":
                    self._opened = True
                case "ready":
                    self._ready, self.status = event, ""
                case "status":
                    self.status = event["message"]
                case "epoch":
                    self.epochs[event["label"]] = event["epoch"]
                case "exhausted":
                    self._exhausted = True
                case "error":
                    self._error = UserError(event["message"])

    def _died(self) -> None:
        code = self._reap()
        if self._error or self._exhausted:
            return
        rows = self._reader.num_rows() if self._reader else 0
        self._deaths = 1 if rows > self._rows_at_death else self._deaths + 1
        self._rows_at_death = rows
        if self._deaths < MOST_DEATHS:
            self._start()
            self.status = f"the data process ended with code {code} and was started again"
        else:
            said = "".join(self._last_words) or "(nothing)"
            self._error = ProducerDied(f"the data process ended {self._deaths} times, code {code}; it said:\n{said}")

    def _reap(self) -> int:
        """Close stdin, at which a living producer ends, and give back all it held. Returns its exit code."""
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        for listener in self._listeners:
            listener.join(timeout=1)
        return code

    def _wait(self, there: Callable[[], Any], should_stop: Callable[[], bool], on_status: Callable[[str], Any]) -> None:
        """Until `there()`; short sleeps, so that signal handlers run. `on_status` hears every status once. Raises what
        the producer reported."""
        poll, said = SHORTEST_POLL, ""
        while True:
            self._look()
            if self.status not in (said, ""):
                on_status(self.status)
                said = self.status
            if there():
                return
            if self._error:
                raise self._error
            if should_stop():
                raise Stopped
            time.sleep(poll)
            poll = min(poll * 1.5, LONGEST_POLL)

    # ---- what main uses ---------------------------------------------------------------------------------------

    # Each may be left by `should_stop` (Stopped) and tells `on_status` what is being waited for.

    def wait_opened(
        self, should_stop: Callable[[], bool] = never, on_status: Callable[[str], Any] = ignore
    ) -> list[SourceInfo]:
        """Every source, in the order of the preset. Raises UserError naming all that cannot be used."""
        self._wait(lambda: self._opened, should_stop, on_status)
        return [info for _, info in sorted(self._sources.items())]

    def begin(self, should_stop: Callable[[], bool] = never, on_status: Callable[[str], Any] = ignore) -> StreamInfo:
        """From here on the producer writes into the checkpoint folder. Returns when held-out text and tokenizer are
        there and rows are coming. Raises what wait_opened does."""
        self._went = True
        self._send({"go": True})
        self._wait(lambda: self._ready, should_stop, on_status)
        vocab_size, sha256 = self._ready["vocab_size"], self._ready["tokenizer_sha256"]
        self._reader = JournalReader(self.stream_dir, row_dtype(self.seq_length, vocab_size))
        self.held_out = HeldOut.load(self.stream_dir / HELD_OUT)
        return StreamInfo(vocab_size, sha256, tokenizer_path(self.stream_dir))

    def rows(
        self,
        first: int,
        count: int,
        should_stop: Callable[[], bool] = never,
        on_status: Callable[[str], Any] = ignore,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows first .. first + count - 1: (count, T+1) tokens and (count, T+1) uint8 sources; waits for them.

        Raises StreamEnded if they will never be, UserError if the producer could not go on, Stopped.
        """
        if first + count > self._reader.num_rows():
            began = time.monotonic()
            self._wanted = first + count
            self._send({"wanted": self._wanted})
            try:
                self._wait(lambda: self._exhausted or first + count <= self._reader.num_rows(), should_stop, on_status)
            finally:
                self.wait_seconds += time.monotonic() - began
            if first + count > self._reader.num_rows():
                raise StreamEnded(self._reader.num_rows())
        else:
            self._look()
        records = self._reader.rows(first, count)
        return np.ascontiguousarray(records["tokens"]), np.ascontiguousarray(records["source"])

    def consumed(self, row: int) -> None:
        """Rows before `row` are trained on: the producer may run ahead of it."""
        self._consumed = row
        self._send({"consumed": row})

    def change_weights(self, weights: Sequence[float], from_row: int) -> None:
        """New effective weights for documents chosen once `from_row` rows are produced.

        To stay deterministic, decide at row c and call this with from_row = c + run_ahead_rows before consumed(c).
        """
        self._weight_changes.append((from_row, list(weights)))
        self._send({"weights": list(weights), "from_row": from_row})

    def mixture(self, first_row: int, last_row: int) -> np.ndarray:
        """(number of sources,) predicted tokens of each source in rows first_row .. last_row - 1."""
        counts = np.zeros(self._num_sources, dtype=np.int64)
        for start in range(first_row, last_row, 4096):
            source = self._reader.rows(start, min(4096, last_row - start))["source"][:, 1:]
            counts += np.bincount(source.ravel(), minlength=len(counts))
        return counts

    def progress(self, num_rows: int) -> list[dict]:
        """What had been taken from each source when `num_rows` rows were there, or a little later (feeds.Progress)."""
        return self._reader.state_with(num_rows)["sources"]

    def close(self) -> None:
        """End the producer. Rows not yet committed are made again next time."""
        self._reap()


def _listen(stdout, events: queue.SimpleQueue) -> None:
    with stdout, suppress(ValueError):  # a sudden death may cut the last line
        for line in stdout:
            events.put(json.loads(line))
    events.put(None)


def _repeat(stderr, last_words: deque[str]) -> None:
    with stderr:
        for line in stderr:
            line = without_secrets(line)  # a library's log or a traceback, with the address it read
            last_words.append(line)
            sys.stderr.write(line)
