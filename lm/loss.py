"""Cross-entropy straight from hidden states, without ever holding all logits or their gradient.

`linear_cross_entropy` projects rows of hidden states in chunks, and because it is always the last thing in the graph it
makes the gradients of hidden states and weight while each chunk's logits are still in the cache: one pass instead of
three. Only the work on one chunk is ever compiled, so compiling takes as long for a large batch as for a small one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

IGNORE = -100
CHUNK = {"cpu": 512, "cuda": 8192}  # rows; a core's cache holds the logits of a few hundred, a GPU wants large products

Chunk = Callable[[Tensor, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor | None]]


def chunk_loss(
    hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, grad_weight_VD: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Losses of one chunk and, if there is a `grad_weight_VD` to add to, the gradient of its hidden states."""
    logits = (hidden_ND @ weight_VD.T).float()
    valid_N1 = (targets_N != IGNORE).unsqueeze(1)
    picked_N1 = targets_N.clamp_min(0).unsqueeze(1)
    largest_N1 = logits.amax(-1, keepdim=True)
    exponentials = torch.exp(logits - largest_N1)
    sum_N1 = exponentials.sum(-1, keepdim=True)
    log_likelihood_N1 = logits.gather(1, picked_N1) - largest_N1 - torch.log(sum_N1)
    losses_N = (-log_likelihood_N1 * valid_N1).squeeze(1)
    if grad_weight_VD is None:
        return losses_N, None
    # softmax - one_hot: each exponential is taken once, and only the targets' own entries are touched again.
    grad_logits = (exponentials * (valid_N1 / sum_N1)).to(hidden_ND.dtype)
    of_targets = ((torch.exp(log_likelihood_N1) - 1) * valid_N1).to(hidden_ND.dtype)
    grad_logits = grad_logits.scatter(1, picked_N1, of_targets)
    grad_weight_VD += grad_logits.T @ hidden_ND
    return losses_N, grad_logits @ weight_VD


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, need_grad: bool, chunk: Chunk
    ) -> tuple[Tensor, Tensor]:
        device = hidden_ND.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_ND.dtype
        grad_weight = torch.zeros_like(weight_VD) if need_grad else None
        hidden, weight, rows = hidden_ND.to(dtype), weight_VD.to(dtype), CHUNK[device]
        parts = [
            chunk(hidden_chunk, weight, targets_chunk, grad_weight)
            for hidden_chunk, targets_chunk in zip(hidden.split(rows), targets_N.split(rows), strict=True)
        ]
        losses_N = torch.cat([losses for losses, _ in parts])
        if need_grad:
            grad_hidden = torch.cat([grad for _, grad in parts if grad is not None]).to(hidden_ND.dtype)
            ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.mark_non_differentiable(losses_N)
        return losses_N.sum(), losses_N

    @staticmethod
    def backward(ctx: Any, grad_sum: Tensor, _grad_losses: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grad_sum, grad_weight * grad_sum, None, None, None


def linear_cross_entropy(
    hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, *, chunk: Chunk = chunk_loss
) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of `targets_N` under softmax(hidden @ weight.T), in nats.

    Returns the sum over targets that are not `IGNORE` (a scalar with gradient) and the losses one by one (N, detached,
    0 where ignored). Logits are computed in the autocast dtype, everything after them in fp32.
    """
    # Asked here: inside the function grad mode is always off, and ctx.needs_input_grad knows nothing of no_grad.
    need_grad = torch.is_grad_enabled() and (hidden_ND.requires_grad or weight_VD.requires_grad)
    return _LinearCrossEntropy.apply(hidden_ND, weight_VD, targets_N, need_grad, chunk)


def compiled_linear_cross_entropy() -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
    """`linear_cross_entropy` with its work on a chunk compiled."""
    return partial(linear_cross_entropy, chunk=torch.compile(chunk_loss, dynamic=False))
