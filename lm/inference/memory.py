"""A cache of n-grams: what followed the same tokens earlier in a text, mixed into the model's distribution.

`Earlier` finds the longest match of the last tokens among those before, `Gate` decides by the match
and the model's certainty how much it counts: p' = (1 - l) p + l q, where q are the shares of the
tokens that followed, and l is known before the next token is. `Recall` does so with the prompt of a
text that is generated, whose own tokens are not matched: a text that repeats itself a little would
go on for ever (benchmarks/LOG.md). `fit_recall` fits the gate on held-out documents.

Shapes: n tokens, M memories, F features, V vocabulary.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from data.heldout import HeldOut
from lm.model import Transformer

DEPTH = 16  # tokens: longer matches count as this long
SHORTEST, MOST_TRIED = 2, 32  # tokens of a match; places of it that are looked at, the newest
AT_ONCE = 256  # positions of which all logits are in memory
FIT_DOCUMENTS = 64  # one half fits the gate, the other half shows what it is worth


class Match(NamedTuple):
    """The longest match: its length in tokens, the number of positions that have it, and how often
    each token followed, as far as that was counted."""

    length: int
    positions: int
    following: Counter[int]

    def best(self) -> tuple[int, float]:
        """Return the most frequent token with its share of those that followed; (0, 0) of no match."""
        token, times = self.following.most_common(1)[0] if self.length else (0, 0)
        return token, times / max(1, self.following.total())


NOTHING = Match(0, 0, Counter())


class Earlier:
    """A text that grows, in which contexts are looked up."""

    def __init__(self, tokens: Sequence[int] = ()) -> None:
        self.tokens: list[int] = []
        self._places: dict[tuple[int, ...], list[int]] = {}  # after every SHORTEST tokens in a row
        for token in tokens:
            self.append(token)

    def append(self, token: int) -> None:
        if len(self.tokens) >= SHORTEST:
            self._places.setdefault(tuple(self.tokens[-SHORTEST:]), []).append(len(self.tokens))
        self.tokens.append(token)

    def longest(self, context: Sequence[int]) -> Match:
        """Return the longest match of the end of `context` among the newest MOST_TRIED in this text."""
        lengths = {}
        for place in self._places.get(tuple(context[-SHORTEST:]), ())[-MOST_TRIED:]:
            length, most = SHORTEST, min(DEPTH, place, len(context))
            while length < most and self.tokens[place - length - 1] == context[-length - 1]:
                length += 1
            lengths[place] = length
        longest = max(lengths.values(), default=0)
        following = Counter(self.tokens[place] for place, length in lengths.items() if length == longest)
        return Match(longest, following.total(), following)


def features(
    length: np.ndarray, positions: np.ndarray, share: np.ndarray, entropy: np.ndarray, log_p: np.ndarray
) -> np.ndarray:
    """Return (..., F) what a memory's weight depends on, all known before the next token: the length
    of its match, the positions that have it, the share of its most frequent token, the model's
    entropy and its log-probability of that token, in nats."""
    long, many = np.log(np.maximum(length, 1)), np.log(np.maximum(positions, 1))
    return np.stack([np.ones_like(entropy), long, long**2, many, share, entropy, entropy**2, log_p], -1)


class Gate:
    """The mixture of the model (first) and M memories, by weights (M, F) of the memories' features."""

    def __init__(self, weights_MF: np.ndarray):
        self.weights_MF = weights_MF

    def shares(self, features: np.ndarray, present: np.ndarray) -> np.ndarray:
        """Return (..., M + 1) shares, which sum to 1, for features (..., M, F); a memory that is not
        `present` (..., M) has none."""
        scores = np.where(present, (features * self.weights_MF).sum(-1), -np.inf)
        scores = np.concatenate([np.zeros((*scores.shape[:-1], 1)), scores], -1)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        return shares / shares.sum(-1, keepdims=True)


