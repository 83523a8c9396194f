"""Whether planning ahead writes better text: plan.py with its value, without it, with values of others.

    python -m benchmarks.planning RUN JUDGE [PROMPTS]

RUN: the folder of a finished run whose heads include dynamics and value. JUDGE: that of a larger model, trained apart.
Beginnings of PROMPTS (120) held-out documents are continued by each rule; all but the first rule draw the same number of
tokens. The judge gives bits per byte of what was written; beside them, how much of it repeats, and the same figures of
the documents' own continuations, which is where good text lies: lower is not better without end. Mean and standard error
over the prompts; the last column is the share of prompts, ties apart, whose text the judge prefers to that of the second
rule.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from benchmarks.plan import Candidate, ValueAhead, plan, promise
from data.heldout import HeldOut
from lm.checkpoint import store
from lm.inference.decoder import Decoder
from lm.inference.load import load_heads, load_model
from lm.model import Transformer
from lm.runtime.machine import measure_machine

PROMPT_TOKENS, NEW_TOKENS, CANDIDATES, CHUNK = 32, 96, 8, 16


def by_log_probability(candidates: Sequence[Candidate]) -> list[float]:
    return [candidate.log_probability / max(1, len(candidate.tokens)) for candidate in candidates]


def shuffled(candidates: Sequence[Candidate]) -> list[float]:
    """Each with the value of the one before it: they were drawn independently."""
    before = [candidates[-1], *candidates[:-1]]
    return [promise(own._replace(value=other.value)) for own, other in zip(candidates, before, strict=True)]


def by_value(candidates: Sequence[Candidate]) -> list[float]:
    return [-candidate.value for candidate in candidates]


RULES = {
    "one sample": {"num_candidates": 1},
    "chunks by log-probability": {"score": by_log_probability},
    "whole text by log-probability": {"score": by_log_probability, "chunk_length": NEW_TOKENS},
    "chunks by log-probability and value": {},
    "chunks by log-probability and shuffled value": {"score": shuffled},
    "chunks by value": {"score": by_value},
}
REFERENCE = "chunks by log-probability"


def load(run: Path) -> tuple[Transformer, Tokenizer, int, ValueAhead | None]:
    state, _ = store.load(run)
    model, tokenizer, end_of_text = load_model(state, run)
    heads, embedding_VD = load_heads(state), model.embedding_VD().detach()

    def value_ahead(state_D: Tensor, token: int) -> float:
        latent_D = heads["dynamics"].step(state_D, embedding_VD[token])
        return float(heads["value"].expectation(heads["value"].logits(latent_D)))

    return model, tokenizer, end_of_text, value_ahead if {"dynamics", "value"} <= set(heads) else None


def documents(run: Path, number: int) -> list[tuple[list[int], list[int]]]:
    """(beginning, its own continuation) of held-out documents, from the sources in turn and from all over each."""
    length = PROMPT_TOKENS + NEW_TOKENS
    texts = [tokens for _, tokens, _ in HeldOut.load(run / "stream" / "heldout.npz").documents(number)]
    return [(tokens[:PROMPT_TOKENS], tokens[PROMPT_TOKENS:length]) for tokens in texts if len(tokens) >= length]


@torch.inference_mode()
def judge(model: Transformer, prompt: list[int], text: list[int], num_bytes: int) -> float:
    """Bits per byte of `text`, tokens of the judge's own."""
    tokens = torch.tensor([(prompt + text)[: model.config.seq_length + 1]])
    losses = -model.output(model(tokens[:, :-1])).log_softmax(-1).gather(-1, tokens[:, 1:, None])
    return losses[0, len(prompt) - 1 :].sum().item() / math.log(2) / num_bytes


def repetition(text: list[int]) -> float:
    """Share of its pairs of neighbouring tokens that stood in it before."""
    pairs = list(pairwise(text))
    return 1 - len(set(pairs)) / len(pairs)


def main(run: Path, judge_run: Path, number: int) -> None:
    model, tokenizer, _, value_ahead = load(run)
    decoder = Decoder(model)
    judging, judges_tokenizer, begin, _ = load(judge_run)
    if value_ahead is None:
        sys.exit(f"{run}: its heads must include dynamics and value")

    def measure(prompt: list[int], text: list[int]) -> tuple[float, float]:
        before, written = tokenizer.decode(prompt[1:]), tokenizer.decode(text)
        prompt_tokens = [begin, *judges_tokenizer.encode(before, add_special_tokens=False).ids]
        tokens = judges_tokenizer.encode(written, add_special_tokens=False).ids
        return judge(judging, prompt_tokens, tokens, len(written.encode())), repetition(text)

    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ("the document itself", *RULES)}
    seconds = dict.fromkeys(found, 0.0)
    for i, (prompt, following) in enumerate(documents(run, number)):
        found["the document itself"].append(measure(prompt, following))
        for name, rule in RULES.items():
            options = {"num_candidates": CANDIDATES, "chunk_length": CHUNK} | rule
            generator, began = torch.Generator().manual_seed(i), time.perf_counter()
            text = list(plan(decoder, prompt, NEW_TOKENS, value_ahead, generator=generator, **options))
            seconds[name] += time.perf_counter() - began
            found[name].append(measure(prompt, text))
    print(f"{run.name} judged by {judge_run.name}; {measure_machine().device_name}, {time.strftime('%Y-%m-%d')}")
    show(found, seconds)


def show(found: dict[str, list[tuple[float, float]]], seconds: dict[str, float]) -> None:
    print("| rule | bits per byte | repeated pairs | preferred to the second | seconds |\n|---|---|---|---|---|")
    for name, results in found.items():
        pairs = list(zip(results, found[REFERENCE], strict=True))
        won, lost = (sum(compare(a[0], b[0]) for a, b in pairs) for compare in (float.__lt__, float.__gt__))
        preferred = f"{won / (won + lost):.0%}" if won + lost else ""
        print(f"| {name} | {mean(results, 0)} | {mean(results, 1)} | {preferred} | {seconds[name]:.0f} |")


def mean(results: list[tuple[float, float]], column: int) -> str:
    values = [result[column] for result in results]
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values) / len(values) ** 0.5:.3f}"


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]) if sys.argv[3:] else 120)
