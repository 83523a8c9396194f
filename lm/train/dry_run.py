"""The dry run: real steps before anything is written. They compile, take all the memory a run
needs, and show its speed.

A batch is evaluated too, so that nothing is compiled later, when the compiler would delay the
handling of signals, and no memory is missing at the first evaluation. Leaves no trace: learning
rates are 0, and the optimizers' states are discarded.
"""

import logging
import time
from functools import partial

import numpy as np
import torch

from configs.errors import ErrorOfOneRank, UserError
from data.memory import give_back_memory
from lm.evaluate import row_losses
from lm.learner import Learner
from lm.runtime.compiler import renew_cache, words_of_compiler
from lm.runtime.estimate import batch_sizes, how_to_set
from lm.runtime.machine import device_name, is_out_of_memory
from lm.schedule import StepPlan, plan_step
from lm.train_step import micro_batches

log = logging.getLogger(__name__)

RENEWED = "A step failed with the cached output of torch.compile. The cache was deleted; compiling again."
FEWEST_TIMED, MOST_TIMED, TIMED_SECONDS = 2, 5, 2.0  # steps; no more once these seconds are over


def dry_run(learner: Learner, num_rows: int) -> float:
    """Run steps, optimizer included, over `num_rows` random rows and return
    the seconds of the fastest: beside other programs any one may take many times as long.

    They compile and allocate everything that a step needs; if the compiler fails on it, the learner
    does without. Raises UserError with a batch size that fits.
    """
    world = learner.world
    if world.gradients:
        # A rank whose compiler fails, or that has none, would leave the others waiting for its gradients.
        problem = _problem_of_compiler(learner, num_rows) if learner.compiled else ""
        failed, all_compile = world.any(bool(problem)), not world.any(not learner.compiled)
        if failed and all_compile and renew_cache():  # which all then make anew
            log.warning(RENEWED)
            problem = _problem_of_compiler(learner, num_rows)
        if world.any(bool(problem) or not learner.compiled) and learner.compiled:
            learner.stop_compiling(problem or "the compiler of another process fails")
    seconds, is_new = None, False  # the compiler's cache
    while True:
        try:
            seconds = _try_steps(learner, num_rows, learner.preset.train.per_gpu_batch_size)
            break
        except UserError:
            raise
        except Exception as error:  # of any kind: of g++, of triton, of a damaged cache
            if not learner.compiled or world.gradients:
                raise
            learner.train_step.clear()
            if not is_new and (is_new := renew_cache()):
                log.warning(RENEWED)
            else:
                learner.stop_compiling(words_of_compiler(error))
    if seconds is None:  # the others may have enough memory, and wait for this rank in their step
        raise (ErrorOfOneRank if world.size > 1 else UserError)(_too_large(learner))
    for optimizer in learner.optimizers:
        optimizer.state.clear()
    if learner.train_step.loss_scale:
        learner.train_step.loss_scale.restart()
    learner.train_step.reset()
    # Compiling leaves garbage between the buffers of a step: 4% of all memory with every
    # head (benchmarks/LOG.md).
    give_back_memory()
    return seconds


def _problem_of_compiler(learner: Learner, num_rows: int) -> str:
    """Compile what a micro-batch needs, without the other ranks. Return why that fails, or ""."""
    tokens, plans = _steps(learner, num_rows)
    world, batch_rows = learner.world, learner.preset.train.per_gpu_batch_size
    try:
        for plan in plans:
            batch = next(micro_batches(tokens, plan, world, batch_rows))
            with world.no_sync(learner.train_step.model):
                learner.train_step.run_micro_batch(batch, plan)
        _evaluate_batch(learner, batch_rows)
    except (MemoryError, torch.OutOfMemoryError):
        pass  # the steps will meet it again, with advice
    except Exception as error:
        if not is_out_of_memory(error):
            return words_of_compiler(error)
    finally:
        learner.train_step.clear()
    return ""


def _steps(learner: Learner, num_rows: int) -> tuple[np.ndarray, list[StepPlan]]:
    """Return random rows, and the plans of a step over them: of one for each graph that a run needs."""
    preset, length = learner.preset, learner.preset.model.seq_length
    tokens = np.random.default_rng(0).integers(learner.vocab_size, size=(num_rows, length + 1))
    plan = plan_step(preset, 0, num_rows * length, num_rows)._replace(learning_rate_factor=0.0)
    # The end of a run first: when the heads' gradient no longer reaches the trunk, the
    # heads run another graph.
    plans = [plan._replace(trunk_gradient=0.0)] if preset.auxiliary.trunk_gradient == "annealed" else []
    return tokens, [*plans, plan]


def _evaluate_batch(learner: Learner, batch_rows: int) -> None:
    length = learner.preset.model.seq_length
    row_losses(
        learner.joint.trunk_forward,
        learner.trunk.output.weight,
        np.zeros((batch_rows, length + 1), np.int64),
        np.ones((batch_rows, length), bool),
        batch_rows,
        learner.autocast,
        observe=partial(learner.joint.measure, generator=torch.Generator()),
    )


def _try_steps(learner: Learner, num_rows: int, batch_rows: int) -> float | None:
    """Return the seconds of a step over `num_rows` rows, compiled before; None if memory cannot hold it."""
    learner.train_step.batch_rows = batch_rows
    tokens, plans = _steps(learner, num_rows)
    times: list[float] = []
    try:
        for plan in plans:
            learner.train_step(tokens, plan)
        while learner.world.any(len(times) < (MOST_TIMED if sum(times) < TIMED_SECONDS else FEWEST_TIMED)):
            began = time.perf_counter()
            learner.train_step(tokens, plans[-1])
            times.append(time.perf_counter() - began)
        _evaluate_batch(learner, batch_rows)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return None
    return min(times)


def _too_large(learner: Learner) -> str:
    """Return the message for a micro-batch that does not fit, with the largest one that does and
    that makes the same step.

    With several processes the next smaller one is suggested untried: ranks that failed in a
    step cannot start another.
    """
    preset, train, world = learner.preset, learner.preset.train, learner.world
    smaller = [size for size in batch_sizes(train) if size <= train.per_gpu_batch_size // 2]
    advice = "Not even one row fits: choose a smaller model or a shorter seq_length."
    if smaller:
        candidates = () if world.gradients else smaller
        fitting = next((size for size in candidates if _fits(learner, size)), None)
        # A failed step can fragment memory until a size that would fit by itself does not.
        size, verb = (fitting, "fits") if fitting else (smaller[0], "may fit")
        advice = f"{size} {verb}: {how_to_set(train, size)}"
    return (
        f"A step of preset {preset.name!r} with train.per_gpu_batch_size {train.per_gpu_batch_size} does not fit "
        f"into the memory of {device_name(world.device)}. {advice}"
    )


def _fits(learner: Learner, batch_rows: int) -> bool:
    learner.train_step.clear()
    return _try_steps(learner, batch_rows, batch_rows) is not None
