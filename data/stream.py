"""The trainer's side of the stream: rows by their numbers, in an order that is shuffled within windows (data/order.py).

Lives on global rank 0 only. It never reads a source, tokenizes or writes a row: data/producer.py does, in a process of
its own (data/producer_client.py).

Shapes: B rows, T seq_length: rows are (B, T+1) token ids and (B, T+1) source numbers.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from configs.schema import Preset
from data.heldout import HeldOut
from data.journal import JournalReader, run_ahead_rows
from data.order import RowOrder, window_edges
from data.packing import row_dtype
from data.prepare import HELD_OUT, tokenizer_path
from data.producer_client import ProducerProcess, SourceInfo


class StreamEnded(Exception):
    """Every source is used up. `num_rows`: all the rows there will ever be."""

    def __init__(self, num_rows: int):
        super().__init__(f"the sources are used up after {num_rows} rows")
        self.num_rows = num_rows


class StreamInfo(NamedTuple):
    vocab_size: int
    tokenizer_sha256: str
    tokenizer_path: Path
    held_out: HeldOut


def never() -> bool:
    return False


def ignore(status: str) -> None:
    pass


class Stream:
    """The run's rows, from the first to `token_budget`. Creating it starts the producer, which writes nothing before
    `begin()`; rows and `held_out` are there from then on.

    `start_row`: rows already trained on. `weight_changes`: [(from_row, weights)] so far, as given to change_weights.
    `begun_windows`: what `windows_begun(start_row)` was. `wait_seconds`: time spent blocked in rows().

    What waits may be left by `should_stop` (Stopped) and tells `on_status` what is being waited for.
    """

    held_out: HeldOut
    _reader: JournalReader

    def __init__(
        self,
        preset: Preset,
        checkpoint_dir: Path,
        token_budget: int,
        *,
        start_row: int = 0,
        weight_changes: Sequence[tuple[int, list[float]]] = (),
        begun_windows: Sequence[int] = (0,),
    ):
        self.seq_length = preset.model.seq_length
        self.run_ahead_rows = run_ahead_rows(self.seq_length, token_budget)
        num_rows = -(-token_budget // self.seq_length)
        self._order = RowOrder(window_edges(num_rows, self.run_ahead_rows, begun_windows), preset.train.seed)
        self.stream_dir = checkpoint_dir.absolute() / "stream"
        self.wait_seconds = 0.0
        self._weight_changes = [(int(row), list(weights)) for row, weights in weight_changes]
        request = {
            "preset": preset.to_json(),
            "stream_dir": str(self.stream_dir),
            "token_budget": token_budget,
            "weight_changes": self._weight_changes,
            "consumed": start_row,
            "wanted": start_row,
            "go": False,
        }
        self._process = ProducerProcess(request)

    @property
    def status(self) -> str:
        """What the producer is busy or in trouble with, or ""."""
        return self._process.status

    @property
    def epochs(self) -> dict[str, int]:
        """How often each source label has begun anew."""
        return self._process.epochs

    def wait_opened(
        self, should_stop: Callable[[], bool] = never, on_status: Callable[[str], Any] = ignore
    ) -> list[SourceInfo]:
        """Every source, in the order of the preset. Raises UserError naming all that cannot be used."""
        self._process.wait(lambda: self._process.opened, should_stop, on_status)
        return [info for _, info in sorted(self._process.sources.items())]

    def begin(self, should_stop: Callable[[], bool] = never, on_status: Callable[[str], Any] = ignore) -> StreamInfo:
        """From here on the producer writes into the checkpoint folder. Returns when held-out text and tokenizer are
        there and rows are coming. Raises what wait_opened does."""
        self._process.tell(go=True)
        ready = self._process.wait(lambda: self._process.ready, should_stop, on_status)
        self._reader = JournalReader(self.stream_dir, row_dtype(self.seq_length, ready["vocab_size"]))
        self._process.num_rows = self._reader.num_rows
        self.held_out = HeldOut.load(self.stream_dir / HELD_OUT)
        path = tokenizer_path(self.stream_dir)
        return StreamInfo(ready["vocab_size"], ready["tokenizer_sha256"], path, self.held_out)

    def rows(
        self,
        first: int,
        count: int,
        should_stop: Callable[[], bool] = never,
        on_status: Callable[[str], Any] = ignore,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows first .. first + count - 1: (count, T+1) tokens and (count, T+1) uint8 sources; waits for the end of their
        window.

        Raises StreamEnded if they will never be, UserError if the producer could not go on, Stopped.
        """
        end = max(self._order.window(first + count - 1)[1], first + count)
        if end > self._reader.num_rows():
            began = time.monotonic()
            self._process.tell(wanted=end)
            try:
                self._process.wait(
                    lambda: self._process.exhausted or end <= self._reader.num_rows(), should_stop, on_status
                )
            finally:
                self.wait_seconds += time.monotonic() - began
            if first + count > self._reader.num_rows():
                raise StreamEnded(self._reader.num_rows())
        else:
            self._process.look()
        journal_rows = self._order.journal_rows(first, count, self._reader.num_rows())
        lowest, highest = int(journal_rows.min()), int(journal_rows.max())
        records = self._reader.rows(lowest, highest + 1 - lowest)[journal_rows - lowest]
        return np.ascontiguousarray(records["tokens"]), np.ascontiguousarray(records["source"])

    def consumed(self, row: int) -> None:
        """Rows before `row` are trained on: the producer may run ahead of it."""
        self._process.tell(consumed=row)

    def change_weights(self, weights: Sequence[float], from_row: int) -> None:
        """New effective weights for documents chosen once `from_row` rows are produced.

        To stay deterministic, decide at row c and call this with from_row = c + run_ahead_rows before consumed(c).
        """
        self._weight_changes.append((from_row, list(weights)))
        self._process.tell(weight_changes=self._weight_changes)

    def windows_begun(self, row: int) -> list[int]:
        """The edges of the windows that rows before `row` are from: a run that is resumed reads these to their end, also
        if it is given another budget."""
        return self._order.edges_begun(row)

    def progress(self, num_rows: int) -> list[dict[str, Any]]:
        """What had been taken from each source when the journal had `num_rows` rows, or a little later (feeds.Progress)."""
        return self._reader.state_with(num_rows)["sources"]

    def close(self) -> None:
        """End the producer. Rows not yet committed are made again next time."""
        self._process.end()
