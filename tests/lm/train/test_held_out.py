"""What is measured of a run on held-out text, at its end."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from configs.schema import ModelConfig
from lm.train.held_out import CanonicalMass
from tests.lm.random_model import random_model


@torch.no_grad()
def test_canonical_tokens_save_what_the_model_gives_to_all_others():
    model = random_model(ModelConfig(hidden_size=32, num_layers=2, num_heads=2, seq_length=16, mlp_size=64), 40)
    random = np.random.default_rng(1)
    may_follow_VV, token_bytes = random.random((30, 30)) < 0.5, random.integers(1, 5, 40)  # the tokenizer has 30 tokens
    trainer = SimpleNamespace(
        neighbours=SimpleNamespace(after=lambda token: may_follow_VV[token]),
        learner=SimpleNamespace(trunk=model),
        token_bytes=token_bytes,
        world=SimpleNamespace(sum=lambda sums: sums),
    )
    tokens_BT1 = torch.from_numpy(random.integers(0, 30, (3, 17)))
    valid_BT = torch.from_numpy(random.random((3, 16)) < 0.7)
    valid_BT[2] = False
    hidden_BTD = model(tokens_BT1[:, :-1])
    mass = CanonicalMass(trainer)
    for is_valid_BT in (valid_BT, torch.zeros_like(valid_BT)):  # a batch of watched sources alone
        mass.observe(tokens_BT1, is_valid_BT, hidden_BTD, torch.zeros(3, 16))
    nats = num_bytes = 0.0
    for row, column in valid_BT.nonzero().tolist():
        probabilities_V = model.output(hidden_BTD[row, column]).softmax(-1)
        may_follow_V = np.append(may_follow_VV[tokens_BT1[row, column]], [True] * 10)
        nats -= math.log(sum(p for p, possible in zip(probabilities_V.tolist(), may_follow_V, strict=True) if possible))
        num_bytes += token_bytes[tokens_BT1[row, column + 1]]
    assert mass.bits_per_byte() == pytest.approx(nats / num_bytes / math.log(2), rel=1e-5)
    assert nats > 1
