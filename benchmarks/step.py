"""The training step of a preset on this machine, on random tokens: tokens a second, page faults, kernel time, memory.

    python -m benchmarks.step [PRESET] [STEPS]

On a CPU it is measured in turn with and without `lm.runtime.machine.keep_freed_memory`, each time in a process of its own.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import numpy as np

from configs.schema import Preset, load_preset

if TYPE_CHECKING:
    from collections.abc import Callable

    from lm.learner import Learner
    from lm.schedule import StepPlan

ROUNDS = 3


def learner_of(preset: Preset) -> tuple[Learner, np.ndarray, Callable[[int], StepPlan]]:
    """What learns, random rows for a step of it, and the plan of that step after so many sixths of a run."""
    from lm.learner import Learner
    from lm.runtime.distributed import World
    from lm.schedule import plan_step

    rows = preset.train.rows_per_process
    length, vocab_size = preset.model.seq_length, preset.model.vocab_size
    learner = Learner(preset, World.start(), vocab_size=vocab_size, end_of_text=0, tokens_per_step=rows * length)
    tokens = np.random.default_rng(0).integers(vocab_size, size=(rows, length + 1))
    size = rows * length
    return learner, tokens, lambda sixths: plan_step(preset, sixths * size, 6 * size, rows)


def measure(path: str, num_steps: int) -> None:
    """Prints "tokens/s, page faults a step, share of CPU time in the kernel, peak GiB", medians without the first."""
    from lm.runtime.machine import peak_memory

    learner, tokens, plan_at = learner_of(load_preset(path))
    plan = plan_at(3)
    figures = []
    for _ in range(num_steps + 1):
        before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        learner.train_step(tokens, plan)
        seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
        kernel, user = after.ru_stime - before.ru_stime, after.ru_utime - before.ru_utime
        figures.append((plan.num_tokens / seconds, after.ru_minflt - before.ru_minflt, kernel / (kernel + user)))
    speed, faults, share = (statistics.median(column) for column in zip(*figures[1:], strict=True))
    print(f"{speed:.0f} {faults:.0f} {share:.3f} {peak_memory(learner.device_type) / 2**30:.2f}")


def run(path: str, num_steps: int) -> None:
    found: dict[str, list[float]] = {"kept": [], "given back": []}
    for _ in range(ROUNDS):
        for name, speeds in found.items():
            environment = os.environ | ({"GIVE_BACK": "1"} if name == "given back" else {})
            command = [sys.executable, "-m", "benchmarks.step", path, str(num_steps), "one"]
            line = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
            speed, faults, share, memory = map(float, line.split())
            speeds.append(speed)
            print(f"{name:10} {speed:10,.0f} tokens/s, {faults:9,.0f} page faults, {share:.1%} kernel, {memory} GiB")
    kept, given_back = map(statistics.median, found.values())
    print(f"{path}, medians of {ROUNDS}: {kept:,.0f} and {given_back:,.0f} tokens/s, {kept / given_back:.2f} times")


if __name__ == "__main__":
    arguments = sys.argv[1:] or ["configs/02_offline_python.json"]
    steps = int(arguments[1]) if len(arguments) > 1 else 8
    if arguments[2:]:
        if os.environ.get("GIVE_BACK"):
            import lm.learner

            lm.learner.keep_freed_memory = lambda: None
        measure(arguments[0], steps)
    else:
        run(arguments[0], steps)
