"""Cross-entropy computed from hidden states, without ever holding all logits or their gradient.

`linear_cross_entropy` projects hidden states in chunks of rows. Because it is always the last
operation of the graph, it computes the gradients of hidden states and weight while each chunk's
logits are still in the cache: one pass instead of three. Only the work on one chunk is compiled,
so compiling takes as long for a large batch as for a small one.

A row may have multi-token prediction (MTP) targets, the tokens beyond the next (Gloeckle et al.,
arXiv 2404.19737, but without their extra layer per distance). They share the row's logits, so two
of them add no measurable cost; and since one distribution then has to serve all distances, their
weights must reach 0 before the run ends.

Shapes: N rows, D hidden size, V vocabulary, K targets per row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lm.sizes import chunk_rows

IGNORE = -100

ChunkLoss = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor | None]]


def chunk_loss(
    hidden_ND: Tensor, weight_VD: Tensor, targets_NK: Tensor, scales_NK: Tensor, grad_weight_VD: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Return the losses (N, K) of one chunk, each times its scale (0 where there is no target).

    With `grad_weight_VD`, also add the gradient of their sum to it in place, and return
    that of the hidden states.
    """
    logits = (hidden_ND @ weight_VD.T).float()
    largest_N1 = logits.amax(-1, keepdim=True)
    exponentials = torch.exp(logits - largest_N1)
    sum_N1 = exponentials.sum(-1, keepdim=True)
    log_likelihoods_NK = logits.gather(1, targets_NK) - largest_N1 - torch.log(sum_N1)
    losses_NK = -log_likelihoods_NK * scales_NK
    if grad_weight_VD is None:
        return losses_NK, None
    # The gradient of the logits is sum of scales * softmax - scales * one_hots. Each exponential
    # is computed once, and only the entries of targets are overwritten. These are computed
    # completely in fp32, so two targets of a row that are the same token write the same value.
    scale_N1 = scales_NK.sum(1, keepdim=True)
    grad_logits = (exponentials * (scale_N1 / sum_N1)).to(hidden_ND.dtype)
    same_NKK = targets_NK.unsqueeze(2) == targets_NK.unsqueeze(1)
    of_targets_NK = scale_N1 * torch.exp(log_likelihoods_NK) - (same_NKK * scales_NK.unsqueeze(1)).sum(2)
    grad_logits = grad_logits.scatter(1, targets_NK, of_targets_NK.to(hidden_ND.dtype))
    grad_weight_VD += grad_logits.T @ hidden_ND
    return losses_NK, grad_logits @ weight_VD


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        targets_NK: Tensor,
        scales_NK: Tensor,
        need_grad: bool,
        chunk: ChunkLoss,
    ) -> tuple[Tensor, Tensor]:
        device = hidden_ND.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_ND.dtype
        grad_weight = torch.zeros_like(weight_VD) if need_grad else None
        weight, rows = weight_VD.to(dtype), chunk_rows(device, len(weight_VD), need_grad=need_grad)
        split = (tensor.split(rows) for tensor in (hidden_ND.to(dtype), targets_NK, scales_NK))
        parts = [
            chunk(hidden, weight, targets, scales, grad_weight) for hidden, targets, scales in zip(*split, strict=True)
        ]
        losses_NK = torch.cat([losses for losses, _ in parts])
        if need_grad:
            grad_hidden = torch.cat([grad for _, grad in parts if grad is not None]).to(hidden_ND.dtype)
            ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.mark_non_differentiable(losses_NK)
        return losses_NK.sum(), losses_NK

    @staticmethod
    def backward(ctx: Any, grad_sum: Tensor, _grad_losses: Tensor) -> tuple[Tensor | None, ...]:
        # Nobody else has these: scaled in place, they take no memory again.
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden.mul_(grad_sum), grad_weight.mul_(grad_sum), None, None, None, None


def linear_cross_entropy(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    further: Sequence[tuple[Tensor, float | Tensor]] = (),
    *,
    chunk: ChunkLoss = chunk_loss,
) -> tuple[Tensor, Tensor]:
    """Compute the negative log-likelihood of targets under softmax(hidden @ weight.T), in nats.

    `further` holds the MTP targets of the same rows; the losses of each are multiplied by its
    weight. Returns the sum over all targets that are not `IGNORE` (a scalar with gradient) and the
    losses of `targets_N` per row (detached, 0 where ignored). Logits are computed in the autocast
    dtype, everything after them in fp32.
    """
    # Checked here: in the function grad mode is off, and ctx.needs_input_grad ignores no_grad.
    need_grad = torch.is_grad_enabled() and (hidden_ND.requires_grad or weight_VD.requires_grad)
    targets_NK = torch.stack([targets_N, *(targets for targets, _ in further)], 1)
    weights = [1.0, *(weight for _, weight in further)]
    scales_NK = torch.stack(
        [(targets != IGNORE) * weight for targets, weight in zip(targets_NK.unbind(1), weights, strict=True)], 1
    )
    total, losses_NK = _LinearCrossEntropy.apply(
        hidden_ND, weight_VD, targets_NK.clamp_min(0), scales_NK, need_grad, chunk
    )
    return total, losses_NK[:, 0]


def mtp_targets(targets_BT: Tensor, weights: Sequence[float | Tensor]) -> list[tuple[Tensor, float | Tensor]]:
    """Return the targets 2, 3, ... tokens ahead, given the next tokens: flattened (B * T,),
    with their weights, and `IGNORE` at the end of each row."""
    return [
        (F.pad(targets_BT[:, distance:], (0, distance), value=IGNORE).flatten(), weight)
        for distance, weight in enumerate(weights, 1)
    ]


def padded(rows: np.ndarray, loss_mask: np.ndarray, batch_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Pad rows (n, T + 1) to a batch of `batch_rows`, so that all batches have one shape.

    Returns tokens (B, T + 1) and targets (B, T), which are `IGNORE` in padding rows and where
    `loss_mask` (n, T) is False.
    """
    tokens = np.zeros((batch_rows, rows.shape[1]), dtype=np.int64)
    targets = np.full((batch_rows, loss_mask.shape[1]), IGNORE, dtype=np.int64)
    tokens[: len(rows)] = rows
    targets[: len(rows)] = np.where(loss_mask, tokens[: len(rows), 1:], IGNORE)
    return tokens, targets


def compiled_linear_cross_entropy() -> Callable[..., tuple[Tensor, Tensor]]:
    """Return `linear_cross_entropy` with its work on a chunk compiled."""
    return partial(linear_cross_entropy, chunk=torch.compile(chunk_loss, dynamic=False))
