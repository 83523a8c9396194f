"""Tokens a second of whole training steps, side by side: ours and others.

    python -m benchmarks.speed CHECKOUTS [ROUNDS [ARM ...]]

CHECKOUTS: benchmarks/contenders.py says of what; ARM: of ARMS, all if none is named. Each trainer in a process of its
own, in turn, ROUNDS times (3), on random tokens: forward, backward and optimizer, one step every 16,384 tokens; on a CPU
also every 8,192, on a GPU at 50M parameters too, with larger steps. The first steps, which compile, are not counted; the
seconds until the first is over are printed. Each process also measures what a product of large bf16 matrices reaches here
(the peak); the share of it that a step uses (MFU) counts 6 FLOPs for each parameter of a matrix product and token, and
attention's causal half.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from benchmarks.contenders import TOKENS_PER_STEP, Options, Shape, device, has_bfloat16
from benchmarks.trainers import TRAINERS
from lm.runtime.machine import peak_memory

SIZES = {  # a shape, and tokens of a step
    "cpu": [
        (Shape(256, 3, 4, 256, 8192), TOKENS_PER_STEP),
        (Shape(384, 5, 6, 512, 8192), TOKENS_PER_STEP),
        (Shape(256, 3, 4, 256, 8192), 8_192),  # as benchmarks/quality.py has them
    ],
    "cuda": [
        (Shape(768, 5, 6, 1024, 8192), 65_536),
        (Shape(1024, 3, 8, 1024, 8192), 524_288),
        (Shape(256, 3, 4, 256, 8192), TOKENS_PER_STEP),
    ],
}[device()]
WARM_STEPS = 3
TIMES = 5 if device() == "cuda" else 6
H100_PEAK = 989e12  # FLOP/s, dense bf16, as on its data sheet (an H200 has the same)
NOT_GATED = {"nanoGPT", "nanochat", "modded-nanogpt"}  # MLPs; others have one like ours
ARMS = {  # name: trainer, bf16 (where its products are the faster ones, as in ours), compiled
    "ours": ("ours", True, True),
    "nanoGPT as shipped": ("nanoGPT", False, False),
    "nanoGPT, bf16, compiled": ("nanoGPT", True, True),
    "HF Trainer as shipped": ("HF Trainer", False, False),
    "HF Trainer, bf16, compiled": ("HF Trainer", True, True),
    "litgpt, bf16, compiled": ("litgpt", True, True),
    "nanochat, bf16, compiled": ("nanochat", True, True),
    "modded-nanogpt, bf16, compiled": ("modded-nanogpt", True, True),
}


def matmul_peak() -> float:
    """FLOP/s of the best of several products of two large bf16 matrices."""
    size = 8192 if device() == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device(), dtype=torch.bfloat16) for _ in range(2))
    seconds = []
    for _ in range(10):
        began = time.perf_counter()
        a @ b
        synchronize()
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 / min(seconds)


def synchronize() -> None:
    if device() == "cuda":
        torch.cuda.synchronize()


def measure(arm: str, shape: Shape, tokens: int, checkouts: Path) -> dict:
    name, low_precision, compiled = ARMS[arm]
    # Steps that are timed together: a GPU is to have the next one before it ends one.
    together = max(4, 655_360 // tokens) if device() == "cuda" else 1
    peaks, times, began = [matmul_peak()], [], time.perf_counter()

    def steps():
        rng = np.random.default_rng(0)
        for number in range(num_steps + 1):
            rows = rng.integers(shape.vocab, size=(tokens // shape.length, shape.length + 1))
            if number <= 1 or (number >= WARM_STEPS and (number - WARM_STEPS) % together == 0):
                synchronize()
                times.append(time.perf_counter())
            if number < num_steps:
                yield rows

    num_steps = WARM_STEPS + together * TIMES
    options = Options(
        num_steps,
        low_precision=low_precision and has_bfloat16(),
        compiled=compiled,
        checkouts=checkouts,
        tokens_per_step=tokens,
    )
    TRAINERS[name](shape, steps(), options)
    seconds = [(after - before) / together for before, after in pairwise(times[2:])]
    memory = peak_memory(device())
    peaks.append(matmul_peak())
    speed = tokens / statistics.median(seconds)
    return {"speed": speed, "peak": max(peaks), "memory": memory, "first": times[1] - began}


def compare(size: int, checkouts: Path, rounds: int, arms: Iterable[str]) -> None:
    shape, tokens = SIZES[size]
    found: dict[str, list[dict]] = {arm: [] for arm in arms}
    for _ in range(rounds):
        for arm, results in found.items():
            command = [sys.executable, "-m", "benchmarks.speed", "one", str(checkouts), arm, str(size)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"{arm}:\n{done.stderr}")
            results.append(json.loads(done.stdout.splitlines()[-1]))
            print(f"{arm}: {results[-1]}", file=sys.stderr, flush=True)
    peak = max(result["peak"] for results in found.values() for result in results)
    where = torch.cuda.get_device_name() if device() == "cuda" else f"{torch.get_num_threads()} CPU threads"
    print(
        f"\n{shape}, steps of {tokens:,}; {where}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}; {rounds} rounds"
    )
    if not has_bfloat16():
        print("without bf16, which is slower here: all arms are in fp32")
    print(f"bf16 matmul peak {peak / 1e9:,.0f} GFLOP/s; FLOPs a token, gated MLP or not: {shape.flops_per_token}")
    if device() == "cuda":
        print(
            f"if this is an H100 or H200, multiply MFU by {peak / H100_PEAK:.3f} for the share of its data sheet's peak"
        )
    print(
        f"{'':28} {'tokens/s':>10} {'lowest .. highest':>21} {'MFU':>6} {'ours is faster by':>20} {'peak memory':>12} "
        f"{'first step':>10}"
    )
    for arm, results in found.items():
        speeds = [result["speed"] for result in results]
        speed, flops = statistics.median(speeds), shape.flops_per_token[ARMS[arm][0] not in NOT_GATED]
        ratios = [one["speed"] / other for one, other in zip(found["ours"], speeds, strict=True)]
        memory = max(result["memory"] for result in results) / 2**20
        first = statistics.median(result["first"] for result in results)
        print(
            f"{arm:28} {speed:10,.0f} {min(speeds):10,.0f} ..{max(speeds):9,.0f} {speed * flops / peak:6.1%} "
            f"{statistics.median(ratios):7.2f} ({min(ratios):.2f}..{max(ratios):.2f}) {memory:8,.0f} MiB {first:8.0f} s"
        )


if __name__ == "__main__":
    if sys.argv[1] == "one":
        path, name, index = sys.argv[2:]
        print(json.dumps(measure(name, *SIZES[int(index)], Path(path))))
    else:
        path, *rest = sys.argv[1:]
        for number in range(len(SIZES)):
            compare(number, Path(path), int(rest[0]) if rest else 3, dict.fromkeys(["ours", *(rest[1:] or ARMS)]))
