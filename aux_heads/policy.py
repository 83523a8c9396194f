"""Policy: what the language model would say k tokens from now, read from the latent that dynamics unrolled.

    loss = mean_{t,k} KL(p_{t+k} || softmax(W u^k_t)),    p_{t+k} = softmax(W h_{t+k}),    k = 1..3

MuZero (arXiv 1911.08265) evaluates its policy on the unrolled latent, and so do we: at the same position the answer
would be a copy of the unembedding and teach nothing. The KL through the frozen unembedding W is NextLat's (arXiv
2511.05963) and EAGLE's (2401.15077). The head owns no parameters: W is the trunk's, detached, and what learns is the
transition in `dynamics.py`. A readout of its own would cost a drafter one more matrix product a token and would let
the latent drift from what the trunk means by it. Since dynamics and policy share the transition, the ratio of their
gradients is a real choice: with equal weights the policy's is a tenth, which keeps as many drafts as ten times that and
misses a quarter less of the states' variance (benchmarks/LOG.md).

The p are the model's own, detached. Products with W are the dearest thing a head can do, so the loss is taken on one
position in sixteen, at most 2048 a micro-batch, each at one step k drawn at random.
Measure, k = 1..3: `acceptance_k` = sum_x min(p, q), the probability that lossless speculative sampling keeps the draft
(Leviathan et al., arXiv 2211.17192); beside it, where nothing is learnt (`no_grad`), `copy_acceptance_k`, the same with
softmax(W h_t) for q, the latent not unrolled: one more product with W, too dear for every step.
"""

import torch
from torch import Tensor, nn

from aux_heads.base import UNROLL_STEPS, HeadInput, HeadOutput, at, masked_mean, measured_mean, scale_gradient
from aux_heads.dynamics import Unrolled

LATENT_STRIDE = 2  # one in two of the unrolled positions, which are one in eight of all
MAX_POSITIONS = 2048  # bounds the memory of the logits
GRADIENT_SCALE = 0.1  # of what reaches the transition, and by way of it the trunk, if it feels the heads


class Policy(nn.Module):
    def draw(self, num_rows: int, num_latents: int, generator: torch.Generator) -> dict[str, Tensor]:
        """`policy_choices` (B, P): which of the S unrolled positions; `policy_steps` (B, P): at which step, 1..K."""
        num_blocks = max(1, min(num_latents // LATENT_STRIDE, MAX_POSITIONS // num_rows))
        stride = num_latents // num_blocks
        offsets_BP = torch.randint(stride, (num_rows, num_blocks), generator=generator)
        return {
            "policy_choices": offsets_BP + stride * torch.arange(num_blocks),
            "policy_steps": torch.randint(1, UNROLL_STEPS + 1, (num_rows, num_blocks), generator=generator),
        }

    def forward(self, x: HeadInput, unrolled: Unrolled) -> HeadOutput:
        choices_BP, steps_BP = x.drawn["policy_choices"], x.drawn["policy_steps"]
        rows_B1 = torch.arange(choices_BP.shape[0], device=choices_BP.device)[:, None]
        latent_BPD = scale_gradient(unrolled.latents_KBSD[steps_BP, rows_B1, choices_BP], GRADIENT_SCALE)
        reached_BP = unrolled.reached_KBS[steps_BP, rows_B1, choices_BP]
        teacher_BPD = at(x.hidden_BTD.detach(), at(x.drawn["positions"], choices_BP) + steps_BP)

        log_q_BPV = torch.log_softmax((latent_BPD @ x.output_VD.T).float(), dim=-1)
        log_p_BPV = torch.log_softmax((teacher_BPD @ x.output_VD.T).float(), dim=-1)
        p_BPV = log_p_BPV.exp()
        loss = masked_mean((p_BPV * (log_p_BPV - log_q_BPV)).sum(-1), reached_BP)

        accepted = {"acceptance": torch.minimum(p_BPV, log_q_BPV.detach().exp()).sum(-1)}
        if not torch.is_grad_enabled():
            copy_BPD = unrolled.latents_KBSD[0, rows_B1, choices_BP]
            copy_BPV = torch.softmax((copy_BPD @ x.output_VD.T).float(), dim=-1)
            accepted["copy_acceptance"] = torch.minimum(p_BPV, copy_BPV).sum(-1)
        measures = {
            f"{name}_{k}": measured_mean(accepted_BP, reached_BP & (steps_BP == k))
            for name, accepted_BP in accepted.items()
            for k in range(1, UNROLL_STEPS + 1)
        }
        return HeadOutput(loss, measures)
