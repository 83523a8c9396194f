"""Planning ahead: several candidate chunks are drawn side by side, one is chosen by what it promises, and so on.

A chunk's promise is the mean log-probability a token of itself and of the HORIZON tokens after it. The latter nobody has
written yet: it is minus the value of the latent that dynamics reaches from the chunk's last state by its last token. The
two heads are handed in as one function, `value_ahead`. Never here: which heads there are, text.

This is MuZero's lookahead (arXiv 1911.08265) with one level of chunks and without a tree. High likelihood is not good
text (Holtzman et al., arXiv 1904.09751), so whether it helps is for an external judge: benchmarks/planning.py.

Shapes: M candidates, V vocabulary, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lm.generate import KVCache, NgramBlocker, process_logits
from lm.model import Transformer

HORIZON = 32  # tokens whose mean loss the value predicts

ValueAhead = Callable[[Tensor, Tensor], Tensor]
"""(states (M, D) that predicted the last tokens, those tokens (M,)) -> nats a token (M,) of what comes after them."""


class Candidates(NamedTuple):
    """M continuations of one text."""

    chunks: list[list[int]]
    log_probability_M: Tensor  # of a chunk, summed; of the model's own distribution: temperature 1, nothing cut
    value_M: Tensor  # nats a token of what comes after it
    ended_M: Tensor  # bool: by the stop token, which is not in the chunk; nothing comes after it


def promise(candidates: Candidates) -> Tensor:
    """(M,) mean log-probability a token of each chunk and what comes after it."""
    horizon_M = HORIZON * ~candidates.ended_M
    num_tokens_M = torch.tensor([len(chunk) for chunk in candidates.chunks]) + candidates.ended_M + horizon_M
    return (candidates.log_probability_M - horizon_M * candidates.value_M) / num_tokens_M


@torch.inference_mode()
def plan(
    model: Transformer,
    prompt_tokens: Sequence[int],
    max_new_tokens: int,
    value_ahead: ValueAhead,
    *,
    num_candidates: int = 8,
    chunk_length: int = 16,
    score: Callable[[Candidates], Tensor] = promise,
    temperature: float = 0.8,
    top_p: float = 0.95,
    block_ngram: int = 3,
    generator: torch.Generator,
    stop_token: int | None = None,
) -> Iterator[int]:
    """`lm.generate.generate` by chunks: each is the one of `num_candidates` samples that `score` ranks highest. A full
    window starts again with its last half. `chunk_length` is at most a quarter of the model's seq_length."""

    def sample(logits_V: Tensor, blocker: NgramBlocker | None) -> int:
        p_V = process_logits(logits_V, blocker.banned() if blocker else (), temperature, top_p)
        return int(torch.multinomial(p_V, 1, generator=generator))

    tokens = list(prompt_tokens)
    fresh, end = tokens, len(tokens) + max_new_tokens
    cache = KVCache.for_model(model)
    while len(tokens) < end:
        length = min(chunk_length, end - len(tokens))
        if cache.length + len(fresh) + length > cache.max_length:
            cache.rollback(0)
            fresh = tokens[-(cache.max_length // 2) :]
        state_D = model(torch.tensor([fresh], device=model.embed.weight.device), cache=cache)[0, -1]
        cache.select([0] * num_candidates)
        blockers = [NgramBlocker(tokens, block_ngram) if block_ngram else None for _ in range(num_candidates)]
        drawn = _draw(model, cache, state_D, blockers, length, sample, stop_token, value_ahead)
        best = int(score(drawn).argmax())
        yield from drawn.chunks[best]
        if drawn.ended_M[best]:
            return
        cache.select([best])
        tokens += drawn.chunks[best]
        fresh = tokens[-1:]


def _draw(
    model: Transformer,
    cache: KVCache,
    state_D: Tensor,
    blockers: Sequence[NgramBlocker | None],
    length: int,
    sample: Callable[[Tensor, NgramBlocker | None], int],
    stop_token: int | None,
    value_ahead: ValueAhead,
) -> Candidates:
    """One chunk of `length` for each blocker, all after `state_D`; the last token of each is not in the cache yet."""
    num_candidates = len(blockers)
    chunks: list[list[int]] = [[] for _ in blockers]
    log_probability_M = torch.zeros(num_candidates)
    ended_M = torch.zeros(num_candidates, dtype=torch.bool)
    state_MD = state_D.expand(num_candidates, -1)
    for position in range(length):
        logits_MV = model.output(state_MD).float().cpu()
        drawn = [sample(logits_V, blocker) for logits_V, blocker in zip(logits_MV, blockers, strict=True)]
        token_M = torch.tensor(drawn)
        log_p_M = logits_MV.log_softmax(-1).gather(1, token_M[:, None]).squeeze(1)
        log_probability_M += log_p_M * ~ended_M
        ended_M |= token_M == (-1 if stop_token is None else stop_token)
        for token, chunk, blocker, ended in zip(drawn, chunks, blockers, ended_M.tolist(), strict=True):
            if not ended:
                chunk.append(token)
                if blocker:
                    blocker.append(token)
        if position + 1 < length:
            state_MD = model(token_M[:, None].to(state_D.device), cache=cache)[:, -1]
    value_M = value_ahead(state_MD, token_M.to(state_D.device)).float().cpu()
    return Candidates(chunks, log_probability_M, value_M, ended_M)
