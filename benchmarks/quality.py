"""Held-out bits per byte against tokens seen: ours and its opponents on the very same rows.

    python -m benchmarks.quality CHECKOUTS CORPUS OUT [TOKENS [OPPONENT ...]]

CHECKOUTS: benchmarks/contenders.py says of what; CORPUS: what benchmarks/corpus.py lays out, or a preset (.json) whose
sources are taken, such as benchmarks/english.json; OPPONENT: of OPPONENTS, all if none is named. One stream of TOKENS
(20,000,000) is written down first, and the digest of its rows printed. Then each opponent is tuned on it at that length:
every learning rate of its RATES with every batch of BATCHES, its own schedule ending with the tokens. The best of each and
ours, with the rates that its presets have, are trained with three seeds, ours also on a third and a quarter of the tokens.
Hours on a CPU: finished runs in OUT are not run again, unless the text was another, and what is known so far is printed
after each. Those in benchmarks/measured/ are of rows in the journal's order, so a run of today does not take them up. With
the extra `benchmarks`, models are judged by BLiMP too (benchmarks/blimp.py); runs that were finished without it have no
share of it.
"""

import json
import math
import statistics
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.blimp import blimp, load_blimp
from benchmarks.contenders import (
    EVALUATED_ROWS,
    Logits,
    Options,
    Shape,
    negative_log_likelihood,
    own_preset,
    recipe_digest,
)
from benchmarks.trainers import TRAINERS
from configs.schema import TOKEN_BUDGET, Preset, load_preset, parse_preset
from data import tokenizer as bpe
from data.journal import JournalReader, run_ahead_rows
from data.order import RowOrder, window_edges
from data.packing import chain_digest, row_dtype
from data.stream import Stream
from lm.evaluation.benchmarks import Loaded
from lm.runtime.machine import keep_freed_memory

SHAPE = Shape(256, 3, 4, 256, 8192)
BATCHES, SEEDS = (8_192, 16_384), (1, 2, 3)
ADAMW_RATES = (2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3, 8e-3)
FACTORS = (1.0, 2.0, 4.0, 8.0)  # of the rates that its script has
OPPONENTS = {
    "nanoGPT": ADAMW_RATES,
    "HF Trainer": ADAMW_RATES,
    "nanochat": FACTORS,
    "modded-nanogpt": FACTORS,
}
HELD_OUT_TOKENS = 300_000
POINTS = (1 / 6, 1 / 3, 1 / 2, 2 / 3, 5 / 6, 1.0)  # of a run, where it is evaluated


class Arm(NamedTuple):
    trainer: str
    batch: int  # tokens
    rate: float | None  # the trainer's learning_rate (contenders.Options); None: what our presets have
    seed: int
    tokens: int

    def file(self, shape: Shape) -> str:
        rate = "default" if self.rate is None else f"{self.rate:g}"
        recipe = f"-{self.own_recipe(shape)}" if self.trainer == "ours" else ""
        return f"{self.trainer.replace(' ', '_')}-{self.batch}-{rate}-{self.seed}-{self.tokens}{recipe}.json"

    def own_recipe(self, shape: Shape) -> str:
        options = self.options()
        return recipe_digest(own_preset(shape, options), options)

    def options(self, checkouts: Path | None = None) -> Options:
        return Options(
            self.tokens // self.batch,
            learning_rate=self.rate,
            seed=self.seed,
            checkouts=checkouts,
            tokens_per_step=self.batch,
        )


