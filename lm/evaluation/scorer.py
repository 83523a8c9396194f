"""How probable a model finds texts: sums of log-probabilities for many questions at once.

Beginnings that questions share are read once (token_tree.py). In fp32, as the exported model is
evaluated elsewhere. Never here: tokenizing, tasks.

Shapes: B rows, W nodes in a row, D hidden size, H heads, K head dimension, P = K / 2, V vocabulary, N nodes of a batch
at which something is predicted, E pairs of such a node and a token asked about.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lm.evaluation.token_tree import Question, Row, pack
from lm.model import Transformer

NODES_IN_BATCH = {"cpu": 4_096, "cuda": 65_536}
SMALLEST_WIDTH = 256  # nodes; narrower rows would share less
LOGIT_ROWS = {"cpu": 256, "cuda": 8_192}  # nodes whose logits are computed at once


class Answer(NamedTuple):
    log_probability: float  # of the scored tokens, natural
    is_greedy: bool  # whether each of them is the most probable one


class Scorer:
    def __init__(self, model: Transformer):
        self.model = model.float().eval()
        self.device = model.embed.weight.device
        self.embedding_VD = model.embedding_VD().detach()
        self.max_length = model.config.seq_length

    def rows(self, questions: Sequence[Question]) -> list[Row]:
        """Pack questions, each of at most `max_length` tokens to read, into rows of one width."""
        longest = max(len(question.read) for question in questions)
        return pack(questions, max(SMALLEST_WIDTH, -(-longest // 64) * 64))

    def batches(self, rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
        size = max(1, NODES_IN_BATCH[self.device.type] // len(rows[0].tokens))
        yield from (rows[start : start + size] for start in range(0, len(rows), size))

    @torch.inference_mode()
    def answer(self, questions: Sequence[Question], rows: Sequence[Row]) -> list[tuple[int, Answer]]:
        """Return (index of the question, its answer) for every question in `rows`."""
        width = len(rows[0].tokens)
        found = [(number, nodes + width * at) for at, row in enumerate(rows) for number, nodes in row.answers]
        targets = np.concatenate([questions[number].tokens[-len(nodes) :] for number, nodes in found])
        places = np.concatenate([nodes for _, nodes in found])
        # Questions that share a beginning may ask about the same token at the same node.
        pairs, pair_of = np.unique(np.stack((places, targets)), axis=1, return_inverse=True)
        hidden_BWD = self._states(rows)
        log_probabilities, greedy = self._predict(hidden_BWD.flatten(0, 1), *map(self._tensor, pairs))
        sums = np.add.reduceat(log_probabilities[pair_of], starts := _starts(found))
        all_greedy = np.logical_and.reduceat(greedy[pair_of], starts)
        return [
            (number, Answer(float(total), bool(best)))
            for (number, _), total, best in zip(found, sums, all_greedy, strict=True)
        ]

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.device)

    def _states(self, rows: Sequence[Row]) -> Tensor:
        """Return the states (B, W, D) of all nodes, after the final norm, as `Transformer.forward`
        computes them for each sequence alone."""
        model = self.model
        tokens_BW, depths_BW, ends_BW = (
            self._tensor(np.stack(arrays)) for arrays in zip(*(row[:3] for row in rows), strict=True)
        )
        node_W = torch.arange(tokens_BW.shape[1], device=self.device)
        sees_BWW = (node_W <= node_W[:, None]) & (node_W[:, None] < ends_BW[:, None])
        bias_B1WW = torch.zeros(sees_BWW.shape, device=self.device).masked_fill_(~sees_BWW, float("-inf"))[:, None]
        cos_B1WP, sin_B1WP = (table[depths_BW][:, None] for table in (model.cos, model.sin))
        x_BWD = self.embedding_VD[tokens_BW]
        grouped = model.config.num_heads != model.config.num_kv_heads
        attend = partial(F.scaled_dot_product_attention, attn_mask=bias_B1WW, enable_gqa=grouped)
        for layer in model.layers:
            x_BWD = layer(x_BWD, cos_B1WP, sin_B1WP, attend)
        return model.norm(x_BWD)

    def _predict(self, hidden: Tensor, places_E: Tensor, targets_E: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Return the log-probability (E,), float64, of each target after the node at its place, and
        whether it is the most probable token there. `places_E` is sorted."""
        nodes_N, counts_N = places_E.unique_consecutive(return_counts=True)
        log_probabilities, greedy = [], []
        done = 0
        for first in range(0, len(nodes_N), step := LOGIT_ROWS[self.device.type]):
            logits_NV = F.linear(hidden[nodes_N[first : first + step]], self.model.output.weight)
            counts = counts_N[first : first + step]
            row_E = torch.arange(len(counts), device=self.device).repeat_interleave(counts)
            asked_E = logits_NV[row_E, targets_E[done : done + len(row_E)]]
            done += len(row_E)
            largest_N = logits_NV.amax(-1)
            greedy.append(asked_E == largest_N[row_E])
            total_N = logits_NV.sub_(largest_N[:, None]).exp_().sum(-1).log_().add_(largest_N)
            log_probabilities.append(asked_E - total_N[row_E])
        return torch.cat(log_probabilities).cpu().double().numpy(), torch.cat(greedy).cpu().numpy()


def _starts(found: Sequence[tuple[int, np.ndarray]]) -> np.ndarray:
    """Return where each question's nodes start, if they are joined."""
    lengths = [len(nodes) for _, nodes in found]
    return np.cumsum([0, *lengths[:-1]])
