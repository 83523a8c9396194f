"""Dynamics: predict the following states from the state h_t and the tokens that follow it.

    z = [RMSNorm(u^{k-1}) ; RMSNorm(sg E[x_{t+k}])],    u^0 = h_t,    u^k = A z + B (silu(G z) * (H z)),    k = 1..3
    loss = mean_{t,k} SmoothL1((u^k_t - sg h_{t+k}) / sigma)

The unrolled latent and the halving of its gradient at every step are MuZero's (arXiv 1911.08265,
appendix G); the SmoothL1 loss to a detached target is NextLat's (arXiv 2511.05963). NextLat's
residual u^{k-1} + MLP(z) is not used: in a small model the next state depends more on the token
than on the last state, and an MLP that first has to remove h_t ends behind linear regression
(benchmarks/LOG.md). So there is a linear map from the start, and a SwiGLU initialised to zero adds
to it. sigma, the standard deviation of the target states in this batch, makes the loss comparable
across widths and across training; without it the loss would follow the gain of the trunk's final
norm.

`Dynamics` is the transition itself. It also exists when only `enable_policy` is set, because the
policy is read from the unrolled latent; the latent loss is then skipped. It never looks past the
end of a document or of the row.
Measures, k = 1..3: `error_k`, the share of the states' variance that is missed (1 is no better
than the mean state; predicting h_t again is worse, so it would be a flattering baseline), and
`centred_cosine_k`, after subtracting the mean state (the raw cosine is flattered by the mean that
all states share).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aux_heads.base import HeadInput, HeadOutput, at, masked_mean, measured_mean, scale_gradient
from aux_heads.sizes import UNROLL_STEPS, transition_shapes

LATENT_GRADIENT_SCALE = 0.5  # per unrolled step


class Unrolled(NamedTuple):
    """Latents of the sampled positions; step 0 is h_t. `reached`: step k ends in the
    document in which it began."""

    latents_KBSD: Tensor  # (K+1, B, S, D) float32
    reached_KBS: Tensor  # (K+1, B, S) bool


class Dynamics(nn.Module):
    def __init__(self, hidden_size: int):
        super().__init__()
        self.linear, self.gate_up, self.down = (
            nn.Linear(columns, rows, bias=False) for rows, columns in transition_shapes(hidden_size)
        )
        nn.init.zeros_(self.down.weight)

    def step(self, latent: Tensor, embedding: Tensor) -> Tensor:
        """Return the latent (..., D) after one more token, given that token's
        input embedding (..., D).

        `HeadDrafter.step` computes the same in fewer operations (a test compares them).
        """
        width = latent.shape[-1:]
        z = torch.cat((F.rms_norm(latent, width), F.rms_norm(embedding, width)), dim=-1)
        gate, up = self.gate_up(z).chunk(2, dim=-1)
        return self.linear(z) + self.down(F.silu(gate) * up)

    def unroll(self, x: HeadInput) -> Unrolled:
        positions_BS = x.sampled["positions"]
        inside_BT = x.inside_document_BT()
        latent_BSD = at(x.hidden_BTD, positions_BS).float()
        reached_BS = torch.ones_like(positions_BS, dtype=torch.bool)
        latents, reached = [latent_BSD], [reached_BS]
        for k in range(1, UNROLL_STEPS + 1):
            embedding_BSD = x.embedding_VD[at(x.tokens_BT1, positions_BS + k)]
            latent_BSD = scale_gradient(self.step(latent_BSD, embedding_BSD), LATENT_GRADIENT_SCALE)
            reached_BS = reached_BS & at(inside_BT, positions_BS + k - 1)
            latents.append(latent_BSD)
            reached.append(reached_BS)
        return Unrolled(torch.stack(latents), torch.stack(reached))

    def forward(self, x: HeadInput, unrolled: Unrolled) -> HeadOutput:
        """Return the latent loss and its measures."""
        positions_BS = x.sampled["positions"]
        hidden_BTD = x.hidden_BTD.detach()
        targets_KBSD = torch.stack([at(hidden_BTD, positions_BS + k) for k in range(1, UNROLL_STEPS + 1)]).float()
        latents_KBSD, reached_KBS = unrolled.latents_KBSD[1:], unrolled.reached_KBS[1:]
        weight_KBS1 = reached_KBS.unsqueeze(-1)

        mean_D = (targets_KBSD * weight_KBS1).sum((0, 1, 2)) / reached_KBS.sum().clamp(min=1)
        sigma = masked_mean((targets_KBSD - mean_D).square().mean(-1), reached_KBS).sqrt().clamp(min=1e-6)
        error_KBSD = (latents_KBSD - targets_KBSD) / sigma
        error_KBS = F.smooth_l1_loss(error_KBSD, torch.zeros_like(error_KBSD), reduction="none").mean(-1)
        loss = masked_mean(error_KBS, reached_KBS)

        measures = {}
        with torch.no_grad():
            cosine_KBS = F.cosine_similarity(latents_KBSD - mean_D, targets_KBSD - mean_D, dim=-1)
            for k in range(UNROLL_STEPS):
                reached_BS = reached_KBS[k]
                measures[f"error_{k + 1}"] = measured_mean(error_KBSD[k].square().mean(-1), reached_BS)
                measures[f"centred_cosine_{k + 1}"] = measured_mean(cosine_KBS[k], reached_BS)
        return HeadOutput(loss, measures)
