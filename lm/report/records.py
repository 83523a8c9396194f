"""What a run writes down while it trains, and what of it was written before the run was taken up again.

The logs are cut back to the checkpoint, which may be older than their last lines. What is done again after it, at the
very same tokens, is written only if it does not stand there yet. Never here: what is measured (lm/train/events.py), how a log
is kept (lm/report/metrics.py, lm/report/samples.py).
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lm.evaluate import Evaluation
from lm.report.metrics import Interval, MetricsLog, NullLog
from lm.report.samples import Sample, SampleLog
from lm.report.tensorboard import event_log
from lm.runtime.distributed import World

LINES_PER_RUN = 1_000  # about so many lines in metrics.jsonl, whatever the budget


class Records:
    """metrics.jsonl and samples.md of a run. Ranks other than the first know what is in them and write nothing."""

    def __init__(self, tokens_seen: int, token_budget: int, seconds: float):
        """`seconds`: of training so far."""
        self.seconds = seconds
        self.interval = Interval()
        self.evaluated = (0, 0)  # tokens seen at the last evaluation, and the tokens it was of
        self.adapted = self.sampled = 0  # tokens seen at the last move of the mixture, and at the last samples
        self.head_measures: dict[str, float] = {}  # of the last evaluation
        self._metrics: MetricsLog | NullLog = NullLog()
        self._samples: SampleLog | NullLog = NullLog()
        self._tokens_a_line, self._last_line = token_budget / LINES_PER_RUN, tokens_seen

    def open(self, folder: Path, world: World, tokens_seen: int) -> None:
        """Cuts the logs in `folder` back to `tokens_seen`."""
        found = world.from_first(lambda: self._open(folder, tokens_seen))
        self.evaluated, self.adapted, self.sampled, self.head_measures = found

    def _open(self, folder: Path, tokens_seen: int) -> tuple[tuple[int, int], int, int, dict[str, float]]:
        self._metrics, self._samples = MetricsLog(folder / "metrics.jsonl"), SampleLog(folder / "samples.md")
        lines = self._metrics.truncate_after(tokens_seen)
        sections = self._samples.truncate_after(tokens_seen)
        self._metrics.mirror = event_log(folder / "tensorboard", lines)
        evaluated = ((line["tokens"], line["eval"]["tokens"]) for line in lines if line.get("eval"))
        adapted = (line["tokens"] for line in lines if "adapted" in line)
        sampled = (section.tokens for section in sections)
        heads = [line["heads"] for line in lines if line.get("heads")]
        return max(evaluated, default=(0, 0)), max(adapted, default=0), max(sampled, default=0), [{}, *heads][-1]

    def write_resumed(self, tokens_seen: int, machine: str) -> None:
        self._metrics.write({"tokens": tokens_seen, "resumed": f"{time.strftime('%Y-%m-%d %H:%M')}, {machine}"})

    def line_ends(self, tokens_seen: int) -> bool:
        """Whether a line of metrics.jsonl ends with the step that ends here; then the next line begins."""
        ends = tokens_seen - self._last_line >= self._tokens_a_line
        if ends:
            self._last_line = tokens_seen
        return ends

    def write_steps(self, line: dict[str, Any]) -> None:
        """`line` and the means of the steps since the last one."""
        self._metrics.write(line | self.interval.means())
        self.seconds += self.interval.seconds
        self.interval = Interval()

    def write_evaluation(self, line: dict[str, Any], evaluation: Evaluation, head_measures: dict[str, float]) -> None:
        """`line`, held-out losses and what the heads measured, unless it stands there."""
        self.head_measures = head_measures
        if (line["tokens"], evaluation.tokens) <= self.evaluated:
            return
        self.evaluated = (line["tokens"], evaluation.tokens)
        heads = {"heads": head_measures} if head_measures else {}
        self._metrics.write(line | {"eval": evaluation.to_json()} | heads)

    def write_move(self, tokens_seen: int, move: dict[str, Any]) -> None:
        """New weights of the sources, and why, unless it stands there."""
        if tokens_seen > self.adapted:
            self.adapted = tokens_seen
            self._metrics.write({"tokens": tokens_seen, "adapted": move})

    def samples_are_missing(self, tokens_seen: int) -> bool:
        """Whether samples of so many tokens do not stand there; from now on they count as if they did."""
        before, self.sampled = self.sampled, tokens_seen
        return before != tokens_seen

    def write_samples(self, tokens_seen: int, samples: Iterable[Sample]) -> None:
        self._samples.write(tokens_seen, samples)

    def close(self) -> None:
        self._metrics.close()
