"""A trace of a few steps: PROFILE_STEPS=3 python main.py writes checkpoints/trace.json.gz.

It opens in Perfetto (ui.perfetto.dev) and in chrome://tracing. Profiled steps are slower; the
others are not affected.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from configs.errors import UserError

SKIPPED, WARM_UP = 5, 1  # steps before those in the trace

log = logging.getLogger(__name__)


def steps_asked_for() -> int:
    """Return PROFILE_STEPS, 0 if it is not set. Raises UserError if it is no number of steps."""
    asked = os.environ.get("PROFILE_STEPS", "")
    if asked and not re.fullmatch("[1-9][0-9]?|100", asked):
        raise UserError(f"PROFILE_STEPS is {asked[:20]!r} in the environment: give a number of steps from 1 to 100")
    return int(asked or 0)


@contextmanager
def profiler(folder: Path, is_first: bool) -> Iterator[Callable[[], None]]:
    """Yield a function to be called after each step, which does nothing without PROFILE_STEPS."""
    asked = steps_asked_for()
    if not asked or not is_first:
        yield lambda: None
        return
    from torch.profiler import profile, schedule

    path = folder / "trace.json.gz"

    def write(profiled: profile) -> None:
        try:
            profiled.export_chrome_trace(str(path))
        except OSError as error:
            log.warning("%s cannot be written (%s): training goes on.", path, error.strerror)
            return
        log.info("A trace of %s steps is in %s: open it in ui.perfetto.dev", asked, path)

    steps = schedule(wait=SKIPPED, warmup=WARM_UP, active=asked, repeat=1)
    with profile(schedule=steps, on_trace_ready=write) as profiled:
        yield profiled.step
