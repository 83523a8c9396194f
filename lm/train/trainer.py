"""One run: where the stream stands, what was learnt from it, and what is saved of both.

`main.py` holds the loop and calls what is here. Like main, this file may import every room; only other modules at the
top, tests and benchmarks import it. Nothing in it is random, so a run taken up again does what it would have done.
"""

from __future__ import annotations

import platform
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from aux_heads.metrics import MEASURES
from configs.diff import changes
from configs.schema import Preset, UserError, parse_preset
from configs.text import counted, human_time
from data import tokenizer as bpe
from data.mixing import shares
from data.packing import chain_digest
from data.producer_client import Stopped
from data.stream import Stream, StreamEnded
from lm.checkpoint.saver import Saver
from lm.evaluate import Evaluation
from lm.learner import Learner
from lm.optim import learning_rate_factor, set_learning_rate
from lm.report.export import export
from lm.report.records import Records
from lm.report.report import write_report
from lm.runtime.distributed import World
from lm.runtime.machine import device_name
from lm.runtime.signals import StopRequest
from lm.train_step import Launched, StepPlan, StepResult, plan_step

Found = TypeVar("Found")
STEPS_AHEAD = {"cpu": 0, "cuda": 1}  # launched, and not settled yet: a GPU has the next step before it ends one


class Step(NamedTuple):
    plan: StepPlan
    tokens: np.ndarray  # (rows, T + 1) token ids
    source: np.ndarray  # (rows, T + 1) index of the source of each
    waited: float = 0.0  # seconds it took to get them


