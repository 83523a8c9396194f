"""Measures beside their baselines: all that are named exist, and what a reader sees is short and true."""

import math

import pytest
import torch

from aux_heads.base import at
from aux_heads.metrics import MEASURES, in_brief, in_words
from tests.aux_heads.small_trunk import generator, joint_model, let_it_copy, text_batches
from tests.program import ALL_HEADS

pytestmark = pytest.mark.core

MEASURED = {
    "value/correlation": 0.614,
    "value/trailing_correlation": 0.551,
    "dynamics/error_1": 0.312,
    "policy/acceptance_1": 0.4,
    "span_contrastive/top1": 0.31,
    "span_contrastive/chance": 0.00195,
}


def measured(model, tokens_BT1: torch.Tensor | None = None) -> dict[str, float]:
    if tokens_BT1 is None:
        tokens_BT1 = text_batches(1)[0]
    valid_BT = torch.ones_like(tokens_BT1[:, 1:], dtype=torch.bool)
    with torch.no_grad():
        hidden_BTD = model.trunk(tokens_BT1[:, :-1])
        _, losses_N = model.loss_fn(hidden_BTD.flatten(0, 1), model.trunk.output.weight, tokens_BT1[:, 1:].flatten())
    values = model.measure(tokens_BT1, valid_BT, hidden_BTD, losses_N.view_as(valid_BT), generator())
    return {name: float(value) for name, value in values.items()}


def test_every_measure_and_every_baseline_is_measured_on_held_out_text():
    values = measured(joint_model(**ALL_HEADS))
    for measure in MEASURES:
        assert None not in measure.values(values), measure.name
    assert {name for name in values if name.endswith("/loss")} == {
        f"{head}/loss" for head in joint_model(**ALL_HEADS).weights
    }
    assert measured(joint_model()) == {}


def test_a_transition_that_copies_drafts_no_better_than_a_copy_and_errs_as_far_as_states_move():
    model, tokens_BT1 = joint_model(**ALL_HEADS), text_batches(1)[0].clamp(min=1)  # no document ends
    let_it_copy(model)
    values = measured(model, tokens_BT1)
    hidden_BTD = model.trunk(tokens_BT1[:, :-1]).detach()
    now_BS = model.sample_positions(len(tokens_BT1), hidden_BTD.shape[1], generator())["positions"]
    state_BSD, *targets = (at(hidden_BTD, now_BS + k) for k in range(4))
    variance = torch.stack(targets).flatten(0, 2).var(0, correction=0).mean()
    for k, target_BSD in enumerate(targets, 1):
        moved = (state_BSD - target_BSD).square().mean() / variance
        assert values[f"dynamics/error_{k}"] == pytest.approx(moved.item(), rel=1e-4)
        assert values[f"policy/acceptance_{k}"] == pytest.approx(values[f"policy/copy_acceptance_{k}"])
    beaten = [measure.name for measure in MEASURES[:3] if measure.beats(*measure.values(dict.fromkeys(values, 0.9)))]
    assert beaten == [measure.name for measure in MEASURES[:3]], "an error below 1 beats the mean state"


def test_where_nothing_counts_nothing_is_measured():
    """Documents of 20 tokens have no 32 to come, and those of one no next: no result, rather than a perfect one."""
    tokens_BT1 = text_batches(1)[0].clamp(min=1)
    tokens_BT1[:, ::20] = 0
    values = measured(joint_model(**ALL_HEADS), tokens_BT1)
    assert math.isnan(values["value/r2"])
    assert math.isnan(values["value/correlation"])
    assert 0 < values["dynamics/error_1"] < math.inf
    empty = measured(joint_model(**ALL_HEADS), torch.zeros_like(tokens_BT1))
    losses = {name for name in empty if name.endswith("/loss")}
    assert all(empty[name] == 0 for name in losses)
    assert all(math.isnan(empty[name]) for name in empty.keys() - losses)


def test_what_is_measured_is_what_a_training_step_would_on_the_same_rows():
    model = joint_model(**ALL_HEADS)
    tokens = text_batches(1)[0]
    output = model(tokens, tokens[:, 1:], model.sample_positions(len(tokens), tokens.shape[1] - 1, generator()))
    step = {name: float(value) for name, value in output.measures.items()}
    found = {name: value for name, value in measured(model).items() if name in step}
    assert found == pytest.approx(step, abs=1e-5)


def test_a_progress_line_shows_one_head_in_its_turn():
    shown = [in_brief(MEASURED, turn) for turn in range(5)]
    assert shown == ["dynamics .31<1", "policy .4", "value .61>.55", "span .31>.0019", "dynamics .31<1"]
    assert in_brief({}, 3) == ""
    worse = MEASURED | {"value/correlation": -0.05}
    assert in_brief(worse, 2) == "value -.05<.55"
    assert in_brief(MEASURED | {"value/correlation": None}, 2) == "span .31>.0019"


def test_a_line_for_a_log_names_every_baseline():
    assert (
        in_words(MEASURED)
        == "dynamics 0.31 (mean 1), policy 0.4, value 0.61 (trailing 0.55), span 0.31 (chance 0.0019)"
    )
