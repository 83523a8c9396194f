"""What models with a memory write: the second part of benchmarks/memory.py.

PROMPTS of the documents that were not fitted on are continued by NEW tokens, with what the chat offers and with recalls
that match the new tokens too, or the journal: how much repeats, how many first tokens are the document's own, how many of
their NGRAM tokens in a row the journal has, and what a token takes, mixing included.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from benchmarks.text_index import TextIndex
from data.heldout import HeldOut
from lm.inference.canonical import Neighbours
from lm.inference.decoder import Decoder
from lm.inference.generate import generate
from lm.inference.memory import FIT_DOCUMENTS, Gate, Recall, fit_recall
from lm.model import Transformer

PROMPTS, PROMPT_TOKENS, NEW, NGRAM = 60, 380, 100, 13


class RecallOfAll(Recall):
    """Matches the new tokens too, which the chat does not."""

    def __call__(self, logits_V: Tensor, tokens: Sequence[int]) -> Tensor:
        self.begin(tokens)
        return super().__call__(logits_V, tokens)


class RecallOfJournal(Recall):
    """Matches the run's text in place of the prompt."""

    def __init__(self, gate: Gate, index: TextIndex):
        super().__init__(gate)
        self._prompt = index

    def begin(self, prompt: Sequence[int]) -> None:
        pass


def repeated(tokens: Sequence[int], length: int) -> float:
    ngrams = [tuple(tokens[i : i + length]) for i in range(len(tokens) - length + 1)]
    return 1 - len(set(ngrams)) / len(ngrams)


def copied(tokens: Sequence[int], index: TextIndex) -> float:
    """The share of NGRAM tokens in a row that the journal has."""
    ends = range(NGRAM, len(tokens) + 1)
    return sum(index.longest(tokens[end - NGRAM : end]).length == NGRAM for end in ends) / len(ends)


def continue_documents(
    model: Transformer,
    held_out: HeldOut,
    neighbours: Neighbours,
    token_bytes: np.ndarray,
    index: TextIndex,
    journal_gate: Gate,
) -> None:
    began = time.process_time()
    recall, words = fit_recall(model, held_out, token_bytes)
    print(f"\n/recall: {words}; fitted in {time.process_time() - began:.1f} s\n")
    if not recall:
        return
    rules = {
        "as the model has it": {},
        "canonical tokens": {"neighbours": neighbours},
        "/recall 1": {"neighbours": neighbours, "recall": recall},
        "recall of the new tokens too": {"neighbours": neighbours, "recall": RecallOfAll(recall.gate)},
        "recall of the journal": {"neighbours": neighbours, "recall": RecallOfJournal(journal_gate, index)},
    }
    fitted_on = [tokens for _, tokens, _ in held_out.documents(FIT_DOCUMENTS)]
    whole = [tokens for _, tokens, _ in held_out.documents(4 * PROMPTS) if tokens not in fitted_on]
    whole = [tokens[: PROMPT_TOKENS + NEW] for tokens in whole[::2]]
    whole = [tokens for tokens in whole if len(tokens) == PROMPT_TOKENS + NEW][:PROMPTS]
    decoder, found = Decoder(model), {"the document itself": [(tokens[PROMPT_TOKENS:], 0.0) for tokens in whole]}
    for name, rule in rules.items():
        found[name] = []
        for seed, tokens in enumerate(whole):
            began = time.process_time()
            generator = torch.Generator().manual_seed(seed)
            new = list(generate(decoder, tokens[:PROMPT_TOKENS], NEW, generator=generator, **rule))
            found[name].append((new, (time.process_time() - began) / NEW * 1e6))
    print(f"{len(whole)} prompts; us a token with the prompt's pass\n")
    print(
        "| | 2 tokens repeated | 4 tokens | 8 tokens | first tokens right | 5 or more | 13 in the journal | us a token |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for name, texts in found.items():
        right = [
            next((i for i, pair in enumerate(zip(new, own[PROMPT_TOKENS:], strict=True)) if len(set(pair)) > 1), NEW)
            for (new, _), own in zip(texts, whole, strict=True)
        ]
        columns = [[repeated(new, length) for new, _ in texts] for length in (2, 4, 8)]
        columns += [right, [number >= 5 for number in right], [copied(new, index) for new, _ in texts]]
        cells = [f"{np.mean(column):.3f} ± {np.std(column) / len(column) ** 0.5:.3f}" for column in columns]
        print(f"| {name} | {' | '.join(cells)} | {np.mean([took for _, took in texts]):.0f} |")
