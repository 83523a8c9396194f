"""Value: predict how hard the next 32 tokens will be for this model, in nats per token.

    y_t  = mean_{i=0..31} l_{t+i},    l_t = -log p_t(x_{t+1}), the language model's own losses
    loss = CE(two-hot(y_t), v(h_t, r_t)) + 1/2 mean_k CE(two-hot(y_{t+k}), v(sg u^k_t)),    r_t = mean_{i=1..32} l_{t-i}

v is D -> 256 -> 64 logits over 64 evenly spaced values on [0, 10] nats; the prediction is their
expectation. r_t, the loss of the last 32 tokens in the document, is known wherever the state is,
and adds what the state lacks: it enters the inner channels, each with its own weight and bias, and
is omitted where only a latent is known. A categorical value with a two-hot target, which splits y
in proportion between its two neighbouring bins, is MuZero's (arXiv 1911.08265, appendix F); losses
are small and positive, so its square-root transform is not needed. The second term, present when
dynamics is, allows predictions from a latent, without a pass of the trunk
(benchmarks/planning.py); it trains the value, not the latent.

Positions with fewer than 32 counted tokens left in their document are skipped; in a conversation,
those of its answers alone are counted, and r_t is their mean. Low predicted loss
is not a measure of good text: optimising for it is the likelihood trap. Its use is to tell where
drafting will fail and which passages are hard.
Measures, on h_t: `r2` against the batch mean; `correlation` with y; `trailing_correlation`, that
of r_t alone, the strong and free baseline, on the same positions.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aux_heads.base import HeadInput, HeadOutput, at, masked_correlation, masked_mean, measured_mean
from aux_heads.dynamics import Unrolled
from aux_heads.sizes import NUM_VALUE_BINS, VALUE_INNER_SIZE

HORIZON = 32  # tokens
MAX_NATS = 10.0
LATENT_LOSS_WEIGHT = 0.5


def coming_loss(x: HeadInput) -> tuple[Tensor, Tensor]:
    """Return (y_BT, counts_BT): the mean of the next 32 losses; whether this row's
    document has all of them."""
    inside_BT = x.inside_document_BT()
    # The cumulative sums have a leading 0: entry t is the sum over positions < t.
    losses_BT1 = F.pad((x.token_losses_BT.detach().float() * inside_BT).cumsum(1), (1, 0))
    inside_BT1 = F.pad(inside_BT.long().cumsum(1), (1, 0))
    y = (losses_BT1[:, HORIZON:] - losses_BT1[:, :-HORIZON]) / HORIZON
    counts = inside_BT1[:, HORIZON:] - inside_BT1[:, :-HORIZON] == HORIZON
    beyond_row = (0, HORIZON - 1)
    return F.pad(y, beyond_row), F.pad(counts, beyond_row)


def trailing_loss(
    losses_BT: Tensor, inputs_BT: Tensor, end_of_text: int, otherwise: Tensor, valid_BT: Tensor | None = None
) -> Tensor:
    """Return r_t (B, T), the mean of the up to 32 losses before t in its document;
    `otherwise` where there is none. `valid_BT`: the losses that are known, and not 0 for want of a
    target; default: all."""
    sums_BT1 = F.pad(losses_BT.cumsum(1), (1, 0))
    index_BT = torch.arange(inputs_BT.shape[1], device=inputs_BT.device).expand_as(inputs_BT)
    start_BT = torch.where(inputs_BT == end_of_text, index_BT, 0).cummax(1).values
    first_BT = torch.maximum(start_BT, index_BT - HORIZON)
    count_BT = index_BT - first_BT
    if valid_BT is not None:
        counts_BT1 = F.pad(valid_BT.long().cumsum(1), (1, 0))
        count_BT = counts_BT1[:, :-1] - counts_BT1.gather(1, first_BT)
    mean_BT = (sums_BT1[:, :-1] - sums_BT1.gather(1, first_BT)) / count_BT.clamp(min=1)
    return torch.where(count_BT > 0, mean_BT, otherwise)


def trailing_loss_of(x: HeadInput) -> Tensor:
    """Return r_t of a batch, with its mean loss where there is none."""
    losses_BT = x.token_losses_BT.detach().float()
    mean = masked_mean(losses_BT, x.valid_BT)
    return trailing_loss(losses_BT, x.tokens_BT1[:, :-1], x.end_of_text, mean, x.valid_BT)


def two_hot_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Return (...) from logits (..., NUM_VALUE_BINS) and target (...) in nats,
    clamped to [0, MAX_NATS]."""
    log_probs = torch.log_softmax(logits, dim=-1)
    bin_position = target.clamp(0, MAX_NATS) * ((NUM_VALUE_BINS - 1) / MAX_NATS)
    low = bin_position.floor().clamp(max=NUM_VALUE_BINS - 2)
    upper_share = bin_position - low
    low = low.long().unsqueeze(-1)
    low_log_prob = log_probs.gather(-1, low).squeeze(-1)
    high_log_prob = log_probs.gather(-1, low + 1).squeeze(-1)
    return -(1 - upper_share) * low_log_prob - upper_share * high_log_prob


