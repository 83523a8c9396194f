"""What handing rows to other processes costs the first one: bytes and CPU seconds a step, up to 16 ranks on loopback.

    for n in 2 4 8 16; do torchrun --nproc_per_node=$n -m benchmarks.scatter; done

Every rank gets the rows of a whole step, as `Trainer.next_step` sends them. Nothing is trained, so this is the cost alone;
with more ranks than cores, wall time is that of the ranks taking turns, and CPU seconds are what to read.
"""

import os
import time
from pathlib import Path

import numpy as np

from lm.runtime.distributed import World
from lm.schedule import StepPlan
from lm.train.rows import Step

SEQ_LENGTH, STEPS = 512, 30
TOKENS = (32_768, 524_288)  # a step


def loopback_bytes() -> int:
    lines = Path("/proc/net/dev").read_text().splitlines()
    return next(int(line.split()[9]) for line in lines if line.strip().startswith("lo:"))


def measure(world: World, tokens: int) -> str:
    rows = tokens // SEQ_LENGTH
    step = Step(
        StepPlan(0, rows, tokens),
        np.random.default_rng(0).integers(2**13, size=(rows, SEQ_LENGTH + 1)).astype(np.uint16),
        np.zeros((rows, SEQ_LENGTH + 1), dtype=np.uint8),
        None,
    )
    world.from_first(lambda: step)
    bytes_before, began, cpu = loopback_bytes(), time.perf_counter(), time.process_time()
    for _ in range(STEPS):
        world.from_first(lambda: step)
    cpu = (time.process_time() - cpu) / STEPS
    wall = (time.perf_counter() - began) / STEPS
    num_bytes = (loopback_bytes() - bytes_before) / STEPS
    return (
        f"{world.size:>2} ranks, {tokens:>7,} tokens a step: {num_bytes / 1e6:6.2f} MB, "
        f"{1000 * cpu:6.2f} CPU ms of the first rank, {1000 * wall:7.2f} ms"
    )


if __name__ == "__main__":
    world = World.start()
    for tokens in TOKENS:
        line = measure(world, tokens)
        if world.is_first:
            print(line, f"({os.cpu_count()} cores)", flush=True)
    world.stop()
