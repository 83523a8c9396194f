"""A plan is the model's own text, chosen among candidates by what their heads promise."""

from itertools import chain

import pytest
import torch
from torch.nn import functional as F

from benchmarks.plan import Candidate, plan, promise
from configs.schema import ModelConfig
from lm.inference.decoder import Decoder
from lm.inference.generate import generate
from lm.model import Transformer
from tests.lm.random_model import random_model

VOCAB, PROMPT = 30, [0, 3, 4, 5]


@pytest.fixture(scope="module")
def model() -> Transformer:
    return random_model(ModelConfig(hidden_size=32, num_layers=2, num_heads=2, seq_length=32, mlp_size=64), VOCAB)


@pytest.fixture
def decoder(model) -> Decoder:
    return Decoder(model)


def no_value(state_D: torch.Tensor, token: int) -> float:
    return 0.0


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_one_candidate_is_plain_sampling(decoder):
    """The same draws in the same order, until the first refill, which plain decoding does at another place."""
    planned = list(plan(decoder, PROMPT, 24, no_value, num_candidates=1, chunk_length=8, generator=seeded()))
    assert planned == list(generate(decoder, PROMPT, 24, generator=seeded()))
    assert len(list(plan(decoder, PROMPT, 90, no_value, num_candidates=2, chunk_length=8, generator=seeded()))) == 90


def test_the_candidate_with_the_highest_score_is_continued(model, decoder):
    """Wherever the choice falls, its probability is what a fresh forward gives in the text so far."""
    seen: list[list[Candidate]] = []

    def in_turn(candidates: list[Candidate]) -> list[float]:
        seen.append(candidates)
        return F.one_hot(torch.tensor(len(seen) % 4), 4).tolist()

    text = list(
        plan(decoder, PROMPT, 24, no_value, num_candidates=4, chunk_length=6, score=in_turn, generator=seeded())
    )
    chosen = [candidates[turn % 4] for turn, candidates in enumerate(seen, start=1)]
    assert text == list(chain(*(candidate.tokens for candidate in chosen)))
    tokens = torch.tensor([PROMPT + text])
    with torch.no_grad():
        log_p = model.output(model(tokens[:, :-1])).log_softmax(-1)
    each = log_p[0].gather(-1, tokens[0, 1:, None])[len(PROMPT) - 1 :].split(6)
    for candidate, expected in zip(chosen, each, strict=True):
        assert candidate.log_probability == pytest.approx(expected.sum().item(), abs=1e-3)


def test_the_value_is_asked_with_the_state_before_the_last_token_and_that_token(model, decoder):
    asked = []

    def value_ahead(state_D: torch.Tensor, token: int) -> float:
        asked.append((state_D, token))
        return float(len(asked))

    text = list(plan(decoder, PROMPT, 6, value_ahead, num_candidates=3, chunk_length=6, generator=seeded()))
    with torch.no_grad():
        hidden_D = model(torch.tensor([PROMPT + text[:-1]]))[0, -1]
    assert len(asked) == 3
    state_D, token = asked[0]  # 32 tokens' worth of value outweighs the chunks: the lowest predicted loss is taken
    assert token == text[-1]
    torch.testing.assert_close(state_D, hidden_D, atol=1e-4, rtol=1e-4)


def test_promise_weighs_chunk_and_future_by_their_tokens_and_an_ended_text_has_no_future():
    candidates = [
        Candidate([1] * 8, -8.0, 1.0, False),
        Candidate([1] * 8, -8.0, 2.0, False),
        Candidate([1] * 3, -8.0, 9.0, True),
    ]
    assert list(map(promise, candidates)) == pytest.approx([-1.0, -(8 + 64) / 40, -2.0])


def test_a_text_ends_at_the_stop_token_and_never_repeats_three_tokens(decoder):
    for seed in range(4):
        text = PROMPT + list(plan(decoder, PROMPT, 200, no_value, chunk_length=8, generator=seeded(seed)))
        triples = list(zip(text, text[1:], text[2:], strict=False))
        assert len(set(triples)) == len(triples)
    stop = next(generate(decoder, PROMPT, 20, generator=seeded()))
    ended = list(plan(decoder, PROMPT, 20, no_value, num_candidates=1, stop_token=stop, generator=seeded()))
    assert ended == []