class Text:
    """What a preset's sources give, written down: rows to train on in the program's order or another, rows held out, and
    the bytes behind each token."""

    def __init__(self, preset: Preset, out: Path, tokens: int):
        stream = Stream(preset, out, tokens)
        info = stream.begin(on_status=print)
        self.num_rows = -(-tokens // stream.seq_length)
        stream.consumed(self.num_rows)
        stream.rows(self.num_rows - 1, 1)  # all of it is written down
        self.held_out = stream.held_out.subset(HELD_OUT_TOKENS).sources
        self.tokenizer_path = info.tokenizer_path
        self.blimp: Loaded | None = None  # what models are judged by besides, if main has it
        self.token_bytes = bpe.token_bytes(bpe.load(info.tokenizer_path))
        stream.close()
        self.seq_length, self.vocab_size = stream.seq_length, info.vocab_size
        self.journal = JournalReader(out / "stream", row_dtype(stream.seq_length, info.vocab_size)).rows(
            0, self.num_rows
        )
        whole_run = run_ahead_rows(stream.seq_length, TOKEN_BUDGET)  # windows as wide as in one
        self.order = RowOrder(window_edges(self.num_rows, whole_run), preset.train.seed)
        self.digest = chain_digest("", self.rows(0, self.num_rows), tokens)[:12]  # the same: the very same rows

    @property
    def shape(self) -> Shape:
        """SHAPE with this text's context and vocabulary."""
        return SHAPE._replace(length=self.seq_length, vocab=self.vocab_size)

    def rows(self, first: int, num_rows: int) -> np.ndarray:
        return self.journal["tokens"][self.order.journal_rows(first, num_rows, self.num_rows)]

    def bits_per_byte(self, logits: Logits) -> dict[str, float]:
        """Of each source, and "mean": of all held-out text."""
        nats, sizes = {}, {}
        for source in self.held_out:
            num_rows = len(source.rows) // EVALUATED_ROWS * EVALUATED_ROWS
            rows, valid = source.rows[:num_rows], source.valid[:num_rows]
            size = self.token_bytes[rows[:, 1:]] * valid
            nats[source.label] = float((negative_log_likelihood(logits, rows) * (size > 0)).sum())
            sizes[source.label] = int(size.sum())
        each = {label: nats[label] / sizes[label] / math.log(2) for label in nats}
        return each | {"mean": sum(nats.values()) / sum(sizes.values()) / math.log(2)}


def corpus_preset(corpus: Path, shape: Shape) -> Preset:
    """Return the preset in the file `corpus`, or one for what benchmarks/corpus.py lays out there."""
    if corpus.suffix == ".json":
        return load_preset(corpus)
    sources = [
        {"type": "text", "path": str(corpus / "prose"), "glob": "*.txt", "label": "prose"},
        {"type": "hf", "dataset": "json", "data_files": str(corpus / "qa" / "*.jsonl"),
         "fields": ["query", "answer"], "format": "Q: {query}\nA: {answer}", "label": "trivia"},
        {"type": "text", "path": str(corpus / "python"), "glob": "*.py", "label": "python"},
    ]  # fmt: skip
    preset = {
        "name": "quality",
        "model": {
            "hidden_size": 64,
            "num_layers": 1,
            "num_heads": 1,
            "seq_length": shape.length,
            "vocab_size": shape.vocab,
        },
        "train": {"eval_tokens": HELD_OUT_TOKENS},
        "data": {"sources": sources, "mix_strategy": "weighted", "source_weights": [9, 2, 9]},
    }  # trivia is small: with this share 20M tokens see it once
    return parse_preset(json.dumps(preset), "the benchmark's preset")


def train(arm: Arm, text: Text, checkouts: Path) -> dict:
    """The curve [(tokens, bits per byte)] and the seconds of training."""
    shape = text.shape
    num_rows, num_steps = arm.batch // shape.length, arm.tokens // arm.batch
    points = {round(share * num_steps) for share in POINTS}
    curve, clock = [], {"seconds": 0.0, "since": 0.0}
    options = arm.options(checkouts)

    def steps():
        for step in range(num_steps):
            clock["since"] = time.perf_counter()
            yield text.rows(step * num_rows, num_rows)
            clock["seconds"] += time.perf_counter() - clock["since"]
            if step + 1 in points and step + 1 < num_steps:
                curve.append([(step + 1) * arm.batch, text.bits_per_byte(options.logits)])

    TRAINERS[arm.trainer](shape, steps(), options)
    curve.append([num_steps * arm.batch, text.bits_per_byte(options.logits)])
    result = {"arm": arm, "curve": curve, "seconds": clock["seconds"]}
    if text.blimp:
        result["blimp"] = blimp(text.blimp, options.logits, text.tokenizer_path, text.seq_length)
    return result


def run(arm: Arm, text: Text, checkouts: Path, out: Path) -> dict:
    path = out / arm.file(text.shape)
    if not path.exists():
        result = train(arm, text, checkouts)
        path.write_text(json.dumps(result))
        print(f"{path.name}: {result['curve'][-1][1]}, {result['seconds']:.0f} s", flush=True)
    return json.loads(path.read_text())


def final(result: dict) -> float:
    return result["curve"][-1][1]["mean"]


def report(name: str, results: list[dict]) -> None:
    values = [final(result) for result in results]
    seconds = statistics.median(result["seconds"] for result in results)
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    judged = [result["blimp"] for result in results if "blimp" in result]
    words = f", BLiMP {statistics.mean(judged):.2%} ({len(judged)} seeds)" if judged else ""
    print(
        f"{name:40} {statistics.mean(values):.4f} ± {spread:.4f} bits per byte, {seconds:6.0f} s, {len(values)} seeds{words}"
    )


def main(checkouts: Path, corpus: Path, out: Path, tokens: int, opponents: list[str]) -> None:
    keep_freed_memory()  # for all alike: it makes the sweep shorter
    preset = corpus_preset(corpus, SHAPE)
    text = Text(preset, out, tokens)
    print(f"rows {text.digest}: {tokens:,} tokens in rows of {text.seq_length}, vocabulary {text.vocab_size:,}")
    text.blimp = load_blimp()
    out = out / text.digest
    out.mkdir(exist_ok=True)
    own = Arm("ours", 8_192, None, 1, tokens)  # at 20M tokens: LOG.md
    arms = {"ours": own}
    for share, name in ((3, "a third"), (4, "a quarter")):
        arms[f"ours, {name} of the tokens"] = own._replace(tokens=tokens // share)
    for arm in arms.values():
        run(arm, text, checkouts, out)
    for name in opponents:
        grid = [Arm(name, batch, rate, 1, tokens) for batch in BATCHES for rate in OPPONENTS[name]]
        arms[name] = min(grid, key=lambda arm: final(run(arm, text, checkouts, out)))
        print(f"{name}, tuned: {arms[name]}")
    for seed in SEEDS:
        for arm in arms.values():
            run(arm._replace(seed=seed), text, checkouts, out)
    for name, arm in arms.items():
        report(name, [run(arm._replace(seed=seed), text, checkouts, out) for seed in SEEDS])


if __name__ == "__main__":
    checkouts, corpus, out, *more = sys.argv[1:]
    tokens = int(more[0]) if more else 20_000_000
    main(Path(checkouts), Path(corpus), Path(out), tokens, more[1:] or list(OPPONENTS))
