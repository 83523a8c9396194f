"""Held-out loss per source in nats per token and bits per byte, with standard
errors, and on answers alone.

Bits per byte (nats / ln 2 / bytes of predicted text) is comparable across tokenizers. Every batch
has the same shape, so that a compiled trunk is compiled only once for evaluation. Never here: the
choice of held-out text, training state, communication between ranks (the caller passes a `reduce`
that sums over them), other measurements on the hidden states (the caller passes an `observe`).

Shapes: n rows, T seq_length (a row is T + 1 tokens), S sources, D hidden size, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.heldout import SourceRows
from lm.loss import IGNORE, linear_cross_entropy, padded

LN2 = math.log(2)
PIECE = 64  # tokens, of a row: what `improvement` takes as independent

Observe = Callable[[Tensor, Tensor, Tensor, Tensor], object]
"""(tokens_BT1, valid_BT, hidden_BTD, losses_BT) of a batch; padding rows, and those of watched sources, have nothing
valid."""


@dataclass(frozen=True)
class SourceEvaluation:
    loss: float  # nats per token
    bits_per_byte: float
    stderr: float | None  # of bits_per_byte, over rows; None with fewer than two rows
    tokens: int
    answer_loss: float | None = None
    answer_bits_per_byte: float | None = None


@dataclass(frozen=True)
class Evaluation:
    loss: float
    bits_per_byte: float
    tokens: int
    per_source: dict[str, SourceEvaluation]  # skips sources without held-out text; includes watched ones

    def to_json(self) -> dict[str, Any]:
        """Return the `eval` object of metrics.jsonl, without values that do not apply (those of
        answers, the standard error of a single row)."""

        def without_none(values: dict[str, Any]) -> dict[str, Any]:
            return {key: value for key, value in values.items() if value is not None}

        per_source = {label: without_none(asdict(source)) for label, source in self.per_source.items()}
        return {"loss": self.loss, "bits_per_byte": self.bits_per_byte, "tokens": self.tokens, "per_source": per_source}


@torch.no_grad()
def evaluate(
    trunk: Callable[[Tensor], Tensor],
    output_weight_VD: Tensor,
    sources: Sequence[SourceRows],
    *,
    token_bytes: np.ndarray,
    batch_rows: int,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
    should_stop: Callable[[], bool] = lambda: False,
    rank: int = 0,
    world_size: int = 1,
    reduce: Callable[[Tensor], Tensor] = lambda sums: sums,
    observe: Observe = lambda *batch: None,
    watched: Collection[str] = (),
) -> Evaluation | None:
    """Evaluate the trunk, compiled or not, on held-out rows, `batch_rows` at a time.

    Returns None if `should_stop` returned True on any rank. `observe` receives every batch, in which
    sources are mixed as in training. `token_bytes` (V,) is 0 for special tokens, which count in
    the loss but not in bits per byte. Each rank evaluates every `world_size`-th row; `reduce` sums
    one float64 CPU tensor over the ranks and is called exactly once, stopped or not, because ranks
    may have different numbers of rows, even none, and notice a stop at different times. The labels
    `watched` have an entry of their own, but count neither in the totals nor in what is observed.
    """
    source = np.repeat(np.arange(len(sources)), [len(part.rows) for part in sources])
    own = np.random.default_rng(0).permutation(len(source))[rank::world_size]
    source = source[own]
    rows, valid, answer = (
        np.concatenate([getattr(part, name) for part in sources])[own] for name in ("rows", "valid", "answer")
    )
    trained = np.array([part.label not in watched for part in sources])[source]
    losses, stopped = row_losses(
        trunk, output_weight_VD, rows, valid, batch_rows, autocast, should_stop, observe, observed=trained
    )
    sums = np.append(_sums(losses, rows, valid, answer, source, len(sources), token_bytes).ravel(), float(stopped))
    sums = reduce(torch.from_numpy(sums)).numpy()
    if sums[-1]:
        return None
    return _summary(sums[:-1].reshape(len(sources), len(COLUMNS)), [part.label for part in sources], watched)


@torch.no_grad()
def row_losses(
    trunk: Callable[[Tensor], Tensor],
    output_weight_VD: Tensor,
    rows: np.ndarray,
    valid: np.ndarray,
    batch_rows: int,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
    should_stop: Callable[[], bool] = lambda: False,
    observe: Observe = lambda *batch: None,
    observed: np.ndarray | None = None,
) -> tuple[np.ndarray, bool]:
    """Return the loss of every target, (n, T) float64 (0 where not valid), and whether
    evaluation was stopped early. `observed` (n,): the rows with something valid for `observe`,
    default all."""
    losses = np.zeros(valid.shape)
    weight_VD = output_weight_VD.detach()
    for first in range(0, len(rows), batch_rows):
        if should_stop():
            return losses, True
        count = min(batch_rows, len(rows) - first)
        part = slice(first, first + count)
        batch = padded(rows[part], valid[part], batch_rows)
        tokens_BT1, targets_BT = (torch.from_numpy(array).to(weight_VD.device) for array in batch)
        with autocast():
            hidden_BTD = trunk(tokens_BT1[:, :-1])
            _, losses_N = linear_cross_entropy(hidden_BTD.flatten(0, 1), weight_VD, targets_BT.flatten())
            losses_BT = losses_N.view_as(targets_BT)
            seen_BT = targets_BT != IGNORE
            if observed is not None:
                observed_B = np.pad(observed[part], (0, batch_rows - count))
                seen_BT &= torch.from_numpy(observed_B).to(seen_BT.device)[:, None]
            observe(tokens_BT1, seen_BT, hidden_BTD, losses_BT)
        losses[part] = losses_BT[:count].cpu().numpy()
    return losses, False


def improvement(
    losses: np.ndarray, better: np.ndarray, rows: np.ndarray, valid: np.ndarray, token_bytes: np.ndarray
) -> tuple[float, float]:
    """Return by how many bits per byte the losses `better` of targets (n, T) are below `losses` of the
    same targets, and the standard error of that difference, infinite where there is no telling.

    Both models find the same text hard, so the difference is known far better than either. It is
    taken over pieces of rows: of a small text few rows are held out, or only one.
    """
    num_bytes = token_bytes[rows[:, 1:]] * valid
    nats = (losses - better) * (num_bytes > 0)
    missing = -nats.shape[1] % PIECE
    nats, size = (np.pad(of_row, ((0, 0), (0, missing))).reshape(-1, PIECE).sum(1) for of_row in (nats, num_bytes))
    nats, size = nats[size > 0], size[size > 0].astype(float)
    s = {
        "rows": len(size), "text_nats": nats.sum(), "bytes": size.sum(),
        "nats2": (nats**2).sum(), "nats_bytes": (nats * size).sum(), "bytes2": (size**2).sum(),
    }  # fmt: skip
    stderr = _ratio_stderr(s)
    return s["text_nats"] / s["bytes"] / LN2, math.inf if stderr is None else stderr


# Summed per source; the last four, over rows, give the standard error of the ratio nats / bytes.
COLUMNS = (
    "nats", "tokens", "text_nats", "bytes", "answer_nats", "answer_tokens", "answer_text_nats", "answer_bytes",
    "rows", "nats2", "nats_bytes", "bytes2",
)  # fmt: skip


def _sums(
    losses: np.ndarray,
    rows: np.ndarray,
    valid: np.ndarray,
    answer: np.ndarray,
    source: np.ndarray,
    num_sources: int,
    token_bytes: np.ndarray,
) -> np.ndarray:
    """Sum COLUMNS of each source over these rows, (S, columns) float64: all that ranks add up."""
    answer = answer & valid
    num_bytes = token_bytes[rows[:, 1:]] * valid
    text_losses = losses * (num_bytes > 0)
    nats, size = text_losses.sum(1), num_bytes.sum(1).astype(float)
    per_row = np.stack(
        [
            losses.sum(1), valid.sum(1), nats, size,
            (losses * answer).sum(1), answer.sum(1), (text_losses * answer).sum(1), (num_bytes * answer).sum(1),
            size > 0, nats**2, nats * size, size**2,
        ],
        axis=1,
    )  # fmt: skip
    sums = np.zeros((num_sources, len(COLUMNS)))
    np.add.at(sums, source, per_row)
    return sums


def _summary(sums: np.ndarray, labels: Sequence[str], watched: Collection[str]) -> Evaluation:
    per_source = {}
    for label, values in zip(labels, sums, strict=True):
        s = dict(zip(COLUMNS, values.tolist(), strict=True))
        if s["bytes"]:
            has_answers = s["answer_bytes"] > 0
            per_source[label] = SourceEvaluation(
                loss=s["nats"] / s["tokens"],
                bits_per_byte=s["text_nats"] / s["bytes"] / LN2,
                stderr=_ratio_stderr(s),
                tokens=int(s["tokens"]),
                answer_loss=s["answer_nats"] / s["answer_tokens"] if has_answers else None,
                answer_bits_per_byte=s["answer_text_nats"] / s["answer_bytes"] / LN2 if has_answers else None,
            )
    counted = [label not in watched for label in labels]
    total = dict(zip(COLUMNS, sums[counted].sum(0).tolist(), strict=True))
    assert total["bytes"] > 0, "held-out text is never empty: data/heldout.py sees to it"
    return Evaluation(
        loss=total["nats"] / total["tokens"],
        bits_per_byte=total["text_nats"] / total["bytes"] / LN2,
        tokens=int(total["tokens"]),
        per_source=per_source,
    )


def _ratio_stderr(s: dict[str, float]) -> float | None:
    """Return the standard error, in bits, of R = sum(nats) / sum(bytes); None for n < 2 rows.

    It is sqrt(n / (n - 1) * sum((nats - R bytes)^2)) / sum(bytes) (Cochran, Sampling Techniques,
    6.4), with the squares expanded, so that ranks only need to add sums.
    """
    n, ratio = s["rows"], s["text_nats"] / s["bytes"]
    if n < 2:
        return None
    squares = s["nats2"] - 2 * ratio * s["nats_bytes"] + ratio**2 * s["bytes2"]
    return math.sqrt(max(0.0, squares) * n / (n - 1)) / s["bytes"] / LN2
