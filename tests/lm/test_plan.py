"""A plan is the model's own text, chosen among candidates by what their heads promise."""

from itertools import chain

import pytest
import torch
from torch.nn import functional as F

from configs.schema import ModelConfig
from lm.generate import generate
from lm.model import Transformer
from lm.plan import Candidates, plan, promise

VOCAB, PROMPT = 30, [0, 3, 4, 5]


@pytest.fixture(scope="module")
def model() -> Transformer:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Transformer(ModelConfig(hidden_size=32, num_layers=2, num_heads=2, seq_length=32, mlp_size=64), VOCAB)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.3)
    return model


def no_value(state_MD: torch.Tensor, token_M: torch.Tensor) -> torch.Tensor:
    return torch.zeros(len(token_M))


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def test_one_candidate_is_plain_sampling_also_past_the_window(model):
    """The same draws in the same order, until the first refill, which plain decoding does at another place."""
    planned = list(plan(model, PROMPT, 24, no_value, num_candidates=1, chunk_length=8, generator=seeded()))
    assert planned == list(generate(model, PROMPT, 24, generator=seeded()))
    assert len(list(plan(model, PROMPT, 90, no_value, num_candidates=1, chunk_length=8, generator=seeded()))) == 90


def test_the_candidate_with_the_highest_score_is_continued(model):
    """Wherever the choice falls, each token's probability is what a fresh forward gives in that text."""
    seen: list[Candidates] = []

    def in_turn(candidates: Candidates) -> torch.Tensor:
        seen.append(candidates)
        return F.one_hot(torch.tensor(len(seen) % 4), 4).float()

    text = list(plan(model, PROMPT, 24, no_value, num_candidates=4, chunk_length=6, score=in_turn, generator=seeded()))
    chosen = [candidates.chunks[turn % 4] for turn, candidates in enumerate(seen, start=1)]
    assert text == list(chain(*chosen))
    tokens = torch.tensor([PROMPT + text])
    with torch.no_grad():
        log_p = model.output(model(tokens[:, :-1])).log_softmax(-1)
    each = log_p[0].gather(-1, tokens[0, 1:, None])[len(PROMPT) - 1 :].split(6)
    for turn, (candidates, expected) in enumerate(zip(seen, each, strict=True), start=1):
        found = candidates.log_probability_M[turn % 4]
        torch.testing.assert_close(found, expected.sum(), atol=1e-4, rtol=1e-4)


def test_the_value_is_asked_with_the_state_before_the_last_token_and_that_token(model):
    asked = []

    def value_ahead(state_MD: torch.Tensor, token_M: torch.Tensor) -> torch.Tensor:
        asked.append((state_MD, token_M))
        return torch.arange(len(token_M)).float()

    text = list(plan(model, PROMPT, 6, value_ahead, num_candidates=3, chunk_length=6, generator=seeded()))
    with torch.no_grad():
        hidden = model(torch.tensor([PROMPT + text[:-1]]))[0, -1]
    [(state_MD, token_M)] = asked
    row = next(row for row in range(3) if token_M[row] == text[-1] and torch.allclose(state_MD[row], hidden, atol=1e-5))
    assert row == 0, "the value, 32 tokens' worth, outweighs the chunks: the lowest predicted loss is taken"


def test_promise_weighs_chunk_and_future_by_their_tokens_and_an_ended_text_has_no_future():
    candidates = Candidates(
        [[1] * 8, [1] * 8, [1] * 3],
        torch.tensor([-8.0, -8.0, -8.0]),
        torch.tensor([1.0, 2.0, 9.0]),
        torch.tensor([0, 0, 1]).bool(),
    )
    assert promise(candidates).tolist() == pytest.approx([-1.0, -(8 + 64) / 40, -2.0])


def test_a_text_ends_at_the_stop_token_and_never_repeats_three_tokens(model):
    stop = next(generate(model, PROMPT, 20, generator=seeded()))
    texts = [
        list(plan(model, PROMPT, 200, no_value, generator=torch.Generator().manual_seed(seed), chunk_length=8))
        for seed in range(4)
    ]
    for text in texts:
        triples = list(zip(PROMPT + text, (PROMPT + text)[1:], (PROMPT + text)[2:], strict=False))
        assert len(set(triples)) == len(triples)
    ended = list(plan(model, PROMPT, 20, no_value, num_candidates=1, stop_token=stop, generator=seeded()))
    assert ended == []
