"""The schedule: rates that rise and fall, what fades and when it is gone, all a function of the tokens seen."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.schema import AuxiliaryConfig, parse_preset
from lm.schedule import learning_rate_factor, num_evaluations, plan_step, trunk_gradient
from tests.program import preset_json

pytestmark = pytest.mark.core


def test_annealed_trunk_gradient_ends_at_two_thirds():
    annealed = AuxiliaryConfig(trunk_gradient="annealed")
    assert [trunk_gradient(annealed, p) for p in (0.0, 1 / 3, 2 / 3, 1.0)] == pytest.approx([1, 0.5, 0, 0])
    assert trunk_gradient(AuxiliaryConfig(trunk_gradient="constant"), 1.0) == 1
    assert trunk_gradient(AuxiliaryConfig(), 0.0) == 0


def points(every: int, num_held_out: int, until: int) -> list[int]:
    """The tokens at which an evaluation becomes due."""
    counts = [num_evaluations(tokens, every, num_held_out) for tokens in range(-1, until + 1)]
    assert all(0 <= now - before <= 1 for before, now in pairwise(counts))
    return [tokens for tokens, (before, now) in enumerate(pairwise(counts)) if now > before]


def test_evaluations_come_early_and_then_at_every_interval():
    assert points(800, 100, 2_000) == [0, 100, 200, 400, 800, 1600]  # at 0 is that of a model that is trained already
    # Of 200 tokens, ten are held out: the first evaluation comes before the text was read once, not after four times.
    assert points(800, 10, 2_000) == [0, 100, 200, 400, 800, 1600]
    assert points(8_000, 10, 8_000) == [0, 125, 250, 500, 1_000, 2_000, 4_000, 8_000]
    assert num_evaluations(5_000_000, 5_000_000, 10**6) == 4


def test_a_plan_has_all_that_the_tokens_seen_decide(tmp_path):
    train = {"multi_token_weights": [0.5, 0.25], "warmup_fraction": 0.0, "decay_fraction": 0.5}
    preset = parse_preset(
        json.dumps(preset_json(tmp_path, train=train, auxiliary={"trunk_gradient": "annealed"})), "test"
    )
    plans = [plan_step(preset, sixths * 320, 6 * 320, 4) for sixths in (0, 2, 4, 5)]
    assert [plan.multi_token_weights for plan in plans] == [
        pytest.approx(weights) for weights in ((0.5, 0.25), (0.25, 0.125), (0, 0), (0, 0))
    ]
    assert [plan.trunk_gradient for plan in plans] == pytest.approx([1, 0.5, 0, 0])
    assert [plan.learning_rate_factor for plan in plans] == pytest.approx([1, 1, 2 / 3, 1 / 3])
    assert [(plan.first_row, plan.num_rows, plan.num_tokens) for plan in plans[:2]] == [(0, 4, 128), (20, 4, 128)]


def test_schedule_warms_up_stays_and_falls():
    factors = [learning_rate_factor(seen / 1000, 0.1, 0.5) for seen in range(1000)]
    assert 0 < factors[0] <= 0.11
    assert all(before < after for before, after in pairwise(factors[:90]))
    assert factors[91:501] == [1.0] * 410
    assert all(before > after for before, after in pairwise(factors[500:]))
    assert 0 < factors[-1] < 0.005
    assert learning_rate_factor(0.75, 0.1, 0.5) == pytest.approx(0.5)


@given(progress=st.floats(0, 1, exclude_max=True), warmup=st.floats(0, 1), decay=st.floats(0, 1))
def test_schedule_is_a_share_of_the_peak_whatever_the_settings(progress, warmup, decay):
    assert 0 < learning_rate_factor(progress, warmup, decay) <= 1
    assert learning_rate_factor(1.0, warmup, decay) == (0 if decay else 1)
