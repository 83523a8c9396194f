"""Planning ahead: several candidate chunks are drawn, one is chosen by what it promises, and so on.

A chunk's promise is the mean log-probability a token of itself and of the HORIZON tokens after it. The latter nobody has
written yet: it is minus the value of the latent that dynamics reaches from the chunk's last state by its last token. The
two heads are handed in as one function, `value_ahead`.

This is MuZero's lookahead (arXiv 1911.08265) with one level of chunks and without a tree. High likelihood is not good
text (Holtzman et al., arXiv 1904.09751), so whether it helps is for an external judge: benchmarks/planning.py.

Shapes: D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from aux_heads.value import HORIZON
from lm.inference.decoder import Decoder
from lm.inference.sampling import TEMPERATURE, TOP_P, NgramBlocker, Sampler

ValueAhead = Callable[[Tensor, int], float]
"""(state (D,) that predicted the last token, that token) -> nats a token of what comes after it."""


class Candidate(NamedTuple):
    tokens: list[int]
    log_probability: float  # summed; of the model's own distribution: temperature 1, nothing cut
    value: float  # nats a token of what comes after it
    ended: bool  # by the stop token, which is not among the tokens; nothing comes after it


def promise(candidate: Candidate) -> float:
    """Mean log-probability a token of the chunk and what comes after it."""
    horizon = 0 if candidate.ended else HORIZON
    num_tokens = len(candidate.tokens) + candidate.ended + horizon
    return (candidate.log_probability - horizon * candidate.value) / num_tokens


def promises(candidates: Sequence[Candidate]) -> list[float]:
    return list(map(promise, candidates))


@torch.inference_mode()
def plan(
    decoder: Decoder,
    prompt_tokens: Sequence[int],
    max_new_tokens: int,
    value_ahead: ValueAhead,
    *,
    num_candidates: int = 8,
    chunk_length: int = 16,
    score: Callable[[Sequence[Candidate]], Sequence[float]] = promises,
    temperature: float = TEMPERATURE,
    top_p: float = TOP_P,
    block_ngram: int = 3,
    generator: torch.Generator,
    stop_token: int | None = None,
) -> Iterator[int]:
    """`generate` by chunks: each is the one of `num_candidates` samples that `score` ranks highest. A full
    window starts again with its last half, of which `chunk_length` is at most a half."""
    text = NgramBlocker(prompt_tokens, block_ngram)
    sampler = Sampler(text, temperature, top_p, generator)
    decoder.rollback(0)
    fresh, end = list(prompt_tokens), len(prompt_tokens) + max_new_tokens
    while len(text.tokens) < end:
        length = min(chunk_length, end - len(text.tokens))
        if decoder.length + len(fresh) + length > decoder.max_length:
            decoder.rollback(0)
            fresh = text.tokens[-(decoder.max_length // 2) :]
        state_D = decoder(fresh)[-1]
        candidates = [_draw(decoder, state_D, sampler, length, value_ahead, stop_token) for _ in range(num_candidates)]
        scores = score(candidates)
        best = candidates[max(range(num_candidates), key=scores.__getitem__)]
        yield from best.tokens
        if best.ended:
            return
        for token in best.tokens:
            text.append(token)
        fresh = best.tokens


def _draw(
    decoder: Decoder,
    state_D: Tensor,
    sampler: Sampler,
    length: int,
    value_ahead: ValueAhead,
    stop_token: int | None,
) -> Candidate:
    """One chunk after `state_D`; decoder and text are left as they were."""
    text, num_cached = sampler.text, decoder.length
    start, log_probability = len(text.tokens), 0.0
    while True:
        logits_V = decoder.output(state_D[None])[0].float().cpu()
        token = sampler.accept_or_resample(logits_V, None)
        log_probability += float(logits_V.log_softmax(-1)[token])
        if token == stop_token:
            break
        text.append(token)
        if len(text.tokens) - start == length:
            break
        state_D = decoder([token])[0]
    tokens = text.tokens[start:]
    text.rollback(start)
    decoder.rollback(num_cached)
    return Candidate(tokens, log_probability, value_ahead(state_D, token), token == stop_token)
