"""The rule that turns logits into the next token, and the acceptance rule that keeps it
exact for drafted tokens.

`process_logits` is the whole sampling rule as one pure function, with the n-grams of the text as
it would be at that position; drafts go through it too, with their own settings. `Sampler.accept_or_resample`
then keeps or replaces a draft such that the distribution of the text is that without drafts
(Leviathan et al., arXiv 2211.17192). Everything runs on the CPU in fp32, so that a seed gives the
same text on every device whose logits agree. Never here: models, global random generators.

Shapes: V vocabulary, N vocabulary of the drafter (N of the V tokens).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

TEMPERATURE, TOP_P = 0.8, 0.95  # defaults


class NgramBlocker:
    """A text and the tokens that would repeat one of its n-grams: for every n-1 tokens seen, those
    that followed them, but for those `allowed`. With n = 0 there are none.

    The lists are stacks, so that `rollback` undoes `append` exactly, as a rejected draft requires.
    """

    def __init__(self, tokens: Sequence[int] = (), n: int = 3, allowed: Collection[int] = ()):
        assert n >= 0
        self.n, self.allowed = n, allowed
        self.tokens: list[int] = []
        self._followers: dict[tuple[int, ...], list[int]] = {}
        for token in tokens:
            self.append(token)

    def _context(self) -> tuple[int, ...]:
        return tuple(self.tokens[len(self.tokens) + 1 - self.n :])

    def append(self, token: int) -> None:
        if self.n and len(self.tokens) >= self.n - 1:
            self._followers.setdefault(self._context(), []).append(token)
        self.tokens.append(token)

    def rollback(self, length: int) -> None:
        """Drop everything after the first `length` tokens."""
        while len(self.tokens) > length:
            self.tokens.pop()
            if self.n and len(self.tokens) >= self.n - 1:
                self._followers[self._context()].pop()

    def banned(self) -> list[int]:
        """Return the tokens that must not come next."""
        followers = self._followers.get(self._context(), []) if self.n else []
        return [token for token in followers if token not in self.allowed]


def ban(logits_V: Tensor, banned: Collection[int]) -> Tensor:
    """Mask banned tokens, unless no token would be left: a repeated n-gram is better than no text."""
    known = sorted({token for token in banned if token < len(logits_V)})
    if not known:
        return logits_V
    left_V = logits_V.index_fill(0, torch.tensor(known), float("-inf"))
    return left_V if left_V.max() > float("-inf") else logits_V


def process_logits(logits_V: Tensor, banned: Collection[int], temperature: float, top_p: float) -> Tensor:
    """Return the distribution of the next token, (V,) in fp32: ban, temperature, softmax, nucleus.

    The nucleus is the smallest set of most probable tokens whose mass reaches `top_p` (Holtzman et
    al., arXiv 1904.09751), with all tokens as probable as its last; never empty. `temperature` 0
    is greedy: all mass on the best token. On the CPU, without gradients.
    """
    logits_V = ban(logits_V.float(), banned)
    if temperature == 0:
        return torch.zeros_like(logits_V).index_fill_(0, logits_V.argmax(), 1.0)
    # A temperature that underflows in fp32 would divide by 0, and a tiny one would overflow
    # without subtracting the maximum.
    temperature = max(temperature, torch.finfo(torch.float32).tiny)
    probabilities_V = torch.softmax((logits_V - logits_V.max()) / temperature, dim=-1)
    if top_p >= 1:
        return probabilities_V
    ascending_V = torch.from_numpy(np.sort(probabilities_V.numpy()))  # 30 times as fast as torch.sort, on one core
    mass_V = ascending_V.cumsum(-1, dtype=torch.float64)
    num_left_out = torch.searchsorted(mass_V, mass_V[-1] * (1 - top_p), right=True)
    last = ascending_V[num_left_out.clamp_(max=len(ascending_V) - 1)]
    nucleus_V = probabilities_V * (probabilities_V >= last)
    return nucleus_V / nucleus_V.sum()


def sample(weights_V: Tensor, generator: torch.Generator) -> int:
    """Sample a token with probability proportional to its weight;
    `torch.multinomial` takes 20 times as long."""
    mass_V = weights_V.cumsum(-1, dtype=torch.float64)
    point = torch.rand((), dtype=torch.float64, generator=generator) * mass_V[-1]
    return int(torch.searchsorted(mass_V, point, right=True))


def places(tokens: Collection[int], tokens_N: Tensor) -> list[int]:
    """Return where in `tokens_N` (ascending) those of `tokens` are that it has."""
    if not tokens:
        return []
    wanted = torch.tensor(sorted(set(tokens)))
    found = torch.searchsorted(tokens_N, wanted).clamp_(max=len(tokens_N) - 1)
    return found[tokens_N[found] == wanted].tolist()


class Draft(NamedTuple):
    """A token, and the distribution that it was sampled from: q_N of `tokens_N`, of which it is number `choice`."""

    token: int
    choice: int
    tokens_N: Tensor
    q_N: Tensor


class Sampler:
    """The sampler of the tokens that follow `text`, to which the caller appends them."""

    def __init__(self, text: NgramBlocker, temperature: float, top_p: float, generator: torch.Generator):
        self.text, self.temperature, self.top_p, self.generator = text, temperature, top_p, generator

    def draft(self, logits_N: Tensor, tokens_N: Tensor) -> Draft:
        """Sample one of `tokens_N` (ascending ids) without the nucleus, which would take half of a
        draft's time: a temperature lowered by the factor `top_p` cuts off about as much, and as
        many drafts are kept (benchmarks/LOG.md)."""
        banned = places(self.text.banned(), tokens_N)
        q_N = process_logits(logits_N, banned, self.temperature * self.top_p, 1.0)
        choice = sample(q_N, self.generator)
        return Draft(int(tokens_N[choice]), choice, tokens_N, q_N)

    def accept_or_resample(self, logits_V: Tensor, draft: Draft | None) -> int:
        """Return the next token, by the trunk's logits. A draft y ~ q is kept with probability
        min(1, p(y) / q(y)), or else replaced by a sample from max(0, p - q): either way the
        token is distributed as p."""
        p_V = process_logits(logits_V, self.text.banned(), self.temperature, self.top_p)
        if draft is None:
            return sample(p_V, self.generator)
        token, choice, tokens_N, q_N = draft
        if torch.rand((), generator=self.generator) * q_N[choice] < p_V[token]:
            return token
        rest_V = p_V.index_add(0, tokens_N, q_N, alpha=-1).clamp_(min=0)
        # Nothing is left if p and q differ only by rounding.
        return sample(rest_V if rest_V.any() else p_V, self.generator)
