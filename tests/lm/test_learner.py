"""What fades while a run goes on is gone at two thirds of it."""

import json

import pytest

from configs.schema import AuxiliaryConfig, parse_preset
from lm.learner import Learner, trunk_gradient_scale
from lm.runtime.distributed import World
from tests.program import preset_json


def test_annealed_trunk_gradient_ends_at_two_thirds():
    annealed = AuxiliaryConfig(trunk_gradient="annealed")
    assert [trunk_gradient_scale(annealed, p) for p in (0.0, 1 / 3, 2 / 3, 1.0)] == pytest.approx([1, 0.5, 0, 0])
    assert trunk_gradient_scale(AuxiliaryConfig(trunk_gradient="constant"), 1.0) == 1
    assert trunk_gradient_scale(AuxiliaryConfig(), 0.0) == 0


def test_weights_of_further_tokens_end_at_two_thirds(tmp_path):
    preset = preset_json(tmp_path, train={"multi_token_weights": [0.5, 0.25]})
    learner = Learner(
        parse_preset(json.dumps(preset), "test"), World.start(), vocab_size=300, end_of_text=0, tokens_per_step=256
    )
    found = [learner.train_step.multi_token_weights(progress) for progress in (0.0, 1 / 3, 2 / 3, 1.0)]
    assert found == [pytest.approx(weights) for weights in ([0.5, 0.25], [0.25, 0.125], [0, 0], [0, 0])]
