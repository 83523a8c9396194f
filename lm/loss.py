"""Cross-entropy straight from hidden states, without ever holding all logits or their gradient.

`linear_cross_entropy` projects rows of hidden states in chunks, and because it is always the last thing in the graph it
makes the gradients of hidden states and weight while each chunk's logits are still in the cache: one pass instead of three.
"""

from __future__ import annotations

import torch
from torch import Tensor

IGNORE = -100
CHUNK = 512


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, need_grad: bool) -> tuple[Tensor, Tensor]:
        low = (
            torch.get_autocast_dtype(hidden_ND.device.type)
            if torch.is_autocast_enabled(hidden_ND.device.type)
            else None
        )
        low = low or hidden_ND.dtype
        weight = weight_VD.to(low)
        losses, grads_hidden = [], []
        grad_weight = torch.zeros_like(weight_VD) if need_grad else None
        for hidden, targets in zip(hidden_ND.to(low).split(CHUNK), targets_N.split(CHUNK), strict=True):
            logits = (hidden @ weight.T).float()
            valid = targets != IGNORE
            picked = targets.clamp_min(0).unsqueeze(1)
            normaliser = torch.logsumexp(logits, dim=-1)
            losses.append((normaliser - logits.gather(1, picked).squeeze(1)) * valid)
            if need_grad:
                probabilities = torch.exp(logits - normaliser.unsqueeze(1))
                one_hot = torch.arange(logits.shape[1], device=logits.device) == picked
                grad_logits = ((probabilities - one_hot.float()) * valid.unsqueeze(1)).to(low)
                grads_hidden.append(grad_logits @ weight)
                grad_weight += grad_logits.T @ hidden
        losses_N = torch.cat(losses)
        if need_grad:
            ctx.save_for_backward(torch.cat(grads_hidden).to(hidden_ND.dtype), grad_weight)
        ctx.mark_non_differentiable(losses_N)
        return losses_N.sum(), losses_N

    @staticmethod
    def backward(ctx, grad_sum: Tensor, _grad_losses: Tensor):
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grad_sum, grad_weight * grad_sum, None, None


def linear_cross_entropy(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of `targets_N` under softmax(hidden @ weight.T), in nats.

    Returns the sum over targets that are not `IGNORE` (a scalar with gradient) and the losses one by one (N, detached,
    0 where ignored). Logits are computed in the autocast dtype, everything after them in fp32.
    """
    # Asked here: inside the function grad mode is always off, and ctx.needs_input_grad knows nothing of no_grad.
    need_grad = torch.is_grad_enabled() and (hidden_ND.requires_grad or weight_VD.requires_grad)
    return _LinearCrossEntropy.apply(hidden_ND, weight_VD, targets_N, need_grad)
