"""Exact matches in the text so far, and the mixture: it sums to 1, and is worth what it says on documents not fitted on."""

import random
from collections import Counter

import numpy as np
import pytest
import torch

from configs.schema import ModelConfig
from data.heldout import HeldOut, SourceRows
from lm.inference.decoder import Decoder
from lm.inference.generate import Drafting, generate
from lm.inference.memory import DEPTH, SHORTEST, Earlier, Gate, Recall, fit_recall
from tests.lm.inference.test_generate import NoisyCopy
from tests.lm.random_model import random_model

VOCAB, LENGTH = 40, 64
TRUSTING = Gate(np.array([[3.0, *[0.0] * 7]]))  # 95% for the memory wherever it has a match


@pytest.fixture(scope="module")
def model():
    return random_model(ModelConfig(hidden_size=32, num_layers=1, num_heads=2, seq_length=LENGTH, mlp_size=64), VOCAB)


def followers(text: list[int], context: list[int], length: int) -> list[int]:
    return [text[i] for i in range(length, len(text)) if text[i - length : i] == context[-length:]]


def test_the_longest_match_is_found_with_all_that_followed():
    chance = random.Random(1)
    text = [*chance.choices(range(4), k=120), *range(4, 24), 4, 5, *range(4, 23)]
    for context in [chance.choices(range(4), k=20) for _ in range(100)] + [text, [3], []]:
        match = Earlier(text).longest(context)
        lengths = [n for n in range(SHORTEST, min(DEPTH, len(context)) + 1) if followers(text, context, n)]
        expected = followers(text, context, lengths[-1]) if lengths else []
        assert match.length == (lengths[-1] if lengths else 0)
        assert match.following == Counter(expected)
        assert match.positions == len(expected)


def test_the_mixture_sums_to_1_and_takes_from_all_other_tokens_alike():
    logits = torch.randn(VOCAB, generator=torch.Generator().manual_seed(1))
    logits[7] = -torch.inf  # which n-grams that must not repeat may bring
    recall = Recall(TRUSTING)
    recall.begin([0, 1, 2, 3, 1, 2, 4, 1, 2, 3])
    own, mixed = logits.softmax(-1), recall(logits, [9, 1, 2]).exp()
    assert float(mixed.sum()) == pytest.approx(1, abs=1e-6)
    share = 1 - float(mixed[5] / own[5])
    assert share == pytest.approx(1 / (1 + np.exp(-3)), abs=1e-5)
    expected = (1 - share) * own
    expected[3] += share * 2 / 3
    expected[4] += share / 3
    assert torch.allclose(mixed, expected, atol=1e-6)


def test_only_the_prompt_is_recalled(model):
    """Random logits never repeat 38, 39; what the memory knows it takes from the prompt alone."""
    recall = Recall(TRUSTING)
    recall.begin([0, 1, 2, 3])
    logits = torch.zeros(VOCAB)
    assert torch.equal(recall(logits, [0, 1, 2, 3, 38, 39, 5, 38, 39]), logits)
    assert int(recall(logits, [0, 1, 2, 3, 38, 1, 2]).argmax()) == 3
    prompt = [0, 5, 6, 7, 8, 9, 10, 11, 5, 6]
    text = list(generate(Decoder(model), prompt, 5, temperature=0, recall=Recall(TRUSTING)))
    assert text == [7, 8, 9, 10, 11]
    assert text != list(generate(Decoder(model), prompt, 5, temperature=0))


def test_drafts_change_nothing_of_what_is_recalled(model):
    prompt = [0, 5, 6, 7, 8, 9, 10, 11, 5, 6]
    drafting, doubting = Drafting(NoisyCopy(model, noise=0.3)), Gate(np.array([[-1.0, *[0.0] * 7]]))
    texts = [
        list(generate(Decoder(model), prompt, 30, temperature=0, drafting=drafts, recall=Recall(doubting)))
        for drafts in (None, drafting)
    ]
    assert texts[0] == texts[1]
    assert 0 < drafting.kept.total() < drafting.drafted.total()


def held_out(*sources: list[list[int]]) -> HeldOut:
    return HeldOut([rows_of(documents, str(number)) for number, documents in enumerate(sources)], frozenset())


def rows_of(documents: list[list[int]], label: str) -> SourceRows:
    tokens = np.array([token for document in documents for token in [0, *document]] + [0])
    places = np.arange(len(documents))[:, None] * LENGTH + np.arange(LENGTH + 1)
    valid = np.ones((len(documents), LENGTH), dtype=bool)
    starts = np.stack([np.arange(len(documents)), np.zeros(len(documents), dtype=int)], 1)
    return SourceRows(label, tokens[places], valid, ~valid, starts)


def document(chance: random.Random, period: int) -> list[int]:
    part = chance.choices(range(1, VOCAB), k=period)
    return [part[i % period] for i in range(LENGTH - 1)]


def test_recall_is_offered_only_if_it_helps_on_documents_it_was_not_fitted_on(model):
    chance, size = random.Random(1), np.array([0, *[1] * (VOCAB - 1)])
    repeated = [document(chance, 12) for _ in range(20)]
    recall, words = fit_recall(model, held_out(repeated), size)
    assert recall
    before, after = (float(word) for word in words.split() if word[0].isdecimal())
    assert after < 0.5 * before

    pairs = [token for place in range(1, VOCAB - 1) for token in (1, 2, place)][
        : LENGTH - 1
    ]  # never the same after 1, 2
    alternately = [one for pair in zip(repeated, [pairs] * 20, strict=True) for one in pair]
    recall, words = fit_recall(model, held_out(alternately), size)
    assert recall is None
    assert "does not help" in words

    recall, _ = fit_recall(model, held_out(repeated, [pairs] * 20), size)  # half of each source is fitted on
    assert recall

    recall, words = fit_recall(model, held_out(repeated[:1]), size)
    assert recall is None
    assert "too few" in words
