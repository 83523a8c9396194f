"""The progress of benchmarks as their user sees it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

from lm.runtime.terminal import is_terminal

LOG_SECONDS = 30  # between two lines of progress if there is no terminal

Say = Callable[[str], Any]


class Progress:
    """The progress of one benchmark: a bar in a terminal, or a line now and then."""

    def __init__(self, name: str, say: Say):
        self._name, self._say = name, say
        self._bar: tqdm | None = None
        self._last = time.monotonic()

    def update(self, done: int, total: int) -> None:
        """Show that `done` of `total` tokens have been read."""
        if is_terminal(sys.stderr):
            if self._bar is None:
                self._bar = tqdm(total=total, desc=self._name, unit="tok", unit_scale=True, dynamic_ncols=True)
            self._bar.update(done - self._bar.n)
        elif time.monotonic() - self._last >= LOG_SECONDS:
            self._last = time.monotonic()
            self._say(f"{self._name}: {done / total:.0%} read")

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
