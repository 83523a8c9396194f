"""The records of a run: metrics.jsonl, samples.md, and the resolved preset.

On resume the logs are cut back to the checkpoint: steps after its tokens, and events after the
last of their kind that it includes, are removed and then repeated. Never here: measuring
(lm/train/events.py and held_out.py), the files themselves (metrics.py, samples.py).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from configs.schema import Preset
from data.files import set_aside, write_atomically
from lm.evaluate import Evaluation
from lm.report.metrics import Interval, MetricsLog, NullLog, read_metrics
from lm.report.samples import Sample, SampleLog
from lm.report.tensorboard import event_log
from lm.report.tracker import tracker_log
from lm.train.run import Run
from lm.train.state import TrainState

log = logging.getLogger(__name__)

LINES_PER_RUN = 1_000  # lines in metrics.jsonl, approximately, for any budget


class Performance(NamedTuple):
    """What the steps of a line of metrics.jsonl made of the machine."""

    utilization: float  # model FLOPs utilization (MFU)
    flops_per_second: float  # on all devices
    peak_memory_bytes: int  # of the first rank's device


class Records:
    """The logs of a run. Ranks other than the first write nothing."""

    def __init__(self, run: Run, state: TrainState, peak_flops: float):
        """`peak_flops`: of matrix products, per second on all devices."""
        self.state, self._run = state, state.run_id[:8]
        self.performance: Performance | None = None  # of the last line of steps
        self._peak_flops = peak_flops
        self.interval = Interval()
        self._metrics: MetricsLog | NullLog = NullLog()
        self._samples: SampleLog | NullLog = NullLog()
        self._token_budget, self._tokens_a_line = run.token_budget, run.token_budget / LINES_PER_RUN
        self.last_line = state.tokens_seen  # at its end
        self.head_measures: dict[str, float] = run.world.from_first(
            self._open, run.folder, run.preset
        )  # of the last evaluation

    def _open(self, folder: Path, preset: Preset) -> dict[str, float]:
        paths = folder / "metrics.jsonl", folder / "samples.md"
        # A checkpoint was copied to where another run was. What precedes the first one is cut below.
        if self.state.tokens_seen and any(line.get("run", self._run) != self._run for line in read_metrics(paths[0])):
            for path in filter(Path.is_file, paths):
                log.warning("%s is of another run: it is now %s, and a new one begins.", path, set_aside(path).name)
        self._metrics, self._samples = MetricsLog(paths[0]), SampleLog(paths[1])
        write_atomically(folder / "preset.json", (preset.to_json() + "\n").encode())
        lines = self._metrics.keep(self._is_known)
        self._samples.truncate_after(self.state.sampled)
        self._metrics.mirrors = [event_log(folder / "tensorboard", lines), tracker_log(preset, folder, lines)]
        return next((line["heads"] for line in reversed(lines) if line.get("heads")), {})

    def _is_known(self, line: dict[str, Any]) -> bool:
        """Return whether the state includes what the line records."""
        state = self.state
        if "eval" in line or "best" in line:
            # What ends a run is measured again, until there is a report.
            last = min(state.evaluated, state.tokens_seen - state.is_trained(self._token_budget))
        else:
            last = state.adapted if "adapted" in line else state.tokens_seen
        return line["tokens"] <= last

    def write_resumed(self, machine: str) -> None:
        when = time.strftime("%Y-%m-%d %H:%M")
        self._metrics.write({"tokens": self.state.tokens_seen, "resumed": f"{when}, {machine}"})

    def line_is_due(self, tokens_seen: int) -> bool:
        """Return whether the step that reaches `tokens_seen` is the last of its line in metrics.jsonl."""
        return tokens_seen - self.last_line >= self._tokens_a_line

    def write_steps(self, line: dict[str, Any]) -> None:
        """Write `line` and the means of the steps since the last one."""
        means = self.interval.means()
        flops = (means["tokens_per_second"] or 0.0) * line["flops_per_token"]
        self.performance = Performance(flops / self._peak_flops, flops, line["peak_memory_bytes"])
        self._metrics.write(line | means | {"mfu": self.performance.utilization, "run": self._run})
        self.state.seconds += self.interval.seconds
        self.interval = Interval()

    def write_evaluation(self, line: dict[str, Any], evaluation: Evaluation, head_measures: dict[str, float]) -> None:
        """Write held-out losses and the heads' measures, with the sources' entries in `line`."""
        self.head_measures, self.state.evaluated = head_measures, self.state.tokens_seen
        heads = {"heads": head_measures} if head_measures else {}
        now = {"tokens": self.state.tokens_seen, "step": self.state.num_steps}
        self._metrics.write(now | line | {"eval": evaluation.to_json()} | heads)

    def write_choice(self, best: dict[str, Any]) -> None:
        """Write how the best checkpoint compares with the last (lm/train/best.py)."""
        self._metrics.write({"tokens": self.state.tokens_seen, "best": best})

    def write_adaptation(self, adaptation: dict[str, Any]) -> None:
        """Write new weights of the sources, and the reasons."""
        self.state.adapted = self.state.tokens_seen
        self._metrics.write({"tokens": self.state.tokens_seen, "adapted": adaptation})

    def write_samples(self, samples: Iterable[Sample]) -> None:
        self.state.sampled = self.state.tokens_seen
        self._samples.write(self.state.tokens_seen, samples)

    def sync(self) -> None:
        """Force the logs to the disk: a checkpoint counts on them, since it holds how far they are."""
        self._metrics.sync()
        self._samples.sync()

    def close(self) -> None:
        self._metrics.close()
        self._samples.close()
