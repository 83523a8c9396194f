"""The trainer's side of the stream: rows by number, shuffled within windows (data/order.py).

Runs on global rank 0 only. It never reads a source, tokenizes or writes a row: data/producer.py
does, in a process of its own (data/producer_client.py). A window is read once, compared with its
digests, and kept in memory while it is trained on.

Shapes: B rows, T seq_length: rows are (B, T+1) token ids and (B, T+1) source numbers; with conversations
also (B, T+1) flags: whether the loss counts each token.
"""

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from configs.errors import StreamDamaged
from configs.schema import Preset
from data.feed import times_read
from data.heldout import HeldOut
from data.journal import JournalReader, run_ahead_rows
from data.order import RowOrder, finish_row, window_edges
from data.packing import row_dtype
from data.producer_client import ProducerProcess, SourceInfo
from data.stream_files import HELD_OUT, tokenizer_path


class StreamEnded(Exception):
    """Every source is used up. `num_rows`: the final number of rows."""

    def __init__(self, num_rows: int):
        super().__init__(f"the sources are used up after {num_rows} rows")
        self.num_rows = num_rows


class Rows(NamedTuple):
    tokens: np.ndarray  # (B, T+1) uint16 or uint32
    source: np.ndarray  # (B, T+1) uint8
    loss_mask: np.ndarray | None  # (B, T+1) bool; None: the loss counts all, as in every run without conversations


class StreamInfo(NamedTuple):
    vocab_size: int
    header: dict[str, Any]  # of the journal: what the stream is made from (data/prepare.py)
    tokenizer_path: Path
    held_out: HeldOut


def never() -> bool:
    return False


def ignore(status: str) -> None:
    pass


