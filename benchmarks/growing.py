"""Tokens a second and memory of a training step as the model widens and its context grows, and what the menu makes of it.

    python -m benchmarks.growing [ROUNDS]

Widths 64 to 1024 by contexts of 256 to 4,096 tokens, and widths 64 and 256 by vocabularies: 4 layers, 64 channels a head,
micro-batches and steps of 4,096 tokens, each in a process of its own, ROUNDS times (1). Beside each figure stands what
lm/runtime/estimate.py says, then the constants there that fit best (least squares of the relative error).
"""

import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.contenders import device
from configs.schema import Preset, parse_preset
from lm.runtime import estimate
from lm.runtime.machine import Machine, measure_machine, peak_memory

Shape = tuple[int, int, int]  # width, context, vocabulary
SHAPES: list[Shape] = [
    *itertools.product((64, 128, 256, 512, 1024), (256, 1024, 4096), (8192,)),
    *itertools.product((64, 256), (256,), (1024, 32768)),
]
TOKENS, WARM_STEPS, STEPS = 4_096, 2, 4


def preset_of(width: int, length: int, vocab_size: int) -> Preset:
    model = {
        "hidden_size": width,
        "num_layers": 4,
        "num_heads": width // 64,
        "seq_length": length,
        "vocab_size": vocab_size,
    }
    train = {"per_gpu_batch_size": TOKENS // length}
    text = json.dumps({"name": "growing", "model": model, "train": train, "data": {"sources": ["python_source"]}})
    return parse_preset(text, "the benchmark's preset")


def measure(shape: Shape) -> dict[str, float]:
    from benchmarks.step import learner_of

    learner, tokens, plan_at = learner_of(preset_of(*shape))
    seconds = []
    for _ in range(WARM_STEPS + STEPS):
        began = time.perf_counter()
        learner.train_step(tokens, plan_at(3))
        seconds.append(time.perf_counter() - began)
    return {"seconds": statistics.median(seconds[WARM_STEPS:]) / TOKENS, "memory": peak_memory(device())}


def of_the_trainer(preset: Preset) -> int:
    """The menu's estimate, without the data process and the copy that is being saved."""
    apart = estimate.PRODUCER_BYTES + estimate.checkpoint_bytes(preset) if device() == "cpu" else 0
    return estimate.memory_bytes(preset, device()) - apart


def fit(columns: list[list[float]], measured: list[float], known: Sequence[float] = (0.0,)) -> np.ndarray:
    """Factors of the columns whose sum, and what is known besides, is nearest to what was measured, relatively."""
    scale = np.array(measured)
    return np.linalg.lstsq(np.array(columns).T / scale[:, None], 1 - np.array(known) / scale, rcond=None)[0]


def compare(machine: Machine, found: dict[Shape, dict]) -> None:
    print(f"{machine.device_name}, {machine.matmul_flops / 1e9:,.0f} GFLOP/s, {time.strftime('%Y-%m-%d')}")
    print(
        f"{'width':>6} {'context':>8} {'vocabulary':>11} {'parameters':>11} "
        f"{'tokens/s':>9} {'estimate':>9} {'MB':>7} {'estimate':>9}"
    )
    for (width, length, vocab_size), result in found.items():
        preset = preset_of(width, length, vocab_size)
        print(
            f"{width:6} {length:8,} {vocab_size:11,} {estimate.num_parameters(preset.model, vocab_size):11,} "
            f"{1 / result['seconds']:9,.0f} "
            f"{1 / estimate.seconds_to_budget(preset, machine, 1):9,.0f} {result['memory'] / 1e6:7,.0f} "
            f"{of_the_trainer(preset) / 1e6:9,.0f}"
        )
    presets = [preset_of(*shape) for shape in found]
    models = [preset.model for preset in presets]
    channels = [model.num_layers * model.hidden_size for model in models]
    scores = [estimate.scores_per_token(model) for model in models]
    logits = [float(model.vocab_size) for model in models]
    flops = [estimate.flops_per_token(p.model, p.model.vocab_size, p.auxiliary, TOKENS) for p in presets]
    columns = [[value / machine.matmul_flops for value in column] for column in (flops, channels, scores, logits)]
    overhead = [(estimate.STEP_SECONDS + estimate.MICRO_BATCH_SECONDS) / TOKENS] * len(models)
    share, channel, score, logit = fit(columns, [result["seconds"] for result in found.values()], overhead)
    print(
        f"time: MATMUL_EFFICIENCY {1 / share:.2f}, CHANNEL_FLOPS {channel:,.0f}, SCORE_FLOPS {score:,.0f}, "
        f"LOGIT_FLOPS {logit:,.0f}"
    )
    held = [estimate.checkpoint_bytes(p) + 4 * estimate.num_parameters(p.model, p.model.vocab_size) for p in presets]
    columns = [[1.0] * len(models), [TOKENS * n for n in channels], [TOKENS * n for n in scores]]
    memory = [result["memory"] for result in found.values()]
    process, channel, score = fit(columns, memory, held)
    print(f"memory: PROCESS_BYTES {process:,.0f}, LAYER_BYTES {channel:.1f}, SCORE_BYTES {score:.2f}")


def main(rounds: int) -> None:
    runs: dict[Shape, list[dict]] = {shape: [] for shape in SHAPES}
    for _ in range(rounds):
        for shape, results in runs.items():
            command = [sys.executable, "-m", "benchmarks.growing", *map(str, shape)]
            done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
            if done.returncode:
                sys.exit(done.stderr)
            results.append(json.loads(done.stdout.splitlines()[-1]))
    medians = {
        shape: {key: statistics.median(result[key] for result in results) for key in results[0]}
        for shape, results in runs.items()
    }
    compare(measure_machine(), medians)


if __name__ == "__main__":
    match [int(argument) for argument in sys.argv[1:]]:
        case width, length, vocab_size:
            print(json.dumps(measure((width, length, vocab_size))))
        case [rounds]:
            main(rounds)
        case _:
            main(1)
