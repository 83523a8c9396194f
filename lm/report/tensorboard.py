"""metrics.jsonl as event files over tokens, if the package `tensorboard` is installed.

They are a mirror, rewritten from metrics.jsonl whenever a run starts or resumes: lines cut there
are cut here, and a run that began without TensorBoard shows its whole curve. TensorBoard's own
`purge_step` is not used, since version 2.21 shows the points beyond it all the same.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from data.files import set_aside
from lm.report.metrics import NullLog

log = logging.getLogger(__name__)

STEPS = (
    "loss", "bits_per_byte", "lr", "tokens_per_second", "data_wait_fraction", "grad_norm", "mfu", "peak_memory_bytes",
    "skipped_steps",
)  # fmt: skip
FLUSH_SECONDS = 30  # largest delay of a curve; a thread of its own writes


def event_log(folder: Path, records: Iterable[dict[str, Any]]) -> EventLog | NullLog:
    """Replace the event files in `folder` by ones with `records`; by none without TensorBoard."""
    try:
        if os.path.lexists(folder) and (folder.is_symlink() or not folder.is_dir()):
            log.warning("%s is no folder: it is now %s, and a new one is made.", folder, set_aside(folder).name)
        for events in folder.glob("events.out.tfevents.*"):
            if not events.is_dir():
                events.unlink()
    except OSError as error:
        log.warning("%s cannot be written (%s). The run goes on without it.", folder, error)
        return NullLog()
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return NullLog()
    except Exception as error:  # such as of a protobuf that does not fit it
        log.warning("TensorBoard cannot be imported (%s). The run goes on without it.", error)
        return NullLog()
    event_log = EventLog(folder, partial(SummaryWriter, folder, max_queue=1_000, flush_secs=FLUSH_SECONDS))
    for record in records:
        event_log.write(record)
    return event_log


class EventLog:
    """The writer of event files; the first write that the disk refuses is the last, until the next
    start makes the files anew."""

    def __init__(self, folder: Path, make_writer: Callable[[], Any]):
        self._folder, self._writer = folder, None
        with self._until_refused():
            self._writer = make_writer()

    def write(self, record: dict[str, Any]) -> None:
        """Write the points of `record`, a line of metrics.jsonl."""
        with self._until_refused():
            for name, value in scalars(record):
                if self._writer:
                    self._writer.add_scalar(name, value, record["tokens"])

    def close(self) -> None:
        with self._until_refused():
            if self._writer:
                self._writer.close()

    @contextmanager
    def _until_refused(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._writer = None
            log.warning("%s cannot be written (%s): the next start makes it anew.", self._folder, error.strerror)


def scalars(record: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield ("group/curve", value) for each curve that a line of metrics.jsonl adds a point to."""
    held_out = record.get("eval") or {}
    per_source = (held_out.get("per_source") or {}).items()
    groups = {
        "training": {key: record.get(key) for key in STEPS},
        "held out": {key: held_out.get(key) for key in ("loss", "bits_per_byte")},
        "held-out bits per byte": {label: source.get("bits_per_byte") for label, source in per_source},
        "mixture": record.get("mixture") or {},
        "heads": record.get("heads") or {},
    }
    for group, values in groups.items():
        for name, value in values.items():
            if value is not None:
                yield f"{group}/{name}", value
