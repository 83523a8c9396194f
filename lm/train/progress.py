"""How far a run is: one line in tokens that a terminal shows again and again, or a line now and then in a log.

On ranks other than the first it shows nothing.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from aux_heads.metrics import in_brief
from configs.text import human_count, human_time
from lm.runtime.terminal import is_terminal

if TYPE_CHECKING:
    from tqdm import tqdm

    from lm.train.trainer import Run

LOG_SECONDS = 30  # between two lines when nobody watches a terminal
SECONDS_A_HEAD = 5  # the line shows one at a time


def progress_bar(run: Run) -> tqdm | LogLines | Silent:
    """Knows what the loop in main.py asks of it: `write`, `update`, `set_postfix_str`, and to be left."""
    from tqdm import tqdm

    if not run.world.is_first:
        return Silent()
    if not is_terminal(sys.stderr):
        return LogLines(run.token_budget, run.tokens_seen)
    return tqdm(
        total=run.token_budget,
        initial=run.tokens_seen,
        unit="tok",
        unit_scale=True,
        dynamic_ncols=True,
        mininterval=0.5,
        maxinterval=0.5,
        smoothing=0.05,
    )


def headline(run: Run) -> str:
    """The end of the line: loss, what stands in the way if something does, and a head in its turn: what it measured on
    held-out text, or before the first evaluation in a step."""
    parts = [f"loss {run.result.loss:.3f}"] if run.result else []
    if run.skipped_steps:
        parts.append(f"steps skipped: {run.skipped_steps}")
    if run.stream:
        parts += [f"epoch {epoch + 1} of {label}" for label, epoch in run.stream.epochs.items()]
    if run.stream and run.stream.status:
        parts.append(run.stream.status)
    measures = run.records.head_measures or (run.result.heads if run.result else {})
    parts.append(in_brief(measures, turn=int(time.monotonic() / SECONDS_A_HEAD)))
    return ", ".join(filter(None, parts))


class Silent:
    def nothing(self, *_: object, **__: object) -> None:
        pass

    def __enter__(self) -> Silent:
        return self

    __exit__ = write = update = set_postfix_str = nothing


class LogLines:
    """A whole line each time, on stderr: tqdm moves the cursor even where there is none."""

    def __init__(self, total: int, seen: int):
        self.total, self.seen, self.postfix = total, seen, ""
        self._last_seen, self._last_time = seen, time.monotonic()

    def __enter__(self) -> LogLines:
        return self

    def __exit__(self, *_: object) -> None:
        if self.seen > self._last_seen:
            self._say()

    def write(self, text: str) -> None:
        print(text, flush=True)

    def update(self, num_tokens: int) -> None:
        self.seen += num_tokens
        if time.monotonic() - self._last_time >= LOG_SECONDS:
            self._say()

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:
        """`refresh`: it stands in the way of the next step, so it is said at once."""
        self.postfix = text
        if refresh:
            print(text, file=sys.stderr, flush=True)

    def _say(self) -> None:
        now = time.monotonic()
        speed = (self.seen - self._last_seen) / max(now - self._last_time, 1e-9)
        self._last_seen, self._last_time = self.seen, now
        left = human_time((self.total - self.seen) / max(speed, 1e-9))
        line = (
            f"{human_count(self.seen)} of {human_count(self.total)} tokens, {human_count(speed)} tokens/s, {left} left"
        )
        print(", ".join([line, *([self.postfix] if self.postfix else [])]), file=sys.stderr, flush=True)
