"""metrics.jsonl as a run of Weights & Biases or Trackio, if the preset names one (`train.report_to`).

A mirror, like lm/report/tensorboard.py: each start of the program makes a run there of its own,
with the whole curve from the first token on, since neither can cut what was sent. A tracker that
is missing or fails is reported once, and the run goes on without it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from configs.schema import Preset
from data.sources.hub_client import first_line
from lm.report.metrics import NullLog
from lm.report.tensorboard import scalars

log = logging.getLogger(__name__)

PROJECT = "small-lm-trainer"


def tracker_log(preset: Preset, folder: Path, records: Iterable[dict[str, Any]]) -> TrackerLog | NullLog:
    """Begin a run with `records` in the preset's tracker, if it has one that is installed. Files go
    into `folder`, where the tracker lets us choose."""
    package = preset.train.report_to
    if package is None:
        return NullLog()
    try:
        module = import_module(package)
        module.init  # noqa: B018  # not in a mere folder of that name, such as wandb leaves behind
    except (ImportError, AttributeError):
        log.warning(
            f"train.report_to is {package!r}, which is not installed: python -m pip install {package}. The run goes on "
            "without it; metrics.jsonl has everything."
        )
        return NullLog()
    except Exception as error:  # of any kind: of a package that does not fit the others that are installed
        log.warning("train.report_to: %s cannot be imported (%s). The run goes on without it.", package, error)
        return NullLog()
    tracker = TrackerLog(module)
    tracker.attempt(_begin, module, preset, folder)
    for record in records:
        tracker.write(record)
    return tracker


def _begin(module: ModuleType, preset: Preset, folder: Path) -> None:
    options: dict[str, Any] = {}
    if module.__name__ == "wandb":  # it would copy what is printed, and wait for ever for a person to log in
        options["settings"] = module.Settings(console="off", login_timeout=60, init_timeout=60)
        options["dir"] = str(folder)
    module.init(project=PROJECT, group=preset.name, config=json.loads(preset.to_json()), **options)


class TrackerLog:
    def __init__(self, module: ModuleType):
        self._module = module
        self._failed = False

    def write(self, record: dict[str, Any]) -> None:
        """Send the points of `record`, a line of metrics.jsonl."""
        if points := dict(scalars(record)):
            self.attempt(self._module.log, points, step=record["tokens"])

    def close(self) -> None:
        """Wait until all is sent."""
        self.attempt(self._module.finish)

    def attempt(self, call: Callable[..., Any], *args: Any, **options: Any) -> None:
        """Call a function of the tracker, unless one has failed before."""
        if self._failed:
            return
        try:
            call(*args, **options)
        except Exception as error:  # of any kind: it is another program
            self._failed = True
            log.warning(
                f"{self._module.__name__} has failed ({first_line(error)}). The run goes on without it; metrics.jsonl has "
                "everything."
            )
