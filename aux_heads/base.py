"""Input and output of the heads, and what they share: document ends, sampled
positions, masked means.

A row holds tokens x_0 .. x_T. The trunk reads x_0 .. x_{T-1}; hidden state h_t has seen x_0 .. x_t
and predicts x_{t+1}. Every document starts with the END_OF_TEXT token, so a head that looks from t
to t+k stays inside the document if none of x_{t+1} .. x_{t+k} is END_OF_TEXT.

Targets that the loss does not count, what a user says in a conversation, count for no head either: a
head that looks from t to t+k counts if all of x_{t+1} .. x_{t+k} do.

Shapes are fixed: heads evaluate a fixed number of positions, with weight 0 for those that must not
count, so that a compiled step never recompiles and never waits for the device. Positions are
sampled on the CPU, outside the graph, from the heads' own generator.
Legend: B rows, T seq_length, D hidden size, V vocabulary, S sampled positions
per row, K unrolled steps.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from aux_heads.sizes import POSITION_STRIDE, UNROLL_STEPS


@dataclass(frozen=True)
class HeadInput:
    """The heads' input for one micro-batch. Only `hidden_BTD` may carry a gradient to the
    trunk; the rest is detached."""

    hidden_BTD: Tensor  # after final norm; detached or gradient-scaled (auxiliary.trunk_gradient)
    tokens_BT1: Tensor  # (B, T+1) int64
    token_losses_BT: Tensor  # the LM's next-token losses, nats
    valid_BT: Tensor  # bool: targets that count
    embedding_VD: Tensor  # only the directions of its rows count, as in a trunk with embedding_norm
    output_VD: Tensor
    sampled: dict[str, Tensor]  # positions in this micro-batch, see JointModel.sample_positions
    end_of_text: int  # token id

    def inside_document_BT(self) -> Tensor:
        """Return True where x_{t+1} counts and belongs to the same document as x_t."""
        return self.valid_BT & (self.tokens_BT1[:, 1:] != self.end_of_text)


class HeadOutput(NamedTuple):
    """A head's `loss`, a scalar mean over its own sampled positions, and its `measures`,
    detached scalars by name."""

    loss: Tensor
    measures: dict[str, Tensor]


def sample_positions(num_rows: int, seq_length: int, generator: torch.Generator) -> Tensor:
    """Sample positions (B, S) with t + UNROLL_STEPS still in the row: one of every eight at
    random, so none comes twice."""
    num_blocks = (seq_length - UNROLL_STEPS) // POSITION_STRIDE
    offsets_BS = torch.randint(POSITION_STRIDE, (num_rows, num_blocks), generator=generator)
    return offsets_BS + POSITION_STRIDE * torch.arange(num_blocks)


def at(values_BT: Tensor, positions_BS: Tensor) -> Tensor:
    """Gather values_BT[b, positions_BS[b, s]]: (B, S, ...) from (B, T, ...)."""
    rows_B1 = torch.arange(values_BT.shape[0], device=values_BT.device)[:, None]
    return values_BT[rows_B1, positions_BS]


def scale_gradient(x: Tensor, scale: float | Tensor) -> Tensor:
    """Return x itself, to the last bit, with its gradient multiplied by `scale`."""
    return x.detach() + (x - x.detach()) * scale


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of `values` where `mask`; 0, with zero gradients rather than
    none, where nothing counts."""
    return (values * mask).sum() / mask.sum().clamp(min=1)


def measured_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of `values` where `mask`; NaN where nothing counts, since a measure of 0
    would look like a result."""
    return (values * mask).sum() / mask.sum()


def masked_correlation(a: Tensor, b: Tensor, mask: Tensor) -> Tensor:
    """Return the Pearson correlation of a and b where `mask`; 0 if either is constant,
    NaN where nothing counts."""
    a = (a - measured_mean(a, mask)) * mask
    b = (b - measured_mean(b, mask)) * mask
    return (a * b).sum() / (a.square().sum() * b.square().sum()).sqrt().clamp(min=1e-8)
