"""The trainer of a run: it runs step after step, keeps the state and saves it.

Launching a step and collecting its result are separate: on a GPU the result is collected one step
later, so that the GPU never waits for the program.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from array import array
from collections import deque
from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from configs.errors import UserError
from data import tokenizer as bpe
from data.chat_template import ChatTemplate
from data.journal import HEADER
from data.packing import chain_digest
from data.stream import Stream, StreamInfo
from data.words import WordCounter
from lm.checkpoint import store
from lm.checkpoint.saver import Saver
from lm.inference.canonical import Neighbours
from lm.learner import Learner
from lm.report.metrics import usual_seconds
from lm.runtime.estimate import flops_per_token
from lm.runtime.files import FolderLock
from lm.runtime.machine import device_name, peak_memory
from lm.runtime.signals import StopRequest
from lm.schedule import StepPlan, plan_step
from lm.start_point import StartPoint
from lm.train.facts import facts_of
from lm.train.records import Records
from lm.train.rows import RowReader, Step
from lm.train.run import Run
from lm.train.state import TrainState
from lm.train_step import Launched, StepResult, targets_of

log = logging.getLogger(__name__)

STEPS_THAT_TELL = 20  # the speed of a run; the first ones wait for rows
# Steps launched but not yet collected: a GPU gets the next one before it ends one.
STEPS_AHEAD = {"cpu": 0, "cuda": 1, "mps": 0}


class Pending(NamedTuple):
    """A launched step whose result has not been collected."""

    launched: Launched
    num_bytes: int  # of predicted text that the loss counts
    line: dict[str, Any] | None  # start of the metrics.jsonl line that this step ends, if any


class Trainer:
    """A run: `next_step` and `train_on`, until it is `done`. Only the first rank has the stream and
    holds the lock."""

    def __init__(
        self,
        run: Run,
        learner: Learner,
        stream: Stream,
        info: StreamInfo,
        start: StartPoint | None,
        checkpoint: dict[str, Any] | None,
        state: TrainState,
        stop: StopRequest,
        lock: FolderLock,
        matmul_flops: float,
    ):
        """Load the weights of `checkpoint`, and cut the logs in the run's folder back to it.

        `info` was returned by `stream.begin`; `start` is the model whose weights the learner has
        at the beginning of the run, if it starts from one; `lock` is of that folder;
        `matmul_flops` is the peak of one device per second.
        Raises UserError for a checkpoint that does not fit.
        """
        self.preset, self.world, self.folder, self.token_budget = preset, world, folder, _ = run
        self.stop = stop
        self.learner, self.stream, self.stream_info, self.state = learner, stream, info, state
        self._rows = RowReader(run, stream, state, stop)
        self.labels = [source.label for source in preset.data.all_sources]
        self.trained_labels = self.labels[: len(preset.data.trained_sources)]
        self.watched_labels = preset.data.watched_labels
        self.held_out = info.held_out
        self.trained_held_out = info.held_out.sources[: len(self.trained_labels)]  # without what is only watched
        self.num_held_out = sum(source.num_tokens for source in self.trained_held_out)  # tokens of it
        self.tokenizer = world.from_first(bpe.load, info.tokenizer_path)
        self.token_bytes = self._token_bytes()
        self._count_words = WordCounter(self.tokenizer, learner.vocab_size)
        self.start_point: dict[str, Any] = start.pinned if start else {}  # the model that the run starts from
        if checkpoint:
            learner.load_state(checkpoint)
            world.from_first(self._rows.check)
            self.start_point = checkpoint.get("start_point", {})
        tokens_per_step = state.global_batch_rows * preset.model.seq_length
        self._flops_per_token = flops_per_token(preset.model, learner.vocab_size, preset.auxiliary, tokens_per_step)
        # A CPU's measured products are those of all its cores, which its processes share.
        devices = (
            world.size if learner.device_type == "cuda" else world.size / int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        )
        self.records = Records(run, state, matmul_flops * devices)
        # Tokens seen at the last save. The first one of a run that starts from a model is at none, so that it
        # never needs that model again.
        self.saved_at = -1 if start else state.tokens_seen
        self.result: StepResult | None = None  # of the last collected step
        self._saver, self._lock = Saver(folder, self.records.sync), lock
        self._pending: deque[Pending] = deque()
        self._began_at, self._step_seconds = state.tokens_seen, array("d")
        self._leaving = False  # because of an error
        self._rate_factor = 0.0  # of the last step
        if checkpoint:
            self.records.write_resumed(self.machine)
        world.from_first(store.best_loss, folder, state.run_id, thorough=True)  # sets another run's aside

    @cached_property
    def end_tokens(self) -> tuple[int, ...]:
        """The tokens that end an answer, in a run with conversations."""
        template = self.stream_info.header.get("chat_template")
        return ChatTemplate(template, self.tokenizer).end_tokens if template else ()

    @cached_property
    def neighbours(self) -> Neighbours:
        """Which tokens may follow each other."""
        return Neighbours(self.tokenizer)

    def _token_bytes(self) -> np.ndarray:
        """Return the bytes of each token id (V,). A tokenizer trained on little text has fewer
        tokens than the model's vocabulary."""
        known = bpe.token_bytes(self.tokenizer)
        return np.pad(known, (0, self.learner.vocab_size - len(known)))

    # ---- steps ----------------------------------------------------------------------------------

    @property
    def done(self) -> bool:
        return self.state.is_trained(self.token_budget)

    def next_step(self, on_status: Callable[[str], Any]) -> Step | None:
        """Return the next rows to train on, or None if asked to stop or if the sources ran out
        (`exhausted`). `on_status` receives the reason while there are none."""
        began = time.perf_counter()
        state = self.state
        plan = plan_step(self.preset, state.tokens_seen, self.token_budget, state.global_batch_rows)
        step, state.exhausted = self.world.from_first(self._read, plan, on_status)
        return step and step._replace(waited=time.perf_counter() - began)

    def _read(self, plan: StepPlan, on_status: Callable[[str], Any]) -> tuple[Step | None, bool]:
        self._saver.check()
        self._check_folder()
        if self.stop():
            return None, False
        return self._rows.read(plan, on_status)

    def _check_folder(self) -> None:
        """Raise UserError if the run's files were taken away: its rows would never come, and
        another run might use the folder."""
        is_there = (self.folder / "stream" / HEADER).exists()
        if self._lock.is_lost:
            self._check_no_other_run()
            if is_there:  # the lock alone was deleted
                self._lock.regain()
        if not is_there:
            raise UserError(
                f"{self.folder} was removed, moved or emptied while this run was using it. Start again to resume from what "
                "is saved there: the rows are made again, metrics.jsonl and samples.md start empty."
            )

    def _check_no_other_run(self) -> None:
        if store.latest_exists(self.folder) and store.run_id_in(self.folder) != self.state.run_id:
            raise UserError(f"{self.folder} contains another run now, which is not overwritten.")

    def train_on(self, step: Step) -> bool:
        """Train on a step. Returns False, with the run unchanged, if asked
        to stop during the step."""
        began = time.perf_counter()
        plan, state = step.plan, self.state
        launched = self.learner.train_step.launch(step.tokens, plan, self.stop, step.loss_mask)
        if launched is None:
            return False
        state.text_digest = chain_digest(state.text_digest, step.tokens, plan.num_tokens, step.loss_mask)
        state.tokens_seen += plan.num_tokens
        state.words_seen += self._count_words(step.tokens, plan.num_tokens)
        state.num_steps += 1
        predicted = targets_of(plan, self.preset.model.seq_length, None)  # the last row of a run is used in part
        counts = np.bincount(step.source[:, 1:][predicted], minlength=len(self.labels))
        state.source_tokens = [before + int(count) for before, count in zip(state.source_tokens, counts, strict=True)]
        self.learner.train_step.is_updating = False
        self._rate_factor = plan.learning_rate_factor
        line = None
        if self.records.line_is_due(state.tokens_seen) or self.done:
            self.records.last_line, line = state.tokens_seen, self._line()
        counted = targets_of(plan, self.preset.model.seq_length, step.loss_mask)
        num_bytes = int((self.token_bytes[step.tokens[:, 1:]] * counted).sum())
        self._pending.append(Pending(launched, num_bytes, line))
        self._step_seconds.append(step.waited + time.perf_counter() - began)
        self.records.interval.took(self._step_seconds[-1], waited=step.waited)
        self.collect_results(0 if self.done else STEPS_AHEAD[self.world.device.type])
        return True

    def collect_results(self, ahead: int = 0) -> None:
        """Wait for the results of launched steps, all but the last `ahead`, which is the same
        number on every rank: if too many were skipped in a row, this raises UserError."""
        while len(self._pending) > ahead:
            began = time.perf_counter()
            launched, num_bytes, line = self._pending.popleft()
            self.result = self.learner.train_step.result_of(launched)
            self.state.skipped_steps += self.result.skipped
            self.records.interval.add(self.result, launched.num_tokens, launched.num_targets, num_bytes)
            seconds = time.perf_counter() - began
            self.records.interval.took(seconds)
            self._step_seconds[-1] += seconds
            if line:
                self.records.write_steps(line)

    @property
    def is_sound(self) -> bool:
        """Whether the last step, once collected, was not skipped: otherwise weights that may be the
        cause would replace good ones."""
        return not self.learner.train_step.skipped_in_a_row

    def record(self) -> None:
        """Write a line of metrics.jsonl for the steps since the last one, if there were any."""
        self.collect_results()
        if self.records.interval.num_steps:
            self.records.write_steps(self._line())

    def _line(self) -> dict[str, Any]:
        """Return the start of a line, which is written when its last step is collected."""
        state = self.state
        return {
            "tokens": state.tokens_seen,
            "words": state.words_seen,
            "step": state.num_steps,
            "time": time.time(),
            "lr": self._rate_factor * self.learner.peak_rates["matrix"],
            "learning_rates": {name: self._rate_factor * peak for name, peak in self.learner.peak_rates.items()},
            "flops_per_token": self._flops_per_token,
            "peak_memory_bytes": peak_memory(self.world.device.type),
        }

    # ---- checkpoints ----------------------------------------------------------------------------

    def save(self, *, last: bool = False, best_loss: float | None = None) -> None:
        """Write a new checkpoint in the background. A failure is logged, and `next_step` raises
        the third in a row; the `last` save before the program ends is waited for and tried
        again, and its failure raised. With a `best_loss`, on held-out text, it is also the best."""
        self.collect_results()
        self.world.from_first(self._save, last, best_loss)
        self.saved_at = self.state.tokens_seen

    def wait_for_save(self) -> None:
        """Wait until nothing is being written."""
        self._saver.wait()

    def may_save(self) -> bool:
        """Return whether the saver is ready, the same on every rank."""
        return self.world.from_first(self._saver.is_ready)

    def _save(self, last: bool, best_loss: float | None = None) -> None:
        if self._lock.is_lost:
            self._lock.regain()
            self._check_no_other_run()
        best = {} if best_loss is None else {"best_loss": best_loss}
        (self._saver.save_last if last else self._saver.save)(self.checkpoint() | best)

    def save_at_once(self) -> None:
        """Save the steps so far because an error ends the program: on the first rank alone, since
        the others may be gone. A failure is logged, and the error is the message that remains.

        Saves nothing if weights are being changed, or if the last step was skipped. Only the first
        call acts.
        """
        self._saver.wait()
        if not self.world.is_first or self._leaving or self.learner.train_step.is_updating:
            return
        if self.saved_at == self.state.tokens_seen and not self._saver.has_failed and not self._lock.is_lost:
            return
        self._leaving = True
        try:
            self.collect_results()
            if self.is_sound:
                self._save(last=True)
                log.info("Saved at %s tokens.", f"{self.state.tokens_seen:,}")
        except Exception as error:
            log.error("Not saved: %s", error)

    def checkpoint(self) -> dict[str, Any]:
        """Return everything that a checkpoint holds (lm/checkpoint/file.py adds the
        format); on the first rank only."""
        seq_length = self.preset.model.seq_length
        begun = self.stream.windows_begun(self.state.tokens_seen // seq_length)
        seconds = self.state.seconds + self.records.interval.seconds  # of steps that have no line yet, too
        header = self.stream_info.header
        state = dataclasses.replace(self.state, windows_begun=begun, stream_header=header, seconds=seconds)
        return {
            "preset": self.preset.to_json(),
            "token_budget": self.token_budget,
            **state.to_checkpoint(seq_length),
            **self.learner.state(),
            "rng": {"seed": self.preset.train.seed},  # every random number is a function of the seed and a row
            "facts": facts_of(self),
            **({"start_point": self.start_point} if self.start_point else {}),
            "tokenizer_sha256": self.stream_info.header["tokenizer_sha256"],
            "world_size": self.world.size,
        }

    @property
    def speed_reached(self) -> float | None:
        """Tokens per second of the usual steps since this start; None if they are too few to tell."""
        num_steps = len(self._step_seconds)
        if num_steps < STEPS_THAT_TELL:
            return None
        return (self.state.tokens_seen - self._began_at) / num_steps / usual_seconds(self._step_seconds)

    @property
    def machine(self) -> str:
        return f"{self.world.size} x {device_name(self.world.device)}, {self.learner.precision}"

    def close(self) -> None:
        self._saver.wait()
        self.records.close()