class Stream:
    """The rows of a run, up to `token_budget` tokens.

    Creating it starts the producer, which writes nothing before `begin()`; rows and `held_out`
    exist from then on. `start_row`: rows already trained on. `weight_changes`: the (from_row,
    weights) passed to change_weights so far. `begun_windows`: the earlier result of
    `windows_begun(start_row)`. `header`: of a resumed run, whose stream may have to be made again.
    `fresh`: what the folder has is another run's, to be archived before `begin`. `wait_seconds`: time spent
    blocked in rows(). `epochs`: of each source, how often it had been read where the rows read last begin
    (feed.py: times_read).

    Methods that wait raise Stopped once `should_stop` is true, and pass `on_status` what they wait
    for.
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
        header: dict[str, Any] | None = None,
        fresh: bool = False,
    ):
        self.seq_length = preset.model.seq_length
        self._has_loss_mask = preset.data.has_conversations
        self.run_ahead_rows = run_ahead_rows(self.seq_length, token_budget)
        num_rows = -(-token_budget // self.seq_length)
        finish = finish_row(preset.data.finish_share, self.seq_length, token_budget)
        self._order = RowOrder(window_edges(num_rows, self.run_ahead_rows, begun_windows, finish), preset.train.seed)
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
            "header": header,
            "fresh": fresh,
            "begun": begun_windows[-1],
            "go": False,
        }
        self._intact_rows = sys.maxsize  # before the first that was made again
        self._windows: dict[tuple[int, int], np.ndarray] = {}  # rows by (first, end) in the journal
        self.epochs: list[int] = []
        self._process = ProducerProcess(request)

    @property
    def status(self) -> str:
        """The current work or trouble of the producer, or ""."""
        return self._process.status

    def take_notices(self) -> list[str]:
        """Return what the producer noticed since the last call, such as a file that it skips."""
        notices, self._process.notices = self._process.notices, []
        return notices

    @property
    def sources(self) -> list[SourceInfo]:
        """The sources that are open, in the order of the preset."""
        return [info for _, info in sorted(self._process.sources.items())]

    def wait_opened(
        self, should_stop: Callable[[], bool] = never, on_status: Callable[[str], Any] = ignore
    ) -> list[SourceInfo]:
        """Return every source, in the order of the preset, once all are open.

        Raises UserError naming all that cannot be used.
        """
        self._process.wait(lambda: self._process.opened, should_stop, on_status)
        return self.sources

    def begin(self, should_stop: Callable[[], bool] = never, on_status: Callable[[str], Any] = ignore) -> StreamInfo:
        """Let the producer write into the checkpoint folder from here on.

        Return once tokenizer and held-out text exist and rows follow. Raises what wait_opened
        does.
        """
        self._process.tell(go=True)
        ready = self._wait_ready(should_stop, on_status)
        self._process.tell(header=ready["header"])  # of this run from now on, whatever becomes of its file
        self.held_out = HeldOut.load(self.stream_dir / HELD_OUT)
        return StreamInfo(ready["vocab_size"], ready["header"], tokenizer_path(self.stream_dir), self.held_out)

    def make_again(self, should_stop: Callable[[], bool] = never, on_status: Callable[[str], Any] = ignore) -> None:
        """Let a new producer look for damage, and make again what is damaged."""
        self._process.restart()
        self._wait_ready(should_stop, on_status)

    def take_back(self) -> None:
        """End the producer, and remove the rows that were made again: they are not those that were
        lost."""
        self.close()
        self._reader.cut(self._intact_rows)

    def _wait_ready(self, should_stop: Callable[[], bool], on_status: Callable[[str], Any]) -> dict[str, Any]:
        ready = self._process.wait(lambda: self._process.ready, should_stop, on_status)
        if ready["lost"]:
            on_status(f"{self.stream_dir} was damaged or incomplete. Made again: {', '.join(ready['lost'])}")
        self._open(ready)
        return ready

    def _open(self, ready: dict[str, Any]) -> None:
        self._ready = ready
        if ready["lost"]:
            self._intact_rows = min(self._intact_rows, ready["rows"])
        dtype = row_dtype(self.seq_length, ready["vocab_size"], loss_mask=self._has_loss_mask)
        self._reader = JournalReader(self.stream_dir, dtype)
        self._windows = {}
        self._process.num_rows = self._reader.num_rows

    def _num_rows(self) -> int:
        """Return the number of rows so far. Raises StreamDamaged if a producer that was started
        again has found damage, and cut it."""
        if (ready := self._process.ready) and ready is not self._ready:
            self._open(ready)
            if ready["lost"]:
                raise StreamDamaged(f"{self.stream_dir} was damaged. Made again: {', '.join(ready['lost'])}")
        return self._reader.num_rows()

    def rows(
        self,
        first: int,
        count: int,
        should_stop: Callable[[], bool] = never,
        on_status: Callable[[str], Any] = ignore,
    ) -> Rows:
        """Return rows first .. first + count - 1.

        Wait for the end of their window. Raises StreamEnded if they will never exist, UserError if
        the producer failed, StreamDamaged, or Stopped.
        """
        end = max(self._order.window(first + count - 1)[1], first + count)
        if end > self._num_rows():
            began = time.monotonic()
            self._process.tell(wanted=end)
            try:
                self._process.wait(lambda: self._process.exhausted or end <= self._num_rows(), should_stop, on_status)
            finally:
                self.wait_seconds += time.monotonic() - began
            if first + count > self._num_rows():
                raise StreamEnded(self._num_rows())
        else:
            self._process.handle_events()
        windows, parts = {}, []
        for start, stop, places in self._order.places(first, count, self._num_rows()):
            window = self._windows.get((start, stop))
            if window is None:
                window = self._reader.rows(start, stop - start)
                self.epochs = list(map(times_read, self.progress(start)))
            windows[start, stop] = window
            parts.append(windows[start, stop][places])
        self._windows = windows  # those of the last rows: training reads on in them
        records = np.concatenate(parts)
        tokens, source = np.ascontiguousarray(records["tokens"]), np.ascontiguousarray(records["source"])
        return Rows(tokens, source, np.ascontiguousarray(records["loss_mask"]) if self._has_loss_mask else None)

    def consumed(self, row: int) -> None:
        """Report rows before `row` as trained on: the producer may run ahead of it."""
        self._process.tell(consumed=row)

    def change_weights(self, weights: Sequence[float], from_row: int) -> None:
        """Set new effective weights for documents chosen once `from_row` rows are produced.

        For determinism, decide at row c and call this with from_row = c + run_ahead_rows before
        consumed(c).
        """
        self._weight_changes.append((from_row, list(weights)))
        self._process.tell(weight_changes=self._weight_changes)

    def windows_begun(self, row: int) -> list[int]:
        """Return the edges of the windows that hold rows before `row`.

        A resumed run reads these to their end, also with another budget.
        """
        return self._order.edges_begun(row)

    def progress(self, num_rows: int) -> list[dict[str, Any]]:
        """Return each source's feed.Progress at `num_rows` journal rows, or a little later."""
        return self._reader.state_with(num_rows)["sources"]

    def close(self) -> None:
        """End the producer. Rows not yet committed are produced again next time."""
        self._process.end()