class Run:
    """Built by `Run(...)`, tried by dry_run.py, begun by `begin`; then `next_step` and `train_on` until it is `done`."""

    def __init__(
        self,
        preset: Preset,
        world: World,
        folder: Path,
        token_budget: int,
        state: dict | None,
        stop: StopRequest,
    ):
        """`state`: the checkpoint to go on from. Opens the sources (phase 1 of the producer); writes nothing.

        Raises UserError for a model that memory cannot hold, a tokenizer that cannot be read, heads without room.
        """
        self.preset, self.world, self.folder, self.token_budget, self.stop = preset, world, folder, token_budget, stop
        state = state or {}
        self.tokens_seen: int = state.get("tokens_seen", 0)
        self.exhausted: bool = state.get("exhausted", False)
        position = state.get("stream_position", {"weight_changes": [], "adaptive": None})
        self.weight_changes: list = [list(change) for change in position["weight_changes"]]
        self._begun_windows: list[int] = position.get("windows_begun", [0])
        self.adaptive: dict = position["adaptive"] or {
            "tokens": 0,
            "factors": [1.0] * len(preset.data.all_sources),
            "bits_per_byte": {},
        }
        self.global_batch_rows = preset.train.rows_per_process * world.size
        if state and not self._batch_was_edited(state["preset"]):
            self.global_batch_rows = state["global_batch_rows"]  # however many processes there are now
        vocab_size, end_of_text = world.from_first(lambda: tokenizer_facts(preset))
        self.learner = Learner(
            preset,
            world,
            vocab_size=vocab_size,
            end_of_text=end_of_text,
            tokens_per_step=self.global_batch_rows * preset.model.seq_length,
        )
        self.stream = self._open_stream() if world.is_first else None  # after all that may be refused
        self.text_digest: str = position.get("text_digest", "")
        self._state = state
        self._saver = Saver(folder)
        self.num_steps: int = state.get("num_steps", 0)
        self.skipped_steps: int = state.get("skipped_steps", 0)
        self.last_saved = self.tokens_seen
        self.records = Records(self.tokens_seen, token_budget, state.get("seconds", 0.0))
        self.result: StepResult | None = None  # the last that is known
        # With the bytes of text in each, and the line of metrics.jsonl that ends with it, if one does.
        self._launched: deque[tuple[Launched, int, dict[str, Any] | None]] = deque()

    # ---- before the first step ----------------------------------------------------------------------------------

    def _batch_was_edited(self, preset_before: str) -> bool:
        edited = changes(parse_preset(preset_before, "the checkpoint"), self.preset)
        return not edited.keys().isdisjoint({"train.per_gpu_batch_size", "train.accumulation_steps"})

    def _open_stream(self) -> Stream:
        return Stream(
            self.preset,
            self.folder,
            self.token_budget,
            start_row=self.tokens_seen // self.preset.model.seq_length,
            weight_changes=self.weight_changes,
            begun_windows=self._begun_windows,
        )

    def from_stream(self, ask: Callable[[Stream], Found]) -> Found:
        """`ask(stream)` on the first rank, which alone has the stream; its answer on every rank."""

        def ask_stream() -> Found:
            assert self.stream, "the first rank's"
            return ask(self.stream)

        return self.world.from_first(ask_stream)

    def begin(self, say: Callable[[str], None]) -> None:
        """All is checked: the producer may write, logs are opened and cut back to the checkpoint, weights loaded."""
        self.stream_info = self.from_stream(lambda stream: stream.begin(on_status=say))
        self.labels = [source.label for source in self.preset.data.all_sources]
        self.records.open(self.folder, self.world, self.tokens_seen)
        if self.world.is_first:
            self.tokenizer = bpe.load(self.stream_info.tokenizer_path)
        self.token_bytes = self.world.from_first(self._token_bytes)
        self.held_out = self.from_stream(lambda stream: stream.held_out)
        rows_seen = self.tokens_seen // self.preset.model.seq_length
        self.source_tokens = self.from_stream(lambda stream: stream.mixture(0, rows_seen))
        if self._state:
            self._load_state(self._state)
            self.records.write_resumed(self.tokens_seen, self.machine)
        self._state = {}

    def _token_bytes(self) -> np.ndarray:
        """(V,) bytes behind each id; a tokenizer trained on little text has fewer tokens than the model has room for."""
        known = bpe.token_bytes(self.tokenizer)
        return np.pad(known, (0, self.learner.vocab_size - len(known)))

    def _load_state(self, state: dict) -> None:
        if state["tokenizer_sha256"] != self.stream_info.tokenizer_sha256:
            raise UserError(
                f"{self.folder / 'tokenizer.json'} is not the tokenizer this run was trained with "
                f"(sha256 {state['tokenizer_sha256'][:16]}...): put that one back to resume."
            )
        self.learner.load_state(state)

    # ---- a step -------------------------------------------------------------------------------------------------

    @property
    def progress(self) -> float:
        return self.tokens_seen / self.token_budget

    @property
    def done(self) -> bool:
        return self.tokens_seen >= self.token_budget or self.exhausted

    def next_step(self, say: Callable[[str], Any]) -> Step | None:
        """The next rows to train on; None when asked to stop, or when the sources are used up (`exhausted`). `say` hears
        what stands in the way while there are none."""
        began = time.perf_counter()
        plan = plan_step(self.tokens_seen, self.token_budget, self.global_batch_rows, self.preset.model.seq_length)
        step, self.exhausted = self.from_stream(lambda stream: self._read(stream, plan, say))
        return step and step._replace(waited=time.perf_counter() - began)

    def _read(self, stream: Stream, plan: StepPlan, say: Callable[[str], Any]) -> tuple[Step | None, bool]:
        self._saver.check()
        if self.stop():
            return None, False
        stream.consumed(plan.first_row)
        try:
            return Step(plan, *stream.rows(plan.first_row, plan.num_rows, self.stop, say)), False
        except Stopped:
            return None, False
        except StreamEnded as end:
            num_rows = end.num_rows - plan.first_row
            if num_rows <= 0:
                return None, True
            plan = plan._replace(num_rows=num_rows, num_tokens=num_rows * self.preset.model.seq_length)
            return Step(plan, *stream.rows(plan.first_row, num_rows, self.stop)), False

    def train_on(self, step: Step) -> bool:
        """False: asked to stop, and the step given up; the run is as it was before it."""
        began = time.perf_counter()
        train, plan = self.preset.train, step.plan
        factor = learning_rate_factor(self.tokens_seen, self.token_budget, train.warmup_fraction, train.decay_fraction)
        set_learning_rate(self.learner.optimizers, factor)
        launched = self.learner.train_step.launch(step.tokens, plan, self.progress, self.stop)
        if launched is None:
            return False
        self.text_digest = chain_digest(self.text_digest, step.tokens, plan.num_tokens)
        self.tokens_seen += plan.num_tokens
        self.num_steps += 1
        self.source_tokens += np.bincount(step.source[:, 1:].ravel(), minlength=len(self.source_tokens))
        self._learning_rate = factor * self.learner.optimizers[0].param_groups[0]["peak_lr"]
        line = self._line() if self.records.line_ends(self.tokens_seen) or self.done else None
        self._launched.append((launched, int(self.token_bytes[step.tokens[:, 1:]].sum()), line))
        self.records.interval.took(step.waited + time.perf_counter() - began, waited=step.waited)
        self.settle(0 if self.done else STEPS_AHEAD[self.world.device.type])
        return True

    def settle(self, ahead: int = 0) -> None:
        """Waits for what came of the steps launched, all but the last `ahead` of them (on every rank as many: it raises
        UserError, if too many were skipped)."""
        while len(self._launched) > ahead:
            began = time.perf_counter()
            launched, num_bytes, line = self._launched.popleft()
            self.result = self.learner.train_step.result_of(launched)
            self.skipped_steps += self.result.skipped
            self.records.interval.add(self.result, launched.num_tokens, num_bytes)
            self.records.interval.took(time.perf_counter() - began)
            if line:
                self.records.write_steps(line)

    def is_sound(self) -> bool:
        """Whether the last step was not skipped: else weights that may be to blame would replace good ones."""
        self.settle()
        return not self.learner.train_step.skipped_in_a_row

    def record(self) -> None:
        """One line of metrics.jsonl for the steps since the last one, if there were any."""
        self.settle()
        if self.records.interval.num_steps:
            self.records.write_steps(self._line())

    def _line(self) -> dict[str, Any]:
        """How a line begins that is written when its last step is settled."""
        return {"tokens": self.tokens_seen, "step": self.num_steps, "lr": self._learning_rate}

    def record_evaluation(
        self, evaluation: Evaluation, sources: dict[str, dict], head_measures: dict[str, float]
    ) -> None:
        """A line with held-out losses, the realised mixture, what was read for it and what the heads measured, unless it
        was written before this run was taken up again."""
        mixture = dict(zip(self.labels, shares(self.source_tokens.tolist()), strict=True))
        line = {"tokens": self.tokens_seen, "step": self.num_steps, "mixture": mixture, "sources": sources}
        self.records.write_evaluation(line, evaluation, head_measures)

    # ---- its state ----------------------------------------------------------------------------------------------

    def save(self, say: Callable[[str], None], *, last: bool = False) -> None:
        """Has a new checkpoint written while training goes on; a failure is said, and `next_step` raises the third in a
        row. The `last` save before the program ends is waited for, and its failure raised."""
        self.last_saved = self.tokens_seen
        self.world.from_first(lambda: self._save(say, last))

    def may_save(self) -> bool:
        """Whether the saver is `ready`, on every rank alike."""
        return self.world.from_first(lambda: self._saver.ready)

    def _save(self, say: Callable[[str], None], last: bool) -> None:
        self._saver.save(self.state(), say)
        if last:
            self._saver.check_last()

    def state(self) -> dict[str, Any]:
        """Everything a checkpoint holds (lm/checkpoint/store.py adds the format)."""
        self.settle()
        assert self.stream, "the first rank's"
        row = self.tokens_seen // self.preset.model.seq_length
        return {
            "preset": self.preset.to_json(),
            "tokens_seen": self.tokens_seen,
            "token_budget": self.token_budget,
            "global_batch_rows": self.global_batch_rows,
            "num_steps": self.num_steps,
            "skipped_steps": self.skipped_steps,
            "seconds": self.records.seconds,
            "exhausted": self.exhausted,
            **self.learner.state(),
            "rng": {"seed": self.preset.train.seed},  # every random number is a function of the seed and a row
            "stream_position": {
                "row": row,
                "windows_begun": self.stream.windows_begun(row),
                "weight_changes": self.weight_changes,
                "adaptive": self.adaptive,
                "text_digest": self.text_digest,
            },
            "facts": self.facts(),
            "tokenizer_sha256": self.stream_info.tokenizer_sha256,
            "world_size": self.world.size,
        }

    # ---- what it says about itself ------------------------------------------------------------------------------

    @property
    def machine(self) -> str:
        return f"{self.world.size} x {device_name(self.world.device)}, {self.learner.decisions[0][0]}"

    def facts(self) -> dict[str, str]:
        """For the report and the model card: what was trained, on what, where."""
        model, seconds = self.preset.model, self.records.seconds
        skipped = (
            f", {self.skipped_steps:,} of them skipped: their numbers had gone wrong" if self.skipped_steps else ""
        )
        return {
            "preset": self.preset.name,
            "tokens": f"{self.tokens_seen:,} in {self.num_steps:,} steps{skipped}",
            "sources": ", ".join(self.labels) + (" (used up before the budget)" if self.exhausted else ""),
            "text seen": f"{self.text_digest[:16]} (the same for runs that saw the same tokens in the same order)",
            "parameters": f"{sum(parameter.numel() for parameter in self.learner.trunk.parameters()):,}",
            "model": f"{counted(model.num_layers, 'layer')}, {model.hidden_size} wide, {model.seq_length} tokens of context",
            "training time": f"{human_time(seconds)}, {self.tokens_seen / max(seconds, 1e-9):,.0f} tokens/s",
            "machine": self.machine,
            "versions": f"Python {platform.python_version()}, torch {torch.__version__}",
        }

    def write_report(self) -> Path:
        return write_report(self.folder, self.preset.to_json(), self.facts(), MEASURES)

    def export(self) -> Path:
        return export(self.state(), self.folder)

    def close(self) -> None:
        self._saver.wait()
        if self.stream:
            self.stream.close()
        self.records.close()


def tokenizer_facts(preset: Preset) -> tuple[int, int]:
    """(vocabulary size, end-of-text token) of the preset's own tokenizer, or of the one that will be trained."""
    if not preset.data.tokenizer:
        return preset.model.vocab_size, 0
    given = bpe.load(preset.data.tokenizer)
    return bpe.vocab_size(given), bpe.end_of_text(given)
