"""A drafter made of the heads: dynamics unrolls the latent, the policy's reading of it proposes tokens, value how many.

    u^0 = h_{t-1},    u^k = step(u^{k-1}, E[x]) for the token x last chosen,    q = softmax(W u^k)

as in training (dynamics.py, policy.py), in fewer and larger operations: one product for both maps of z, whose norms'
sqrt(D) is part of it. q knows the first tokens of the vocabulary only: byte-level BPE numbers tokens in the order of
their merges, so these are about the most frequent ones. Whoever verifies drafts makes the text exact and here anything
may be wrong, so weights are rounded to a byte each: what a draft takes is the time of reading them.

Value predicts the nats a token of what comes: the harder, the fewer drafts. Never here: sampling, the trunk, its cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aux_heads.dynamics import Dynamics
from aux_heads.inputs import UNROLL_STEPS
from aux_heads.value import Value

NUM_TOKENS = 4096
ASKED_EVERY = 16  # tokens: value speaks of the next 32 as a whole, and takes as long as two drafts
NATS = 16.0  # drafts are made for so many predicted nats, rounded, and for as many steps as were trained at most


WHOLE = 32  # inputs: the kernel of eight bits reads as many at a time, beyond the end of a weight if it has to


def rounded_linear(weight_OI: Tensor) -> Callable[[Tensor], Tensor]:
    """The map x (1, I) to (1, O), on a CPU with weights of eight bits and a scale for each output."""
    if weight_OI.shape[1] % WHOLE or weight_OI.device.type != "cpu":
        return lambda x: F.linear(x, weight_OI)
    scale_O = (weight_OI.abs().amax(dim=1) / 127).clamp(min=torch.finfo(torch.float32).tiny)
    int8_OI, scale_O = (weight_OI / scale_O[:, None]).round().to(torch.int8), scale_O.bfloat16()
    return lambda x: torch._weight_int8pack_mm(x.bfloat16(), int8_OI, scale_O).float()


class HeadDrafter:
    """`heads` as of `build_heads`, with dynamics and policy; without value there are always as many drafts as may be."""

    @torch.no_grad()
    def __init__(self, heads: nn.ModuleDict, embedding_VD: Tensor, output_VD: Tensor):
        dynamics, value = heads["dynamics"], dict(heads).get("value")
        assert isinstance(dynamics, Dynamics)
        assert value is None or isinstance(value, Value)
        self.value, self.embedding_VD = value, embedding_VD
        width = embedding_VD.shape[1]
        self.sizes = width, 2 * width, 2 * width
        transition = torch.cat((dynamics.linear.weight, dynamics.gate_up.weight)) * width**0.5
        weights = transition, dynamics.down.weight, output_VD[:NUM_TOKENS]
        self.transition, self.down, self.output = map(rounded_linear, weights)
        self.asked, self.num_drafts = -ASKED_EVERY, UNROLL_STEPS

    def begin(self, hidden_D: Tensor, tokens: Sequence[int]) -> int:
        """How many tokens to draft behind `tokens`, all but the last of which `hidden_D` has seen."""
        self.latent_1D = hidden_D[None]
        if self.value is not None and not self.asked <= len(tokens) < self.asked + ASKED_EVERY:
            nats = float(self.value.expectation(self.value.logits(hidden_D)))
            self.asked, self.num_drafts = len(tokens), min(UNROLL_STEPS, round(NATS / max(1.0, nats)))
        return self.num_drafts

    def step(self, token: int) -> Tensor:
        """(N,) logits of what follows `token`."""
        embedding_1D = self.embedding_VD[token : token + 1]
        z = torch.cat([x / torch.linalg.vector_norm(x) for x in (self.latent_1D, embedding_1D)], dim=-1)
        linear, gate, up = self.transition(z).split(self.sizes, dim=-1)
        self.latent_1D = linear + self.down(F.silu(gate) * up)
        return self.output(self.latent_1D)[0]
