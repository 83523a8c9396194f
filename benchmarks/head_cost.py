"""What the heads, and multi-token prediction, cost a training step in time and memory, beside the step without them.

    python -m benchmarks.head_cost [ROUNDS]

At benchmarks/speed.py's shapes: each head alone, all four, all four while their
gradient reaches the trunk, and multi-token prediction; compiled. Time: all in one process, three steps of each in turn,
ROUNDS times (5); medians over the rounds, with the lowest and the highest; the row "no heads" is the step without them
beside itself, so it shows the noise. Memory: the peak of a process of its own, median of PROCESSES.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from benchmarks.ablation import HEADS, MULTI_TOKEN, Arm, relative_seconds
from benchmarks.contenders import Shape
from benchmarks.speed import SIZES
from benchmarks.step import learner_of
from data.memory import give_back_memory
from lm.runtime.machine import measure_machine, peak_memory

PROCESSES = 3
ALONE = Arm("no heads", heads=())
ARMS = {
    arm.name: arm
    for arm in (
        ALONE,
        *(Arm(head, (head,)) for head in HEADS),
        Arm("all four"),
        Arm("all four, gradient to the trunk", gradient="constant"),
        Arm(MULTI_TOKEN, heads=()),
    )
}


def peak(arm: str, shape: Shape, tokens: int) -> int:
    """Bytes of this process at its peak over a first step, in which all is compiled, and two more. What compiling leaves
    is given back between them, as after the trial of a run."""
    learner, rows, plan_at = learner_of(ARMS[arm].preset(1, shape, tokens))
    learner.train_step(rows, plan_at(3))
    give_back_memory()
    for _ in range(2):
        learner.train_step(rows, plan_at(3))
    return peak_memory(learner.device_type)


def compare(number: int, num_rounds: int) -> None:
    shape, tokens = SIZES[number]
    print(f"\n{shape}; {measure_machine().device_name}, {time.strftime('%Y-%m-%d')}; {num_rounds} rounds")
    command = [sys.executable, "-m", "benchmarks.head_cost", str(number)]
    peaks: dict[str, list[int]] = {arm: [] for arm in ARMS}
    for arm in PROCESSES * list(ARMS):
        done = subprocess.run([*command, arm], capture_output=True, text=True, check=True)
        peaks[arm].append(int(done.stdout.splitlines()[-1]))
    memory = {arm: statistics.median(sizes) for arm, sizes in peaks.items()}
    found = relative_seconds(list(ARMS.values()), shape, tokens, num_rounds)
    print("| beside the step without heads | time | lowest .. highest | memory |\n|---|---:|---:|---:|")
    for arm, times in found.items():
        print(
            f"| {arm} | {statistics.median(times):.3f} | {min(times):.3f} .. {max(times):.3f} "
            f"| {memory[arm] / memory[ALONE.name]:.3f} |"
        )


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(peak(sys.argv[2], *SIZES[int(sys.argv[1])]))
    else:
        for each in range(len(SIZES)):
            compare(each, int(sys.argv[1]) if sys.argv[1:] else 5)
