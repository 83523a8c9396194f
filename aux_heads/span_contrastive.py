"""Span contrastive: from the state just before a span, pick out that span among others.

    a_i = P_a(h_{s-1}),    z_i = P_z(RMSNorm(mean_{j=s..s+7} RMSNorm(sg E[x_j]))),    P: D -> 2D -> 128, GELU
    loss = 1/2 (CE(a z^T / tau) + CE(z a^T / tau)),    the right answer on the diagonal

InfoNCE as in CPC (arXiv 1807.03748), which also predicts the future from the past. Two decisions
make it meaningful in a causal model: the target is a mean of *token embeddings*, because pooled
hidden states of the span contain the prefix and would reduce the task to recognising the document;
and no input token is masked, because the language model's own loss would suffer. So
`span_mask_fraction` is the share of tokens that lie in spans, and determines their number: spans
are 8 tokens long, spread evenly, one at a random place in each equal block of the row.
`span_contrastive_temperature` is tau; with `span_l2_normalize` a and z have unit length, without
it the products are divided by sqrt(128).

Candidates are the other spans of the micro-batch, in groups of at most 512. Spans of the same text
are not each other's negatives. Spans that cross a document's end are skipped.
Measures: `top1`, how often the right span scores highest, and its baseline `chance`;
`top1_same_document` and `chance_same_document`, the same with only the spans of the anchor's own
document as candidates, where the topic gives nothing away: means over the spans that have others
beside them there.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aux_heads.base import HeadInput, HeadOutput, at, masked_mean, measured_mean
from aux_heads.sizes import SPAN_EMBEDDING_SIZE

SPAN_LENGTH = 8  # tokens
MAX_CANDIDATES = 512


class SpanContrastive(nn.Module):
    def __init__(self, hidden_size: int, *, fraction: float, temperature: float, l2_normalize: bool):
        super().__init__()
        self.anchor, self.target = (
            nn.Sequential(
                nn.Linear(hidden_size, 2 * hidden_size),
                nn.GELU(),
                nn.Linear(2 * hidden_size, SPAN_EMBEDDING_SIZE, bias=False),
            )
            for _ in range(2)
        )
        self.fraction = fraction
        self.temperature = temperature
        self.l2_normalize = l2_normalize

    def sample_positions(self, num_rows: int, seq_length: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Sample `span_anchors` (B, N), the positions just before the spans."""
        num_spans = max(1, min(round(self.fraction * seq_length / SPAN_LENGTH), seq_length // SPAN_LENGTH))
        block = seq_length // num_spans
        offsets_BN = torch.randint(block - SPAN_LENGTH + 1, (num_rows, num_spans), generator=generator)
        return {"span_anchors": offsets_BN + block * torch.arange(num_spans)}

    def embed(self, projected: Tensor) -> Tensor:
        """Scale projections (..., 128) so that a dot product is the similarity."""
        if self.l2_normalize:
            return F.normalize(projected.float(), dim=-1)
        return projected.float() / math.sqrt(math.sqrt(SPAN_EMBEDDING_SIZE))

    def coming(self, hidden: Tensor) -> Tensor:
        """Embed states (..., D) as (..., 128): the text that they expect."""
        return self.embed(self.anchor(hidden))

    def of_text(self, embeddings: Tensor) -> Tensor:
        """Embed texts, given the embeddings (..., L, D) of their tokens, as (..., 128)."""
        size = embeddings.shape[-1:]
        mean = F.rms_norm(embeddings.float(), size).mean(-2)
        return self.embed(self.target(F.rms_norm(mean, size)))

    def forward(self, x: HeadInput) -> HeadOutput:
        anchors_BN = x.sampled["span_anchors"]
        offsets_L = torch.arange(SPAN_LENGTH, device=anchors_BN.device)
        places_BNL = anchors_BN.unsqueeze(-1) + offsets_L
        flat_places = places_BNL.flatten(1)
        tokens_NL = at(x.tokens_BT1, flat_places + 1).view(-1, SPAN_LENGTH)
        counts_N = at(x.inside_document_BT(), flat_places).view(-1, SPAN_LENGTH).all(-1)
        starts_BT = (x.tokens_BT1[:, :-1] == x.end_of_text).long().cumsum(1)
        rows_B1 = torch.arange(anchors_BN.shape[0], device=anchors_BN.device)[:, None]
        document_N = (rows_B1 * x.tokens_BT1.shape[1] + at(starts_BT, anchors_BN)).flatten()

        anchor_NE = self.coming(at(x.hidden_BTD, anchors_BN).flatten(0, 1))
        target_NE = self.of_text(x.embedding_VD[tokens_NL])

        num_groups = -(-len(tokens_NL) // MAX_CANDIDATES)
        groups = zip(
            *(t.tensor_split(num_groups) for t in (anchor_NE, target_NE, tokens_NL, counts_N, document_N)), strict=True
        )
        parts = [self._group(*group) for group in groups]
        columns = {name: torch.stack([part[name] for part in parts]) for name in parts[0]}
        num_spans, num_with_rivals = columns.pop("num_spans"), columns.pop("num_with_rivals")
        loss = masked_mean(columns.pop("loss"), num_spans)
        weights = {name: num_with_rivals if name.endswith("same_document") else num_spans for name in columns}
        return HeadOutput(loss, {name: measured_mean(column, weights[name]) for name, column in columns.items()})

    def _group(
        self, anchor_NE: Tensor, target_NE: Tensor, tokens_NL: Tensor, counts_N: Tensor, document_N: Tensor
    ) -> dict[str, Tensor]:
        """Compute InfoNCE and measures of one group of spans, each a mean over its `num_spans` spans
        that count, or the `num_with_rivals` of them that have others in their own document."""
        own_NN = torch.eye(len(counts_N), dtype=torch.bool, device=counts_N.device)
        same_text_NN = (tokens_NL[:, None] == tokens_NL[None]).all(-1)
        candidates_NN = own_NN | (counts_N[None] & counts_N[:, None] & ~same_text_NN)
        logits_NN = (anchor_NE @ target_NE.T).float() / self.temperature
        logits_NN = logits_NN.masked_fill(~candidates_NN, -torch.inf)
        right_N = torch.arange(len(counts_N), device=counts_N.device)
        losses_N = F.cross_entropy(logits_NN, right_N, reduction="none")
        losses_N = (losses_N + F.cross_entropy(logits_NN.T, right_N, reduction="none")) / 2

        scores_NN = logits_NN.detach()
        near_NN = candidates_NN & (document_N[:, None] == document_N[None])
        near_scores_NN = scores_NN.masked_fill(~near_NN, -torch.inf)
        has_rival_N = counts_N & (near_NN.sum(1) > 1)
        return {
            "loss": masked_mean(losses_N, counts_N),
            "top1": masked_mean((scores_NN.argmax(1) == right_N).float(), counts_N),
            "chance": masked_mean(1 / candidates_NN.sum(1), counts_N),
            "top1_same_document": masked_mean((near_scores_NN.argmax(1) == right_N).float(), has_rival_N),
            "chance_same_document": masked_mean(1 / near_NN.sum(1), has_rival_N),
            "num_spans": counts_N.sum().float(),
            "num_with_rivals": has_rival_N.sum().float(),
        }