def fit_gate(features: np.ndarray, present: np.ndarray, targets: np.ndarray) -> Gate:
    """Return the gate with the least loss, for features (n, M, F) and the probabilities (n, M + 1) that
    the model and each memory give to the target. Found with L-BFGS."""
    scale = np.abs(features).max((0, 1)).clip(1e-9)
    features_NMF = torch.from_numpy(features / scale)
    absent_NM, logs_NM = torch.from_numpy(~present), torch.from_numpy(targets).clamp(min=1e-30).log()
    weights_MF = torch.zeros(features.shape[1:], dtype=torch.float64)
    weights_MF[:, 0] = -3.0  # memories begin with little
    weights_MF.requires_grad_()
    optimizer = torch.optim.LBFGS([weights_MF], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        scores_NM = (features_NMF * weights_MF).sum(-1).masked_fill(absent_NM, -math.inf)
        shares_NM = torch.cat([torch.zeros(len(scores_NM), 1), scores_NM], 1).log_softmax(1)
        value = -(shares_NM + logs_NM).logsumexp(1).mean() + 1e-6 * weights_MF.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return Gate(weights_MF.detach().numpy() / scale)


class Recall:
    """Raises the probability of what followed the same tokens in the prompt of a generated text."""

    def __init__(self, gate: Gate):
        self.gate, self._prompt = gate, Earlier()

    def begin(self, prompt: Sequence[int]) -> None:
        self._prompt = Earlier(prompt)

    def __call__(self, logits_V: Tensor, tokens: Sequence[int]) -> Tensor:
        """Return the logarithms (V,) of the mixture after `tokens`."""
        match = self._prompt.longest(tokens)
        if not match.length:
            return logits_V
        p_V, (best, share) = logits_V.double().softmax(-1), match.best()
        log_p = math.log(max(float(p_V[best]), 1e-30))
        values = (match.length, match.positions, share, float(torch.special.entr(p_V).sum()), log_p)
        own, other = self.gate.shares(features(*map(np.array, values))[None], np.array([True]))
        mixed_V = own * p_V
        for token, times in match.following.items():
            mixed_V[token] += other * times / match.following.total()
        assert abs(float(mixed_V.sum()) - 1) < 1e-6
        return mixed_V.log().to(logits_V.dtype)


@torch.inference_mode()
def fit_recall(model: Transformer, held_out: HeldOut, token_bytes: np.ndarray) -> tuple[Recall | None, str]:
    """Return a Recall fitted on every other of FIT_DOCUMENTS documents of each source, or None if it
    does not help on the rest, and what it does there in words."""
    of_each: dict[str, list[tuple[np.ndarray, ...]]] = {}
    for label, tokens, _ in held_out.documents(FIT_DOCUMENTS):
        if len(tokens) > SHORTEST:
            described = _describe(model, tokens[: model.config.seq_length + 1], token_bytes)
            of_each.setdefault(label, []).append(described)
    fitted_on, judged_by = ([rows for each in of_each.values() for rows in each[half::2]] for half in (0, 1))
    if not judged_by:
        return None, "too few documents are held out to fit /recall"
    inputs, present, targets, size = (np.concatenate(column) for column in zip(*fitted_on, strict=True))
    with torch.inference_mode(False), torch.enable_grad():
        gate = fit_gate(inputs, present, targets)
    inputs, present, targets, size = (np.concatenate(column) for column in zip(*judged_by, strict=True))
    mixed = (gate.shares(inputs, present) * targets).sum(1)
    before, after = (-np.log(p[size > 0]).sum() / max(1, size.sum()) / math.log(2) for p in (targets[:, 0], mixed))
    words = f"{before:.4f} bits per byte without, {after:.4f} with it, on held-out documents"
    return (Recall(gate), words) if after < before else (None, f"/recall does not help: {words}")


def _describe(model: Transformer, tokens: list[int], token_bytes: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return features (n, 1, F), present (n, 1), targets (n, 2) and bytes (n,) of a document's targets."""
    states_TD, earlier, rows, own = model(torch.tensor([tokens[:-1]]))[0], Earlier(), list[tuple](), list[Tensor]()
    for i, target in enumerate(tokens[1:]):
        if i % AT_ONCE == 0:
            logs_NV = model.output(states_TD[i : i + AT_ONCE]).float().log_softmax(-1)
            entropy_N = -(logs_NV.exp() * logs_NV).sum(1)
            own.append(logs_NV[torch.arange(len(logs_NV)), torch.tensor(tokens[i + 1 :][:AT_ONCE])])
        earlier.append(tokens[i])
        match = earlier.longest(earlier.tokens)
        best, share = match.best()
        shared = match.following[target] / max(1, match.following.total())
        log_p = float(logs_NV[i % AT_ONCE, best])
        rows.append((match.length, match.positions, share, float(entropy_N[i % AT_ONCE]), log_p, shared))
    *described, shared_N = np.array(rows).T
    targets = np.stack([torch.cat(own).double().exp().numpy(), shared_N], 1)
    return features(*described)[:, None], described[0][:, None] > 0, targets, token_bytes[tokens[1:]]
