"""Policy: predict the language model's distribution k tokens from now, from the
latent that dynamics unrolled.

    loss = mean_{t,k} KL(p_{t+k} || softmax(W u^k_t)),    p_{t+k} = softmax(W h_{t+k}),    k = 1..3

MuZero (arXiv 1911.08265) evaluates its policy on the unrolled latent, and so does this head: at
the same position the answer would be a copy of the unembedding, and there would be nothing to
train. The KL through the frozen unembedding W is NextLat's (arXiv 2511.05963) and EAGLE's
(2401.15077). The head has no parameters: W is the trunk's, detached, and the loss trains the
transition in `dynamics.py`. A readout of its own would cost a drafter one more matmul per token,
and would let the latent drift from the trunk's representation. Since dynamics and policy share the
transition, the ratio of their gradients matters: with equal weights the policy's is scaled by 0.1,
which keeps as many drafts as a scale of 1 and misses a quarter less of the states' variance
(benchmarks/LOG.md).

The p are the model's own, detached. Products with W are the most expensive part of any head, so
the loss is taken at one position in sixteen, at most 2048 per micro-batch, each at one step k
sampled at random.
Measure, k = 1..3: `acceptance_k` = sum_x min(p, q), the probability that lossless speculative
sampling keeps the draft (Leviathan et al., arXiv 2211.17192). Its baseline, measured only under
`no_grad`, is `copy_acceptance_k`, the same with q = softmax(W h_t), the latent not unrolled: one
more product with W, too expensive for every step.
"""

import torch
from torch import Tensor, nn

from aux_heads.base import HeadInput, HeadOutput, at, masked_mean, measured_mean, scale_gradient
from aux_heads.dynamics import Unrolled
from aux_heads.sizes import LATENT_STRIDE, MAX_POLICY_POSITIONS, UNROLL_STEPS

# Of the gradient to the transition, and through it to the trunk if that receives any.
GRADIENT_SCALE = 0.1


class Policy(nn.Module):
    def sample_positions(self, num_rows: int, num_latents: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Sample `policy_choices` (B, P), which of the S unrolled positions, and `policy_steps`
        (B, P), at which step 1..K."""
        num_blocks = max(1, min(num_latents // LATENT_STRIDE, MAX_POLICY_POSITIONS // num_rows))
        stride = num_latents // num_blocks
        offsets_BP = torch.randint(stride, (num_rows, num_blocks), generator=generator)
        return {
            "policy_choices": offsets_BP + stride * torch.arange(num_blocks),
            "policy_steps": torch.randint(1, UNROLL_STEPS + 1, (num_rows, num_blocks), generator=generator),
        }

    def forward(self, x: HeadInput, unrolled: Unrolled) -> HeadOutput:
        choices_BP, steps_BP = x.sampled["policy_choices"], x.sampled["policy_steps"]
        rows_B1 = torch.arange(choices_BP.shape[0], device=choices_BP.device)[:, None]
        latent_BPD = scale_gradient(unrolled.latents_KBSD[steps_BP, rows_B1, choices_BP], GRADIENT_SCALE)
        reached_BP = unrolled.reached_KBS[steps_BP, rows_B1, choices_BP]
        teacher_BPD = at(x.hidden_BTD.detach(), at(x.sampled["positions"], choices_BP) + steps_BP)

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
