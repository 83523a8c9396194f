"""Text from a trained trunk: key-value cache, the rule that turns logits into probabilities, and the sampling loop.

`process_logits` is the whole sampling rule as one pure function, so that speculative decoding can apply exactly the
same rule to a draft's positions. Never here: text (tokens in, tokens out), training, the global random generators.

Shapes: B rows, H heads, S cache slots (the model's seq_length), K head dimension, T positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor

from lm.model import Transformer


class KVCache:
    """Keys and values of the tokens seen so far, one (B, H, S, K) pair a layer, allocated at the first use.

    S is fixed: positions past the training length have no meaning to a rotary model, so whoever decodes must `rollback`
    and prefill again before the cache overflows (`generate` does). `rollback` costs nothing: it moves `length` back.
    """

    def __init__(self, num_layers: int, max_length: int):
        self.max_length = max_length
        self.length = 0
        self._keys: list[Tensor | None] = [None] * num_layers
        self._values: list[Tensor | None] = [None] * num_layers

    @classmethod
    def for_model(cls, model: Transformer) -> KVCache:
        return cls(model.config.num_layers, model.config.seq_length)

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write k and v (B, H, T, K) behind the cached positions; all keys and values so far, (B, H, length + T, K)."""
        keys, values = self._keys[layer], self._values[layer]
        if keys is None or values is None:
            shape = (*k.shape[:2], self.max_length, k.shape[-1])
            keys = self._keys[layer] = k.new_empty(shape)
            values = self._values[layer] = v.new_empty(shape)
        end = self.length + k.shape[2]
        keys[:, :, self.length : end] = k
        values[:, :, self.length : end] = v
        return keys[:, :, :end], values[:, :, :end]

    def advance(self, num_positions: int) -> None:
        """Called once a forward pass, after every layer's `update`: the new positions count from now on."""
        self.length += num_positions
        assert self.length <= self.max_length, "the caller refills the window before the cache overflows"

    def rollback(self, length: int) -> None:
        """Forget everything after the first `length` positions."""
        assert 0 <= length <= self.length
        self.length = length

    def select(self, rows: Sequence[int]) -> None:
        """Go on with these of the B rows; one may come several times."""
        for stored in (self._keys, self._values):
            stored[:] = [None if tensor is None else tensor[list(rows)] for tensor in stored]


class NgramBlocker:
    """Which tokens would repeat an n-gram of the sequence: for every n-1 tokens seen, what followed them.

    The lists are stacks, so that `rollback` undoes `append` exactly, as a rejected draft needs it.
    """

    def __init__(self, tokens: Sequence[int] = (), n: int = 3):
        assert n >= 2
        self.context = n - 1
        self.tokens: list[int] = []
        self._followers: dict[tuple[int, ...], list[int]] = {}
        for token in tokens:
            self.append(token)

    def append(self, token: int) -> None:
        if len(self.tokens) >= self.context:
            self._followers.setdefault(tuple(self.tokens[-self.context :]), []).append(token)
        self.tokens.append(token)

    def rollback(self, length: int) -> None:
        """Forget everything after the first `length` tokens."""
        while len(self.tokens) > length:
            self.tokens.pop()
            if len(self.tokens) >= self.context:
                self._followers[tuple(self.tokens[-self.context :])].pop()

    def banned(self) -> list[int]:
        """The tokens that must not come next."""
        return self._followers.get(tuple(self.tokens[-self.context :]), [])


def process_logits(logits_V: Tensor, banned: Collection[int], temperature: float, top_p: float) -> Tensor:
    """The distribution the next token is drawn from, (V,) in fp32: ban, temperature, softmax, nucleus.

    The nucleus is the smallest set of most probable tokens whose mass reaches `top_p`, never empty (Holtzman et al.,
    arXiv 1904.09751); equal probabilities keep the order of their ids. `temperature` 0 is greedy: all mass on the best
    token. If every token is banned, none is: a repeated n-gram is better than no text.
    """
    logits_V = logits_V.float()
    banned = sorted(set(banned))
    if 0 < len(banned) < len(logits_V):
        logits_V = logits_V.index_fill(0, torch.tensor(banned, device=logits_V.device), float("-inf"))
    if temperature == 0:
        return torch.zeros_like(logits_V).index_fill_(0, logits_V.argmax(), 1.0)
    probabilities_V = torch.softmax(logits_V / temperature, dim=-1)
    if top_p >= 1:
        return probabilities_V
    ordered, order = probabilities_V.sort(descending=True, stable=True)
    mass_before = ordered.cumsum(-1) - ordered
    kept = mass_before < top_p
    kept[0] = True
    nucleus_V = torch.zeros_like(probabilities_V).index_copy_(0, order, ordered * kept)
    return nucleus_V / nucleus_V.sum()


@torch.inference_mode()
def generate(
    model: Transformer,
    prompt_tokens: Sequence[int],
    max_new_tokens: int,
    *,
    temperature: float = 0.8,
    top_p: float = 0.95,
    block_ngram: int = 3,
    generator: torch.Generator | None = None,
    stop_token: int | None = None,
) -> Iterator[int]:
    """Continue `prompt_tokens` (at least one), one token at a time, until `stop_token` (not yielded) or the limit.

    Attention reaches back over at most the model's seq_length: when the window is full, it starts again with its last
    half. `block_ngram` 0 blocks nothing. `generator` lives on the CPU, as does the sampling, so that a seed gives the
    same text on every device whose logits agree; without one, a fresh generator is seeded from the operating system.
    """
    assert len(prompt_tokens) > 0, "a prompt has at least one token: the end-of-text token begins a document"
    if generator is None:
        generator = torch.Generator()
        generator.seed()
    device = model.embed.weight.device
    tokens = list(prompt_tokens)
    cache = KVCache.for_model(model)
    blocker = NgramBlocker(tokens, block_ngram) if block_ngram else None
    fresh = tokens
    for _ in range(max_new_tokens):
        if cache.length + len(fresh) > cache.max_length:
            cache.rollback(0)
            fresh = tokens[-max(1, cache.max_length // 2) :]
        hidden_BTD = model(torch.tensor([fresh], device=device), cache=cache)
        logits_V = model.output(hidden_BTD[0, -1]).float().cpu()
        probabilities_V = process_logits(logits_V, blocker.banned() if blocker else (), temperature, top_p)
        token = int(torch.multinomial(probabilities_V, 1, generator=generator))
        if token == stop_token:
            return
        tokens.append(token)
        if blocker:
            blocker.append(token)
        fresh = [token]
        yield token