class Value(nn.Module):
    def __init__(self, hidden_size: int):
        super().__init__()
        self.inner = nn.Linear(hidden_size, VALUE_INNER_SIZE)
        self.trailing_weight, self.trailing_bias = (nn.Parameter(torch.zeros(VALUE_INNER_SIZE)) for _ in range(2))
        self.outer = nn.Linear(VALUE_INNER_SIZE, NUM_VALUE_BINS)

    def logits(self, state: Tensor, trailing: Tensor | None = None) -> Tensor:
        """Return logits (..., NUM_VALUE_BINS) of hidden states or unrolled latents (..., D), given
        r_t (...) where it is known."""
        inner = self.inner(F.rms_norm(state, state.shape[-1:]))
        if trailing is not None:
            inner = inner + trailing.unsqueeze(-1) * self.trailing_weight + self.trailing_bias
        return self.outer(F.gelu(inner)).float()

    @staticmethod
    def expectation(logits: Tensor) -> Tensor:
        """Return the predicted nats per token (...) from logits (..., NUM_VALUE_BINS)."""
        return (logits.softmax(-1) * torch.linspace(0, MAX_NATS, NUM_VALUE_BINS, device=logits.device)).sum(-1)

    def forward(self, x: HeadInput, unrolled: Unrolled | None) -> HeadOutput:
        positions_BS = x.sampled["positions"]
        y_BT, counts_BT = coming_loss(x)
        y_BS, counts_BS = at(y_BT, positions_BS), at(counts_BT, positions_BS)
        trailing_BS = at(trailing_loss_of(x), positions_BS)
        logits = self.logits(at(x.hidden_BTD, positions_BS), trailing_BS)
        loss = masked_mean(two_hot_cross_entropy(logits, y_BS), counts_BS)
        if unrolled is not None:
            latents_KBSD, reached_KBS = unrolled.latents_KBSD[1:].detach(), unrolled.reached_KBS[1:]
            steps = range(1, len(latents_KBSD) + 1)
            y_KBS = torch.stack([at(y_BT, positions_BS + k) for k in steps])
            counts_KBS = torch.stack([at(counts_BT, positions_BS + k) for k in steps]) & reached_KBS
            latent_loss = masked_mean(two_hot_cross_entropy(self.logits(latents_KBSD), y_KBS), counts_KBS)
            loss = loss + LATENT_LOSS_WEIGHT * latent_loss

        predicted_BS = self.expectation(logits.detach())
        error = measured_mean((predicted_BS - y_BS).square(), counts_BS)
        variance = measured_mean((y_BS - measured_mean(y_BS, counts_BS)).square(), counts_BS)
        measures = {
            "r2": 1 - error / variance.clamp(min=1e-8),
            "correlation": masked_correlation(predicted_BS, y_BS, counts_BS),
            "trailing_correlation": masked_correlation(trailing_BS, y_BS, counts_BS),
        }
        return HeadOutput(loss, measures)
