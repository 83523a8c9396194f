"""What the heads cost the language model: held-out bits per byte with each head and each way of its gradient.

    python -m benchmarks.ablation CORPUS OUT [TOKENS]

CORPUS: what benchmarks/corpus.py lays out. Every arm is trained on the same rows with SEEDS: without a gradient from the
heads ("none": the trunk is bit for bit the one without heads), each head alone and all four with a gradient that fades
out by two thirds of the run or stays, and, as an arm from outside, multi-token prediction: the same logits scored against
the tokens two and three ahead as well, fading out likewise. Hours on a CPU: arms finished in OUT are not trained again,
one seed of all comes before the next, and several of these may share one OUT. The
models are kept there for benchmarks/heads.py.

Time is measured apart: every arm's steps in turn in one process. "At equal time" compares with the arm
"none" on as many tokens more as it could have had, by the line through what it reaches with TOKENS and a seventh more.
"""

from __future__ import annotations

import fcntl
import json
import math
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.contenders import MULTI_TOKEN_WEIGHTS, Options, Shape, preset_json, recipe_digest, train_preset
from benchmarks.quality import Text, corpus_preset
from benchmarks.speed import synchronize
from benchmarks.step import learner_of
from configs.schema import Preset, parse_preset
from lm.learner import Learner
from lm.runtime.machine import measure_machine

SHAPE = Shape(128, 3, 2, 256, 4096)
BATCH, SEEDS, MORE = 8_192, (1, 2, 3), 8 / 7
HEADS = ("policy", "value", "dynamics", "span_contrastive")
ROUNDS = 5


