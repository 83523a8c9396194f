"""The rows that a run trains on, read from its stream: they are the text that it has seen, or it ends."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np

from configs.errors import StreamDamaged, UserError
from data.packing import chain_digest
from data.producer_client import Stopped
from data.stream import Rows, Stream, StreamEnded
from lm.runtime.log import log_status
from lm.runtime.signals import StopRequest
from lm.schedule import StepPlan
from lm.train.run import Run
from lm.train.state import TrainState

log = logging.getLogger(__name__)

ROWS_AT_ONCE = 1024  # when the text trained on is checked


class Step(NamedTuple):
    plan: StepPlan
    tokens: np.ndarray  # (rows, T + 1) token ids
    source: np.ndarray  # (rows, T + 1) source index of each token
    loss_mask: np.ndarray | None  # (rows, T + 1) whether the loss counts each token; None: all
    waited: float = 0.0  # seconds spent waiting for them


def log_notices(stream: Stream) -> None:
    """Log what the data process noticed since the last call, such as a file that it skips."""
    for notice in stream.take_notices():
        log.info("%s", notice)


class RowReader:
    """Reads the rows of a run; on the first rank only, which alone has the stream."""

    def __init__(self, run: Run, stream: Stream, state: TrainState, stop: StopRequest):
        self._folder, self._seq_length = run.folder, run.preset.model.seq_length
        self._stream, self._state, self._stop = stream, state, stop

    def read(self, plan: StepPlan, on_status: Callable[[str], Any]) -> tuple[Step | None, bool]:
        """Return the rows of a step, fewer than planned where the sources end, or None if asked to stop
        or if there are none; and whether the sources ran out."""
        self._stream.consumed(plan.first_row)
        try:
            return Step(plan, *self._rows(plan, on_status)), False
        except Stopped:
            return None, False
        except StreamEnded as end:
            num_rows = end.num_rows - plan.first_row
            if num_rows <= 0:
                return None, True
            plan = plan._replace(num_rows=num_rows, num_tokens=num_rows * self._seq_length)
            return Step(plan, *self._rows(plan, on_status)), False
        finally:  # also of what then ended the data process
            log_notices(self._stream)

    def _rows(self, plan: StepPlan, on_status: Callable[[str], Any]) -> Rows:
        """Return what Stream.rows does. Damaged rows are made again, once, and compared with the
        text trained on."""
        try:
            return self._stream.rows(plan.first_row, plan.num_rows, self._stop, on_status)
        except StreamDamaged as damage:
            log.warning("%s", damage)
            self._stream.make_again(self._stop, log_status)
            self.check()
            return self._stream.rows(plan.first_row, plan.num_rows, self._stop, on_status)

    def check(self) -> None:
        """Raise UserError unless the rows that were trained on are the stream's, those included that
        were lost and are made again now."""
        digest = ""
        end = -(-self._state.tokens_seen // self._seq_length)  # the last row of a budget may be seen in part
        with suppress(StreamEnded):
            for first in range(0, end, ROWS_AT_ONCE):
                tokens, _, loss_mask = self._stream.rows(first, min(ROWS_AT_ONCE, end - first), self._stop, log_status)
                digest = chain_digest(digest, tokens, self._state.tokens_seen - first * self._seq_length, loss_mask)
        if digest != self._state.text_digest:
            self._stream.take_back()
            raise UserError(
                f"{self._folder / 'stream'} does not hold the text that this run was trained on: it is another run's, or it "
                "was damaged and its sources have changed. Restore these and start again, copy stream/ from where the run was "
                "before, or start a new run: this one is archived, not lost."
            )
