"""The progress of a run in tokens: a bar in a terminal, or a line now and then in a log.

On ranks other than the first it shows nothing.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from aux_heads.metrics import in_brief
from configs.text import human_bytes, human_count, human_time
from lm.runtime.terminal import is_terminal
from lm.train.start_card import tokens_until_the_end

if TYPE_CHECKING:
    from tqdm import tqdm

    from lm.train.trainer import Trainer

LOG_SECONDS = 30  # between two lines if stderr is not a terminal
SECONDS_A_HEAD = 5  # the line shows one head at a time


def progress_bar(trainer: Trainer) -> tqdm | LogLines | Silent:
    """Return a context manager with the methods that the loop in main.py needs:
    `update` and `set_postfix_str`."""
    from tqdm import tqdm

    if not trainer.world.is_first:
        return Silent()
    seen = trainer.state.tokens_seen
    end = tokens_until_the_end(trainer.preset, trainer.stream.sources, trainer.token_budget, seen)
    if not is_terminal(sys.stderr):
        return LogLines(end, seen)
    return tqdm(
        total=end,
        initial=seen,
        unit="tok",
        unit_scale=True,
        dynamic_ncols=True,
        mininterval=0.5,
        maxinterval=0.5,
        smoothing=0.05,
    )


def headline(trainer: Trainer) -> str:
    """Return the end of the line: loss, skipped steps, epochs, the stream's status, the heads'
    measures (one head at a time; of held-out text, or of the last step before the first
    evaluation), the model FLOPs utilization, FLOPs per second and peak memory."""
    result, records = trainer.result, trainer.records
    parts = [f"loss {result.loss:.3f}"] if result else []
    if trainer.state.skipped_steps:
        parts.append(f"steps skipped: {trainer.state.skipped_steps}")
    if trainer.world.is_first:
        epochs = zip(trainer.labels, trainer.stream.epochs, strict=False)
        parts += [f"epoch {epoch + 1} of {label}" for label, epoch in epochs if epoch]
        parts.append(trainer.stream.status)
    measures = records.head_measures or (result.heads if result else {})
    parts.append(in_brief(measures, turn=int(time.monotonic() / SECONDS_A_HEAD)))
    if now := records.performance:
        memory = human_bytes(now.peak_memory_bytes)
        parts.append(f"MFU {now.utilization:.0%}, {now.flops_per_second / 1e12:.3g} TFLOP/s, {memory}")
    return ", ".join(filter(None, parts))


class Silent:
    def nothing(self, *_: object, **__: object) -> None:
        pass

    def __enter__(self) -> Silent:
        return self

    __exit__ = update = set_postfix_str = nothing


class LogLines:
    """Progress as whole lines on stderr, since tqdm moves the cursor even where there is none."""

    def __init__(self, total: int, seen: int):
        self.total, self.seen, self.postfix = total, seen, ""
        self._last_seen, self._last_time = seen, time.monotonic()

    def __enter__(self) -> LogLines:
        return self

    def __exit__(self, *_: object) -> None:
        if self.seen > self._last_seen:
            self._say()

    def update(self, num_tokens: int) -> None:
        self.seen += num_tokens
        if time.monotonic() - self._last_time >= LOG_SECONDS:
            self._say()

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:
        """Set the end of the line. `refresh` means that the next step is waiting for something:
        the text is printed at once."""
        self.postfix = text
        if refresh and text:
            print(text, file=sys.stderr, flush=True)

    def _say(self) -> None:
        now = time.monotonic()
        speed = (self.seen - self._last_seen) / max(now - self._last_time, 1e-9)
        self._last_seen, self._last_time = self.seen, now
        left = human_time(max(0, self.total - self.seen) / max(speed, 1e-9))
        line = (
            f"{human_count(self.seen)} of {human_count(self.total)} tokens, {human_count(speed)} tokens/s, {left} left"
        )
        print(", ".join([line, *([self.postfix] if self.postfix else [])]), file=sys.stderr, flush=True)