class Arm(NamedTuple):
    name: str
    heads: tuple[str, ...] = HEADS
    gradient: str = "none"
    tokens: float = 1.0  # of TOKENS

    def preset(self, seed: int, shape: Shape = SHAPE, batch: int = BATCH) -> Preset:
        preset = json.loads(preset_json(shape, Options(0, seed=seed, tokens_per_step=batch)))
        preset["train"]["multi_token_weights"] = MULTI_TOKEN_WEIGHTS if self.name == MULTI_TOKEN else ()
        preset["auxiliary"] = {f"enable_{head}": True for head in self.heads} | {"trunk_gradient": self.gradient}
        return parse_preset(json.dumps(preset), "the benchmark's preset")

    def file(self, out: Path, seed: int, tokens: int) -> Path:
        """Where its held-out bits per byte are kept; with the suffix .pth, the model."""
        options = Options(round(tokens * self.tokens) // BATCH, seed=seed, tokens_per_step=BATCH)
        return out / f"{self.name}, {seed}, {recipe_digest(self.preset(seed), options)}.json"

    def before_step(self) -> Callable[[Learner, float], None]:
        return rest_until_two_thirds if self.name == LATE else lambda learner, progress: None


MULTI_TOKEN = "multi-token prediction, annealed"
LATE = "all, none, heads in the last third only"
BASE = Arm("all, none")
MORE_TOKENS = Arm("none, a seventh more tokens", heads=(), tokens=MORE)
ARMS = [
    BASE,
    *(Arm(f"all, {gradient}", gradient=gradient) for gradient in ("annealed", "constant")),
    Arm(MULTI_TOKEN, heads=()),
    *(Arm(f"{head}, {gradient}", (head,), gradient) for head in HEADS for gradient in ("annealed", "constant")),
    MORE_TOKENS,
    Arm(LATE),
]


def rest_until_two_thirds(learner: Learner, progress: float) -> None:
    learner.joint.heads = learner.heads if progress >= 2 / 3 else torch.nn.ModuleDict()


def train(arm: Arm, seed: int, text: Text, tokens: int, path: Path) -> None:
    """Writes held-out bits per byte to `path`, and the model beside it."""
    num_steps, num_rows = round(tokens * arm.tokens) // BATCH, BATCH // SHAPE.length
    options = Options(num_steps, seed=seed, tokens_per_step=BATCH)
    steps = (text.rows(step * num_rows, num_rows) for step in range(num_steps))
    learner = train_preset(arm.preset(seed), SHAPE, steps, options, arm.before_step())
    torch.save({"model": learner.trunk.state_dict(), "heads": learner.heads.state_dict()}, path.with_suffix(".pth"))
    path.write_text(json.dumps(text.bits_per_byte(options.logits)))
    print(f"{arm.name}, seed {seed}: {path.read_text()}", flush=True)


def relative_seconds(arms: Sequence[Arm], shape: Shape, batch: int, num_rounds: int = ROUNDS) -> dict[str, list[float]]:
    """By arm, and round: the seconds of three steps, spread over a run, relative to the language model's alone. Every
    arm's in turn, in this process."""
    torch._dynamo.reset()  # a shape before this one would make this one's dynamic
    torch._dynamo.config.recompile_limit = 4 * len(arms)  # many models of one class in one process
    alone = Arm("alone", heads=())
    running = {arm.name: (*learner_of(arm.preset(1, shape, batch)), arm.before_step()) for arm in (alone, *arms)}
    found: dict[str, list[float]] = {name: [] for name in running}
    for _ in range(num_rounds + 1):
        for name, (learner, rows, plan_at, before_step) in running.items():
            seconds = 0.0
            for sixths in (1, 3, 5):
                before_step(learner, sixths / 6)
                began = time.perf_counter()
                learner.train_step(rows, plan_at(sixths))
                synchronize()
                seconds += time.perf_counter() - began
            found[name].append(seconds)
    pairs = {name: zip(seconds[1:], found["alone"][1:], strict=True) for name, seconds in found.items()}
    return {name: [own / alone for own, alone in pair] for name, pair in pairs.items() if name != "alone"}


def train_all(text: Text, tokens: int, out: Path) -> None:
    for seed in SEEDS:
        for arm in ARMS:
            path = arm.file(out, seed, tokens)
            with path.with_suffix(".lock").open("w") as lock, suppress(BlockingIOError):  # another process is at it
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if not path.exists():
                    # In a process of its own, which takes with it what it compiled; torch has not run in this one yet.
                    child = multiprocessing.get_context("fork").Process(
                        target=train, args=(arm, seed, text, tokens, path)
                    )
                    child.start()
                    child.join()
                    if child.exitcode:
                        sys.exit(f"{arm.name}, seed {seed}: failed")


def at_equal_time(base: float, more: float, slowdown: float) -> float:
    """Bits per byte of the arm without heads on `slowdown` times the tokens: a line through the logarithm of tokens."""
    return base + (more - base) * math.log(slowdown) / math.log(MORE)


def show(ratios: list[float]) -> str:
    """Of bits per byte to those of another arm with the same seed."""
    if not ratios:
        return ""
    spread = f" ± {statistics.stdev(ratios):.2%}" if len(ratios) > 1 else ""
    return f"{statistics.mean(ratios) - 1:+.2%}{spread}"


def report(out: Path, tokens: int, slowdowns: dict[str, float]) -> None:
    def found(arm: Arm) -> dict[int, float]:
        paths = {seed: arm.file(out, seed, tokens) for seed in SEEDS}
        return {seed: json.loads(path.read_text())["mean"] for seed, path in paths.items() if path.exists()}

    base, more = found(BASE), found(MORE_TOKENS)
    print("| heads, their gradient | bits per byte | at equal tokens | time | at equal time | seeds |")
    print("|---|---:|---:|---:|---:|---:|")
    for arm in ARMS:
        if not (values := found(arm)):
            continue
        slowdown = slowdowns.get(arm.name, 1.0) * arm.tokens
        equal_tokens = [values[seed] / base[seed] for seed in values.keys() & base.keys()]
        equal_time = [
            values[seed] / at_equal_time(base[seed], more[seed], slowdown)
            for seed in values.keys() & base.keys() & more.keys()
        ]
        print(
            f"| {arm.name} | {statistics.mean(values.values()):.4f} | {show(equal_tokens)} | {slowdown:.3f} "
            f"| {show(equal_time)} | {len(values)} |"
        )


def main(corpus: Path, out: Path, tokens: int) -> None:
    text = Text(corpus_preset(corpus, SHAPE), out, math.ceil(tokens * MORE))
    out = out / f"{text.digest}-{tokens}"
    out.mkdir(exist_ok=True)
    train_all(text, tokens, out)
    seconds = relative_seconds(ARMS, SHAPE, BATCH)
    print(
        f"{SHAPE}, {tokens:,} tokens in steps of {BATCH:,}; {measure_machine().device_name}, {time.strftime('%Y-%m-%d')}"
    )
    report(out, tokens, {name: statistics.median(values) for name, values in seconds.items()})


if __name__ == "__main__":
    folders, budget = sys.argv[1:3], int(sys.argv[3]) if sys.argv[3:] else 5_000_000
    main(*map(Path, folders), budget)
