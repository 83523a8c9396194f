"""The numbers a run writes down while it trains: metrics.jsonl, append-only.

It is cut back on resume, so that no step is recorded twice, and survives a torn last line. Ranks other than the first use
`NullLog`. Never here: what is measured, plots (lm/report/figures.py), the terminal.

metrics.jsonl: one JSON object a line: `tokens, step, loss, bits_per_byte, lr, tokens_per_second, data_wait_fraction,
grad_norm, flops_per_token` (estimated), `mfu` (model FLOPs as a share of this machine's measured matmul peak),
`peak_memory_bytes`; where they were taken also `eval` (`Evaluation.to_json`), `mixture` {source: share}, `sources` {source:
{documents, tokens, bytes, epoch, retries, skipped, asked, realised}}, `heads` {"head/measure": value}, on held-out text
like `eval`; a line with `resumed` (when, on what) marks where a run was taken up again, one with `adapted` tells of new
weights and why. Numbers that are not finite become null.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm.runtime.files import replace_text, whole_lines

if TYPE_CHECKING:
    from lm.train_step import StepResult


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All records of a metrics.jsonl, in order; lines that a crash tore are left out, a missing file is empty."""
    records = []
    for line in whole_lines(path):
        try:
            record = json.loads(line)
        except ValueError:  # torn, then appended to: a crash without a resume that cuts back
            continue
        if isinstance(record, dict) and "tokens" in record:
            records.append(record)
    return records


class MetricsLog:
    """Appends records to metrics.jsonl; every line is handed to the operating system at once, and to `mirror`."""

    def __init__(self, path: Path):
        self.path = path
        self.mirror: Any = NullLog()  # what else shows the records (lm/report/tensorboard.py)
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: dict[str, Any]) -> None:
        """`record["tokens"]` is the number of tokens seen; values are JSON values or 0-d arrays and tensors."""
        record = _finite(record)
        self._file.write(json.dumps(record, allow_nan=False) + "\n")
        self._file.flush()
        self.mirror.write(record)

    def keep(self, is_kept: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
        """Cut the lines that are not to be kept, and torn ones; returns the records left."""
        kept = [record for record in read_metrics(self.path) if is_kept(record)]
        self._file.close()
        replace_text(self.path, "".join(json.dumps(record) + "\n" for record in kept))
        self._file = self.path.open("a", encoding="utf-8")
        return kept

    def close(self) -> None:
        self._file.close()
        self.mirror.close()


class NullLog:
    """Writes nothing: the log of every rank but the first."""

    def write(self, *_: Any) -> None:
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


class Interval:
    """What happened since the last line of metrics.jsonl: means of the steps, and the time they took without pauses."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.num_steps = self._tokens = self._skipped = 0
        self._learnt = self._bytes = 0  # of the steps that were not skipped, as are the two below
        self._nats = self._norm = 0.0
        self._waited = 0.0

    def took(self, seconds: float, *, waited: float = 0.0) -> None:
        """So many seconds of training went by, `waited` of them for rows (a GPU may have been busy meanwhile)."""
        self.seconds += seconds
        self._waited += waited

    def add(self, result: StepResult, num_tokens: int, num_bytes: int) -> None:
        """What came of one step over `num_tokens` targets, `num_bytes` of text."""
        self.num_steps += 1
        self._tokens += num_tokens
        if result.skipped:
            self._skipped += 1
            return
        self._learnt += num_tokens
        self._bytes += num_bytes
        self._nats += result.loss * num_tokens
        self._norm += result.gradient_norm

    def means(self) -> dict[str, float | int | None]:
        """What was learnt (None if every step was skipped) and how fast."""
        sound = self.num_steps - self._skipped
        record = {
            "loss": self._nats / self._learnt if sound else None,
            "bits_per_byte": self._nats / math.log(2) / max(1, self._bytes) if sound else None,
            "tokens_per_second": self._tokens / self.seconds,
            "data_wait_fraction": self._waited / self.seconds,
            "grad_norm": self._norm / sound if sound else None,
        }
        return record | ({"skipped_steps": self._skipped} if self._skipped else {})
