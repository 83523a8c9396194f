"""A drafter made of the heads: dynamics unrolls the latent, the policy's reading of it proposes tokens, value how many.

    u^0 = h_{t-1},    u^k = step(u^{k-1}, E[x]) for the token x last chosen,    q = softmax(W u^k)

as in training (dynamics.py, policy.py). q knows the first tokens of the vocabulary only: byte-level BPE numbers tokens in
the order of their merges, so these are about the most frequent ones, and the product with all of W would take longer
than the rest of a draft. Whoever verifies drafts makes the text exact; here anything may be wrong.

Value predicts the nats a token of what comes: the harder, the fewer drafts. Never here: sampling, the trunk, its cache.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from aux_heads.dynamics import Dynamics
from aux_heads.inputs import UNROLL_STEPS
from aux_heads.value import Value

NUM_TOKENS = 2048
NATS = 16.0  # drafts are made for so many predicted nats, rounded, and for as many steps as were trained at most


class HeadDrafter:
    """`heads` as of `build_heads`, with dynamics and policy; without value there are always as many drafts as may be."""

    def __init__(self, heads: nn.ModuleDict, embedding_VD: Tensor, output_VD: Tensor):
        dynamics, value = heads["dynamics"], dict(heads).get("value")
        assert isinstance(dynamics, Dynamics)
        assert value is None or isinstance(value, Value)
        self.dynamics, self.value = dynamics, value
        self.embedding_VD = embedding_VD
        self.output_DN = output_VD[:NUM_TOKENS].t().contiguous()  # a vector times this is faster than times W

    def begin(self, hidden_D: Tensor, tokens: Sequence[int]) -> int:
        """How many tokens to draft behind `tokens`, all but the last of which `hidden_D` has seen."""
        self.latent_D = hidden_D
        if self.value is None:
            return UNROLL_STEPS
        nats = float(self.value.expectation(self.value.logits(hidden_D)))
        return min(UNROLL_STEPS, round(NATS / max(1.0, nats)))

    def step(self, token: int) -> Tensor:
        """(N,) logits of what follows `token`."""
        self.latent_D = self.dynamics.step(self.latent_D, self.embedding_VD[token])
        return self.latent_D @ self.output_DN
