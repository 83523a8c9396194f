"""One real step before anything is written: it compiles, takes all the memory a run will need, and tells the speed.

Evaluation is compiled here too: nothing is later on, when the compiler would keep a signal waiting.

Leaves no trace in the run: learning rates are 0 and the optimizers' states are thrown away.
"""

import time

import numpy as np
import torch

from configs.schema import UserError
from data.memory import give_back_memory
from lm.optim import set_learning_rate
from lm.runtime.estimate import batch_sizes, how_to_set
from lm.runtime.machine import device_name
from lm.train.trainer import Run
from lm.train_step import StepPlan

OUT_OF_MEMORY = ("can't allocate memory", "could not create a ")  # in the words of torch's CPU allocator and of oneDNN


def trial(run: Run) -> float:
    """Real steps on random tokens, optimizer included, that leave no trace; returns the seconds of the last.

    They compile and allocate everything a step needs. Raises UserError with a batch size that does fit.
    """
    train = run.preset.train
    set_learning_rate(run.learner.optimizers, 0.0)
    seconds = try_steps(run, run.global_batch_rows, train.per_gpu_batch_size)
    if seconds is None:
        raise UserError(too_large(run))
    for optimizer in run.learner.optimizers:
        optimizer.state.clear()
    run.learner.train_step.forget_graphs()
    give_back_memory()  # what compiling left lies among the buffers of a step: 4% of all with every head (benchmarks/LOG.md)
    return seconds


def try_steps(run: Run, num_rows: int, batch_rows: int) -> float | None:
    """Seconds of a step over `num_rows` rows, compiled before; None if memory cannot hold it."""
    length = run.preset.model.seq_length
    tokens = np.random.default_rng(0).integers(run.learner.vocab_size, size=(num_rows, length + 1))
    run.learner.train_step.batch_rows = batch_rows
    seconds = 0.0
    try:
        # The end first: when no gradient of the heads reaches the trunk any more, theirs is another graph.
        for progress in (1.0, 0.0, 0.0) if run.preset.auxiliary.trunk_gradient == "annealed" else (0.0, 0.0):
            began = time.perf_counter()
            run.learner.train_step(tokens, StepPlan(0, num_rows, num_rows * length), progress)
            seconds = time.perf_counter() - began
        with torch.no_grad(), run.learner.autocast():  # as lm/evaluate.py does
            joint, rows = run.learner.joint, torch.zeros(batch_rows, length + 1, dtype=torch.int64).to(run.world.device)
            hidden_BTD = joint.trunk_forward(rows[:, :-1])
            valid = torch.ones_like(rows[:, 1:], dtype=torch.bool)
            joint.measure(rows, valid, hidden_BTD, torch.zeros(valid.shape).to(valid.device), torch.Generator())
    except (MemoryError, torch.OutOfMemoryError):
        return None
    except RuntimeError as error:
        if not any(words in str(error) for words in OUT_OF_MEMORY):
            raise
        return None
    return seconds


def too_large(run: Run) -> str:
    """The message for a micro-batch that memory cannot hold, with the largest that makes the same step and fits.

    With several processes the first smaller one is named untried: ranks that lost a step cannot be led into another.
    """
    train = run.preset.train
    smaller = [size for size in batch_sizes(train) if size <= train.per_gpu_batch_size // 2]
    advice = "Not even one row fits: choose a smaller model or a shorter seq_length."
    if smaller:
        fitting = None if run.world.gradients else next((size for size in smaller if fits(run, size)), None)
        # A failed step can leave memory in pieces too small for one that would fit by itself.
        size, verb = (fitting, "fits") if fitting else (smaller[0], "may fit")
        advice = f"{size} {verb}: {how_to_set(train, size)}"
    return (
        f"A step of preset {run.preset.name!r} with train.per_gpu_batch_size {train.per_gpu_batch_size} does not fit "
        f"into the memory of {device_name(run.world.device)}. {advice}"
    )


def fits(run: Run, batch_rows: int) -> bool:
    run.learner.train_step.clear()
    return try_steps(run, batch_rows, batch_rows) is not None
