"""One real step before anything is written: it compiles, takes all the memory a run will need, and tells the speed.

Leaves no trace in the run: learning rates are 0 and the optimizers' states are thrown away.
"""

import time

import numpy as np

from configs.schema import UserError
from data.batches import Stopped
from lm.optim import set_learning_rate
from lm.train_step import StepPlan
from run import Run, device_name


def trial(run: Run) -> float:
    """Two real steps on random tokens, optimizer included, that leave no trace; returns the seconds of the second.

    They compile and allocate everything a step needs. Raises UserError with a batch size that does fit.
    """
    train = run.preset.train
    set_learning_rate(run.optimizers, 0.0)
    seconds = try_steps(run, run.global_batch_rows, train.per_gpu_batch_size)
    if seconds is None:
        raise UserError(too_large(run))
    for optimizer in run.optimizers:
        optimizer.state.clear()
    return seconds


def try_steps(run: Run, num_rows: int, batch_rows: int) -> float | None:
    """Seconds of the second of two steps over `num_rows` rows; None if memory cannot hold them."""
    length = run.preset.model.seq_length
    tokens = np.random.default_rng(0).integers(run.vocab_size, size=(num_rows, length + 1))
    run.train_step.batch_rows = batch_rows
    seconds = 0.0
    try:
        for _ in range(2):
            began = time.perf_counter()
            run.train_step(tokens, StepPlan(0, num_rows, num_rows * length), 0.0)
            seconds = time.perf_counter() - began
            if run.world.from_first(run.stop):
                raise Stopped
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError; so is a CPU's refusal
        if isinstance(error, RuntimeError) and "memory" not in str(error).lower():
            raise
        return None
    return seconds


def too_large(run: Run) -> str:
    """The message for a micro-batch that memory cannot hold, with the largest half, quarter, ... that it can."""
    train, fitting = run.preset.train, run.preset.train.per_gpu_batch_size // 2
    while fitting:
        run.train_step.clear()
        if try_steps(run, fitting * run.world.size, fitting) is not None:
            break
        fitting //= 2
    steps = -(-train.per_gpu_batch_size * train.accumulation_steps // max(1, fitting))
    advice = (
        f"{fitting} fits: set train.per_gpu_batch_size to {fitting} and train.accumulation_steps to {steps} for the "
        "same tokens a step."
        if fitting
        else "Not even one row fits: choose a smaller model or a shorter seq_length."
    )
    return (
        f"A step of preset {run.preset.name!r} with train.per_gpu_batch_size {train.per_gpu_batch_size} does not fit "
        f"into the memory of {device_name(run.world.device)}. {advice}"
    )
