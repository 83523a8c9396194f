"""Text generation from a trained trunk, with or without drafts: the loop over
decoder, sampler and drafter.

A drafter proposes a few tokens; one pass of the trunk gives the logits after each of them, and the
sampler accepts a prefix of the proposal and adds one token of its own. The distribution of the
text is exactly that without a drafter, and with temperature 0 the text is the same. Never here:
text (tokens in, tokens out), training, how drafts are made.

Shapes: D hidden size, N vocabulary of the drafter, T positions, V vocabulary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from lm.inference.canonical import Neighbours
from lm.inference.decoder import Decoder
from lm.inference.memory import Recall
from lm.inference.sampling import TEMPERATURE, TOP_P, Draft, NgramBlocker, Sampler


class Drafter(Protocol):
    tokens_N: Tensor  # the tokens that it may draft: ascending ids, on the CPU

    def begin(self, hidden_D: Tensor, tokens: Sequence[int]) -> int:
        """Return how many tokens to draft after `tokens`; `hidden_D` is the trunk's state just
        before the last of them."""

    def step(self, token: int) -> Tensor:
        """Return the logits (N,) of `tokens_N` after `token`, which follows all tokens seen before."""


@dataclass
class Drafting:
    """A drafter with its statistics: drafted and kept tokens by their position in a pass, from
    0, and the number of passes."""

    drafter: Drafter
    drafted: Counter[int] = field(default_factory=Counter)
    kept: Counter[int] = field(default_factory=Counter)
    passes: int = 0

    @property
    def share_kept(self) -> float:
        return self.kept.total() / max(1, self.drafted.total())

    def drafts(self, hidden_D: Tensor, sampler: Sampler, limit: int) -> list[Draft]:
        """Draft at most `limit` tokens after the sampler's text, which is left unchanged."""
        text, drafts = sampler.text, []
        length = len(text.tokens)
        for _ in range(min(limit, self.drafter.begin(hidden_D, text.tokens))):
            drafts.append(sampler.draft(self.drafter.step(text.tokens[-1]).float().cpu(), self.drafter.tokens_N))
            text.append(drafts[-1].token)
        text.rollback(length)
        return drafts

    def count(self, num_drafted: int, num_kept: int) -> None:
        self.drafted.update(range(num_drafted))
        self.kept.update(range(num_kept))
        self.passes += 1


def slid(window: int) -> int:
    """Return how many tokens of a full window are left when it slides by a quarter."""
    return window - max(1, window // 4)


def without(logits_V: Tensor, impossible_V: np.ndarray) -> Tensor:
    """Return logits (V,) with no probability for impossible tokens; rows past the tokenizer's stay."""
    logits_V = logits_V.clone()
    logits_V[: len(impossible_V)][torch.from_numpy(impossible_V)] = float("-inf")
    return logits_V


@torch.inference_mode()
def generate(
    decoder: Decoder,
    prompt_tokens: Sequence[int],
    max_new_tokens: int,
    *,
    temperature: float = TEMPERATURE,
    top_p: float = TOP_P,
    block_ngram: int = 0,
    generator: torch.Generator | None = None,
    stop_tokens: Collection[int] = (),
    drafting: Drafting | None = None,
    neighbours: Neighbours | None = None,
    recall: Recall | None = None,
) -> Iterator[int]:
    """Continue `prompt_tokens` (at least one), one token at a time, until one of
    `stop_tokens` (not yielded) or the limit.

    Attention reaches back over at most the model's seq_length: when the window is full, it slides
    by a quarter, and what is left in it is encoded again, since the keys in the cache depend on
    the text before it. This is at the same token with and without drafts. With `block_ngram` n >
    0, no n tokens in a row come twice, unless they end the text; by default they may, since they do in real text: with n = 3
    every seventh token of prose would be forbidden, and 23% of Python's. With `neighbours`, no two
    new tokens are neighbours that no text has; the first may be, since a prompt may end inside of
    a word. With `recall`, what followed the same tokens in the prompt is more probable.
    `generator` is on the CPU; without one, a new generator is seeded from the operating system.
    """
    assert len(prompt_tokens) > 0, "a prompt has at least one token: the end-of-text token begins a document"
    if generator is None:
        generator = torch.Generator()
        generator.seed()
    text = NgramBlocker(prompt_tokens, block_ngram, allowed=stop_tokens)
    sampler = Sampler(text, temperature, top_p, generator)
    if recall:
        recall.begin(prompt_tokens)
    decoder.rollback(0)
    fresh, remaining, hidden_D = list(prompt_tokens), max_new_tokens, None
    while remaining > 0:
        if decoder.length + len(fresh) > decoder.max_length:
            decoder.rollback(0)
            fresh = text.tokens[-slid(decoder.max_length) :]
        room = min(remaining - 1, decoder.max_length - decoder.length - len(fresh))
        drafts: list[Draft] = drafting.drafts(hidden_D, sampler, room) if drafting and hidden_D is not None else []
        hidden_TD = decoder(fresh + [draft.token for draft in drafts])[len(fresh) - 1 :]
        new = []
        for logits_V, draft in zip_longest(decoder.output(hidden_TD).float().cpu(), drafts):
            if recall:
                logits_V = recall(logits_V, text.tokens)
            if neighbours and len(text.tokens) > len(prompt_tokens):
                logits_V = without(logits_V, ~neighbours.after(text.tokens[-1]))
            new.append(sampler.accept_or_resample(logits_V, draft))
            text.append(new[-1])
            if draft is None or new[-1] in stop_tokens or new[-1] != draft.token:
                break
        num_kept = len(new) - 1
        decoder.rollback(decoder.length - len(drafts) + num_kept)
        fresh, hidden_D, remaining = new[-1:], hidden_TD[num_kept], remaining - len(new)
        if drafting:
            drafting.count(len(drafts), num_kept)
        for token in new:
            if token in stop_tokens:
                return
            yield token
