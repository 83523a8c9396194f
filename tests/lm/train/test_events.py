"""What is said of samples while a run goes on."""

import statistics
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from aux_heads.value import Value
from configs.schema import ModelConfig
from lm.inference.decoder import Decoder
from lm.model import Transformer
from lm.train.events import difficulty, sample
from tests.lm.random_model import random_model, randomize


@torch.no_grad()
def test_difficulty_is_what_the_value_head_expects_at_each_token_of_the_window():
    model = random_model(ModelConfig(hidden_size=32, num_layers=2, num_heads=2, seq_length=16, mlp_size=64), 40)
    value = Value(32)
    randomize(value, 0.5)
    tokens = [0, *torch.randint(1, 40, (20,), generator=torch.Generator().manual_seed(1)).tolist()]
    decoder = Decoder(model)
    for length in (1, 9, 16, 21):
        found = difficulty(value, decoder, tokens[:length])
        window = tokens[:length][-16:]
        states_TD = model(torch.tensor([window]))[0]
        losses = [
            -float(model.output(states_TD[t]).log_softmax(-1)[following]) for t, following in enumerate(window[1:])
        ]
        trailing = [statistics.mean(losses[:t] or losses) for t in range(len(window))] if losses else None
        expected_T = value.expectation(value.logits(states_TD, trailing and torch.tensor(trailing)))
        assert found[: -len(expected_T)] == [None] * max(0, length - 16)
        torch.testing.assert_close(torch.tensor(found[-len(expected_T) :]), expected_T, atol=1e-4, rtol=1e-4)


def samples(model: Transformer, prompt: list[int], n: int = 0, neighbours=None) -> list[list[int]]:
    """The tokens of each sample, of which no n in a row come twice."""
    written = []
    train = SimpleNamespace(seed=1, sample_no_repeat_ngram=n)
    held_out = SimpleNamespace(beginnings=lambda count, *lengths: [("notes", prompt)] * count)
    trainer = SimpleNamespace(
        collect_results=lambda: None,
        state=SimpleNamespace(sampled=0, tokens_seen=1),
        world=SimpleNamespace(is_first=True),
        learner=SimpleNamespace(trunk=model, heads={}),
        preset=SimpleNamespace(train=train, model=model.config),
        held_out=SimpleNamespace(without=lambda labels: held_out),
        watched_labels=[],
        end_tokens=(),
        stop=lambda: False,
        tokenizer=SimpleNamespace(decode=lambda tokens, **_: " ".join(map(str, tokens))),
        neighbours=neighbours,
        records=SimpleNamespace(write_samples=written.extend),
    )
    sample(trainer)
    return [[int(token) for token in one.continuation.split()] for one in written]


@pytest.mark.parametrize("n", [0, 1, 3])
def test_samples_repeat_no_run_of_as_many_tokens_as_the_preset_says(n):
    vocab_size = 200 if n == 1 else 8  # with so few tokens three in a row come again by chance
    model = random_model(ModelConfig(hidden_size=32, num_layers=2, num_heads=2, seq_length=16, mlp_size=64), vocab_size)
    repeats, texts = {}, [[0, 1, 2, *tokens] for tokens in samples(model, [0, 1, 2], n)]
    for size in (1, 3):
        runs = [list(zip(*(text[i:] for i in range(size)), strict=False)) for text in texts]
        repeats[size] = any(len(set(run)) < len(run) for run in runs)
    assert repeats == {1: n != 1, 3: n == 0}


def test_samples_hold_no_tokens_that_no_text_has_in_a_row():
    model = random_model(ModelConfig(hidden_size=32, num_layers=2, num_heads=2, seq_length=16, mlp_size=64), 8)
    never_twice = SimpleNamespace(after=lambda token: np.arange(8) != token)
    for tokens in samples(model, [1], neighbours=never_twice):
        assert len(tokens) > 10
        assert all(one != other for one, other in pairwise(tokens))
    assert any(one == other for tokens in samples(model, [1]) for one, other in pairwise(tokens))
