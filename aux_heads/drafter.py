"""A drafter made of the heads: dynamics unrolls the latent, the policy's readout of it proposes
tokens, value sets their number.

    u^0 = h_{t-1},    u^k = step(u^{k-1}, E[x]) for the token x last chosen,    q = softmax(W u^k)

as in training (dynamics.py, policy.py), in fewer and larger operations: one matmul for both maps
of z, with the sqrt(D) of its norms folded into the weight. q covers only the most frequent tokens of
the run's text or, where its counts are not known, the first of the vocabulary, since byte-level BPE
numbers tokens in the order of their merges. The verification of drafts makes the text exact, so
nothing here has to be, and weights are rounded to a byte each: the time of a draft is that of
reading them.

Value predicts the nats per token of what follows: the harder, the fewer drafts. It seldom matters,
since the share of drafts kept hardly depends on it (benchmarks/LOG.md). Never here: the loop that
verifies drafts with the trunk (lm/inference/generate.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aux_heads.dynamics import Dynamics
from aux_heads.sizes import UNROLL_STEPS
from aux_heads.value import Value

NUM_TOKENS = 4096
# The int8 kernel reads outputs and inputs in blocks of these sizes, even past the end.
WHOLE_OUTPUTS, WHOLE_INPUTS = 4, 32
# Tokens between two queries: value predicts the next 32 as a whole, and takes
# as long as two drafts.
ASKED_EVERY = 16
# Number of drafts times predicted nats per token, up to rounding; at most as many
# drafts as trained steps.
NATS = 16.0


def rounded_linear(weight_OI: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the map from x (1, I) to (1, O), on a CPU with int8 weights
    and one scale per output."""
    num_outputs, num_inputs = weight_OI.shape
    if num_outputs % WHOLE_OUTPUTS or num_inputs % WHOLE_INPUTS or weight_OI.device.type != "cpu":
        return lambda x: F.linear(x, weight_OI)
    scale_O = (weight_OI.abs().amax(dim=1) / 127).clamp(min=torch.finfo(torch.float32).tiny)
    int8_OI, scale_O = (weight_OI / scale_O[:, None]).round().to(torch.int8), scale_O.bfloat16()
    return lambda x: torch._weight_int8pack_mm(x.bfloat16(), int8_OI, scale_O).float()


class HeadDrafter:
    """The drafter of `heads` (see `build_heads`), which include dynamics and policy. Without
    value, it always drafts the maximum. `counts_V`: how often the run's text has each token."""

    @torch.no_grad()
    def __init__(self, heads: nn.ModuleDict, embedding_VD: Tensor, output_VD: Tensor, counts_V: Tensor | None = None):
        dynamics, value = heads["dynamics"], dict(heads).get("value")
        assert isinstance(dynamics, Dynamics)
        assert value is None or isinstance(value, Value)
        self.value, self.embedding_VD = value, embedding_VD
        width = embedding_VD.shape[1]
        self.sizes = width, 2 * width, 2 * width
        transition = torch.cat((dynamics.linear.weight, dynamics.gate_up.weight)) * width**0.5
        self.tokens_N = torch.arange(min(NUM_TOKENS, len(output_VD)))
        if counts_V is not None:
            self.tokens_N = counts_V.argsort(descending=True, stable=True)[: len(self.tokens_N)].sort().values
        weights = transition, dynamics.down.weight, output_VD[self.tokens_N]
        self.transition, self.down, self.output = map(rounded_linear, weights)
        self.text: Sequence[int] = ()
        self.ask_at, self.num_drafts = 0, UNROLL_STEPS

    def begin(self, hidden_D: Tensor, tokens: Sequence[int]) -> int:
        """Return how many tokens to draft after `tokens`; `hidden_D` has seen all but the last.
        Another list is another text."""
        self.latent_1D = hidden_D[None]
        if self.value is not None and (tokens is not self.text or len(tokens) >= self.ask_at):
            nats = float(self.value.expectation(self.value.logits(hidden_D)))
            self.text, self.ask_at = tokens, len(tokens) + ASKED_EVERY
            self.num_drafts = min(UNROLL_STEPS, round(NATS / max(1.0, nats)))
        return self.num_drafts

    def step(self, token: int) -> Tensor:
        """Return the logits (N,) of `tokens_N` after `token`."""
        embedding_1D = self.embedding_VD[token : token + 1]
        z = torch.cat([F.normalize(x, dim=-1) for x in (self.latent_1D, embedding_1D)], dim=-1)
        linear, gate, up = self.transition(z).split(self.sizes, dim=-1)
        self.latent_1D = linear + self.down(F.silu(gate) * up)
        return self.output(self.latent_1D)[0]
