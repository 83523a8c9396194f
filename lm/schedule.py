"""The plan of a step, made before it: all that is a function of the tokens seen
(rows, rates, weights that fade out)."""

from __future__ import annotations

from typing import NamedTuple

from configs.schema import AuxiliaryConfig, Preset

EARLY_EVALUATIONS = 3  # before the first regular one, at least
HELD_OUT_SHARE = 20  # one token in so many of a source is held out, at most if it has long documents
FADED_OUT = 2 / 3  # share of the run after which weights that fade out are 0


class StepPlan(NamedTuple):
    first_row: int
    num_rows: int
    num_tokens: int  # predicted: num_rows * T, fewer in the run's last step; the loss may count fewer
    learning_rate_factor: float = 1.0  # of the peak rates
    trunk_gradient: float = 0.0  # scale of the heads' gradient into the trunk
    multi_token_weights: tuple[float, ...] = ()  # of the MTP targets 2, 3, ... tokens ahead


def plan_step(preset: Preset, tokens_seen: int, token_budget: int, rows_per_step: int) -> StepPlan:
    """Plan the step after `tokens_seen`, with `rows_per_step` rows unless it is the last."""
    train, progress = preset.train, tokens_seen / token_budget
    return rows_of_step(tokens_seen, token_budget, rows_per_step, preset.model.seq_length)._replace(
        learning_rate_factor=learning_rate_factor(progress, train.warmup_fraction, train.decay_fraction),
        trunk_gradient=trunk_gradient(preset.auxiliary, progress),
        # Weights that have faded stay as zeros: another number of targets would be another graph.
        multi_token_weights=tuple(weight * fade_out(progress) for weight in train.multi_token_weights),
    )


def rows_of_step(tokens_seen: int, token_budget: int, rows_per_step: int, seq_length: int) -> StepPlan:
    """Return the rows after `tokens_seen`, which is a whole number of rows. The last step is
    shortened, within a row if necessary, so that the run meets its budget to the token."""
    assert tokens_seen % seq_length == 0, "every step but the last ends with a row"
    num_tokens = min(rows_per_step * seq_length, token_budget - tokens_seen)
    return StepPlan(tokens_seen // seq_length, -(-num_tokens // seq_length), num_tokens)


def num_evaluations(tokens_seen: int, every: int, num_held_out: int) -> int:
    """Return how many held-out evaluations are due in the first `tokens_seen` tokens of a run: one at
    each multiple of `every`, and before the first of them at its half, its quarter, its eighth, ...

    The halving ends at the eighth or, for text so small that it is read several times until then,
    within about one reading: `num_held_out` tokens tell, which are at most a twentieth of it.
    """
    one_reading = max(1, HELD_OUT_SHARE * num_held_out)
    halvings = max(EARLY_EVALUATIONS, (every // one_reading).bit_length())
    return tokens_seen // every + sum(tokens_seen << halved >= every for halved in range(1, halvings + 1))


def learning_rate_factor(progress: float, warmup_fraction: float, decay_fraction: float) -> float:
    """Return the share of the peak learning rate: linear warmup, plateau, linear decay to 0
    at the end of the budget.

    It is above 0 in the first step, where a warmup starts at 0.1, and still in the last.
    """
    warmup = progress / warmup_fraction + 0.1 if warmup_fraction else 1.0
    decay = (1 - progress) / decay_fraction if decay_fraction else 1.0
    return min(1.0, warmup, decay)


def fade_out(progress: float) -> float:
    """Return 1 at the beginning of a run and 0 from two thirds of it on, linear in between."""
    return max(0.0, 1.0 - progress / FADED_OUT)


def trunk_gradient(aux: AuxiliaryConfig, progress: float) -> float:
    """Return the scale of the heads' gradient that reaches the trunk."""
    return {"none": 0.0, "constant": 1.0, "annealed": fade_out(progress)}[aux.trunk_gradient]
