"""The metrics of a run: metrics.jsonl, append-only.

It is cut back on resume, so that no step is recorded twice, and survives a torn last line. Ranks
other than the first use `NullLog`. Never here: measuring, plots (lm/report/figures.py), the
terminal.

One JSON object per line: `tokens, words, step, loss, bits_per_byte` (with the nats of special tokens,
which `eval` leaves out), `lr, tokens_per_second, data_wait_fraction, grad_norm, flops_per_token`
(estimated), `mfu` (model FLOPs as a share of this machine's measured matmul peak),
`peak_memory_bytes`; lines of evaluations have `eval`
(`Evaluation.to_json`), `mixture` {source: share}, with a finish `finish_from` (tokens before it), the last
with `overlapping` and `canonical` (lm/train/held_out.py),
`sources` {source: {documents, tokens, bytes, epoch, retries, skipped, asked, realised}} and
`heads` {"head/measure": value}, on held-out text like `eval`. A line with `resumed` (when, on what
machine) marks a resume, one with `adapted` new weights and their reasons, one with `benchmarks`
results (lm/evaluation/benchmarks.py), one with `best` which checkpoint was exported
(lm/train/best.py). Non-finite numbers become null.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.files import write_atomically
from lm.report.record import parse_record
from lm.runtime.files import Appender, keep_copy, set_aside_unless_log, whole_lines

if TYPE_CHECKING:
    from lm.train_step import StepResult


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the records of a metrics.jsonl in order; [] without a file.

    Lines that were torn, or that `MetricsLog` did not write, are skipped.
    """
    return [record for record in map(parse_record, whole_lines(path)) if record]


class MetricsLog:
    """The writer of metrics.jsonl: each record is written at once, and passed to `mirrors`."""

    def __init__(self, path: Path):
        self.path = path
        set_aside_unless_log(path)
        self.mirrors: list[Any] = []  # also receive records (lm/report/tensorboard.py, lm/report/tracker.py)
        self._file = Appender(path)

    def write(self, record: dict[str, Any]) -> None:
        """Append a record with "tokens" seen. Values are JSON values, 0-d arrays or tensors."""
        record = _finite(record)
        self._file.write(json.dumps(record, allow_nan=False) + "\n")
        for mirror in self.mirrors:
            mirror.write(record)

    def sync(self) -> None:
        """Force all records to the disk, before a checkpoint that counts on them."""
        self._file.sync()

    def keep(self, is_kept: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
        """Cut the lines for which `is_kept` is false, and torn ones; returns the records left.

        A file with other lines is set aside.
        """
        records = [parse_record(line) for line in whole_lines(self.path)]
        if None in records:
            keep_copy(self.path, "lines that are no measurements")
        kept = [record for record in records if record and is_kept(record)]
        self._file.close()
        write_atomically(self.path, "".join(json.dumps(record) + "\n" for record in kept).encode())
        return kept

    def close(self) -> None:
        self._file.close()
        for mirror in self.mirrors:
            mirror.close()


class NullLog:
    """A log that writes nothing, for every rank but the first."""

    def write(self, *_: Any) -> None:
        pass

    def sync(self) -> None:
        pass

    def close(self) -> None:
        pass


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def usual_seconds(steps: Sequence[float]) -> float:
    """Return the mean seconds of `steps` without those that took ten times the median, and ten seconds: they waited for a
    network that was down, or the process was suspended."""
    longest = max(10.0, 10 * statistics.median(steps))
    return statistics.mean(seconds for seconds in steps if seconds <= longest)


class Interval:
    """The steps since the last line of metrics.jsonl: means, and their time without pauses."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.num_steps = self._tokens = self._skipped = 0
        self._num_targets = self._bytes = 0  # of steps that were not skipped, as are the two below
        self._nats = self._norm = 0.0
        self._waited = 0.0

    def took(self, seconds: float, *, waited: float = 0.0) -> None:
        """Add `seconds` of training, `waited` of them for rows (the GPU may have been busy)."""
        self.seconds += seconds
        self._waited += waited

    def add(self, result: StepResult, num_tokens: int, num_targets: int, num_bytes: int) -> None:
        """Add the result of one step over `num_tokens`, of which the loss counts `num_targets` with `num_bytes` of text."""
        self.num_steps += 1
        self._tokens += num_tokens
        if result.skipped:
            self._skipped += 1
            return
        self._num_targets += num_targets
        self._bytes += num_bytes
        self._nats += result.loss * num_targets
        self._norm += result.gradient_norm

    def means(self) -> dict[str, float | int | None]:
        """Return the means over the steps (None if all were skipped) and their speed."""
        sound = self.num_steps - self._skipped
        record = {
            "loss": self._nats / max(1, self._num_targets) if sound else None,
            "bits_per_byte": self._nats / math.log(2) / max(1, self._bytes) if sound else None,
            "tokens_per_second": self._tokens / self.seconds,
            "data_wait_fraction": self._waited / self.seconds,
            "grad_norm": self._norm / sound if sound else None,
        }
        return record | ({"skipped_steps": self._skipped} if self._skipped else {})
