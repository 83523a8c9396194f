"""What the heads cost a training step, in time and memory, beside the step without heads.

    python -m benchmarks.head_cost [ROUNDS]

At benchmarks/speed.py's shapes, one step every 16,384 tokens on a CPU: without heads, with each, with all four, and with
all four while their gradient reaches the trunk; compiled, in processes of their own, in turn, ROUNDS times (5). Ratios
are medians over the rounds, with the lowest and the highest.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time

from benchmarks.ablation import HEADS, Arm
from benchmarks.contenders import Shape
from benchmarks.speed import SHAPES, TOKENS, synchronize
from benchmarks.step import learner_of
from lm.machine import measure_machine, peak_memory

ALONE = Arm("no heads", heads=())
ARMS = {
    arm.name: arm
    for arm in (
        ALONE,
        *(Arm(head, (head,)) for head in HEADS),
        Arm("all four"),
        Arm("all four, gradient to the trunk", gradient="constant"),
    )
}
WARM_STEPS, STEPS = 2, 6


def measure(arm: str, shape: Shape) -> dict[str, float]:
    """Seconds a step, and the bytes of the process at its peak."""
    learner, rows, plan = learner_of(ARMS[arm].preset(1, shape, TOKENS))
    seconds = []
    for _ in range(WARM_STEPS + STEPS):
        began = time.perf_counter()
        learner.train_step(rows, plan, 0.5)
        synchronize()
        seconds.append(time.perf_counter() - began)
    return {"seconds": statistics.median(seconds[WARM_STEPS:]), "memory": peak_memory(learner.device_type)}


def compare(number: int, rounds: int) -> None:
    found: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    for _ in range(rounds):
        for arm, results in found.items():
            command = [sys.executable, "-m", "benchmarks.head_cost", str(number), arm]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            results.append(json.loads(done.stdout.splitlines()[-1]))
    print(f"\n{SHAPES[number]}; {measure_machine().device_name}, {time.strftime('%Y-%m-%d')}; {rounds} rounds")
    print("| heads | time | lowest .. highest | memory |\n|---|---:|---:|---:|")
    for arm, results in found.items():
        times, memory = (
            [own[key] / alone[key] for own, alone in zip(results, found[ALONE.name], strict=True)]
            for key in ("seconds", "memory")
        )
        print(
            f"| {arm} | {statistics.median(times):.3f} | {min(times):.3f} .. {max(times):.3f} "
            f"| {statistics.median(memory):.3f} |"
        )


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(json.dumps(measure(sys.argv[2], SHAPES[int(sys.argv[1])])))
    else:
        for each in range(len(SHAPES)):
            compare(each, int(sys.argv[1]) if sys.argv[1:] else 5)
