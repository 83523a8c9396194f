"""Source weights that adapt: new ones after an evaluation, and a record of their effect.

The rules are in data/mixing.py. Each decision is a pure function of the evaluations so far:
repeated after a resume, it gives the same weights.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping

from configs.schema import AuxiliaryConfig
from data.journal import run_ahead_rows
from data.mixing import base_weights, in_force, loss_slope, relative_loss, shares, shares_asked
from data.order import finish_row
from lm.evaluate import Evaluation
from lm.train.state import Measured
from lm.train.trainer import Trainer

log = logging.getLogger(__name__)


def first_row_of_finish(trainer: Trainer) -> int | None:
    preset = trainer.preset
    return finish_row(preset.data.finish_share, preset.model.seq_length, trainer.token_budget)


def source_records(trainer: Trainer) -> dict[str, dict]:
    """Return the progress of each source for the rows so far. The stream stores it at
    intervals, so it may include a few later rows. `asked` and `realised` are shares of tokens,
    or of documents with round_robin. On the first rank only."""
    strategy = trainer.preset.data.mix_strategy
    num_rows = -(-trainer.state.tokens_seen // trainer.preset.model.seq_length)
    entries = trainer.stream.progress(num_rows)
    unit = "documents" if strategy == "round_robin" else "tokens"
    realised = shares([entry[unit] for entry in entries])
    base, changes = base_weights(strategy, trainer.preset.data.weights), trainer.state.weight_changes
    asked = shares_asked(in_force(base, changes, first_row_of_finish(trainer)), num_rows)
    # Documents of the two parts of a run with a finish are not to be added up: each has so many rows.
    is_asked = strategy == "weighted" or (strategy == "round_robin" and not trainer.preset.data.finish)
    keys = ("documents", "tokens", "bytes", "epoch", "retries", "skipped")
    return {
        label: {key: entry[key] for key in keys} | {"asked": asked[i] if is_asked else None, "realised": realised[i]}
        for i, (label, entry) in enumerate(zip(trainer.trained_labels, entries, strict=False))
    }


def adapt(trainer: Trainer, evaluation: Evaluation) -> None:
    """Set new factors on the sources' weights, in force a run-ahead later, so that every
    resume makes the same rows."""
    data, seq_length, state = trainer.preset.data, trainer.preset.model.seq_length, trainer.state
    found = {label: (s.bits_per_byte, s.stderr) for label, s in evaluation.per_source.items()}
    base = base_weights(data.mix_strategy, data.weights)
    factors, moves = list(state.factors), []
    for start in range(0, len(base), len(trainer.labels)):  # once, or twice with a finish: each part by itself
        numbers = [i for i in range(start, start + len(trainer.labels)) if base[i]]
        labels, before = [trainer.labels[i - start] for i in numbers], [factors[i] for i in numbers]
        after, reasons = decide(trainer.preset.auxiliary, labels, before, state.adapted_on, found)
        for i, factor in zip(numbers, after, strict=True):
            factors[i] = factor
        words = (f"x{factor:.2f}, {reason}" for factor, reason in zip(after, reasons, strict=True))
        moves.append(dict(zip(labels, words, strict=True)))
    state.factors, state.adapted_on = factors, found

    from_row = state.tokens_seen // seq_length + run_ahead_rows(seq_length, trainer.token_budget)
    weights = [weight * factor for weight, factor in zip(base, state.factors, strict=True)]
    state.weight_changes.append((from_row, weights))
    if trainer.world.is_first:
        trainer.stream.change_weights(weights, from_row)
    finish = first_row_of_finish(trainer)
    by_source = moves[finish is not None and from_row >= finish]
    trainer.records.write_adaptation({"from_tokens": from_row * seq_length, "sources": by_source})
    log.info("mixture from %s tokens on: %s", f"{from_row * seq_length:,}", "; ".join(map(" ".join, by_source.items())))


def decide(
    aux: AuxiliaryConfig,
    labels: list[str],
    factors: list[float],
    before: Mapping[str, Measured],
    now: Mapping[str, Measured],
) -> tuple[list[float], list[str]]:
    """Return new factors by the preset's rule, and for each source the reason in words.

    `before`, `now`: held-out bits per byte with their standard errors at the last decision and at
    this one. Both are of the same rows, so the error of a fall is smaller than the one used here,
    that of independent rows: a fall has to be larger than it need be to count.
    """
    limits = {"smoothing": aux.adaptive_smoothing, "low": aux.adaptive_min_weight, "high": aux.adaptive_max_weight}
    if aux.adaptive_rule == "relative_loss":
        losses = [now[label][0] if label in now else None for label in labels]
        reasons = ["nothing held out" if loss is None else f"{loss:.3f} bits per byte" for loss in losses]
        return relative_loss(factors, losses, **limits), reasons
    if not before:
        return factors, ["nothing to compare with yet"] * len(labels)
    falls: list[float | None] = []
    errors, reasons = [], []
    for label in labels:
        fall, error, reason = None, 0.0, "nothing held out"
        if label in before and label in now:
            (was, was_error), (is_now, now_error) = before[label], now[label]
            if was_error is None or now_error is None:
                reason = f"fell by {was - is_now:.4f}, with an error that a single held-out row does not tell"
            else:
                fall, error = was - is_now, math.hypot(was_error, now_error)
                reason = f"fell by {fall:.4f} ± {error:.4f}"
        falls.append(fall)
        errors.append(error)
        reasons.append(reason)
    return loss_slope(factors, falls, errors, **limits), reasons
