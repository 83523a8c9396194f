"""Which tokens may be neighbours: every pair that a text has, and hardly another; generated text has no others."""

import inspect
import json
import random
import tracemalloc
from itertools import pairwise

import pytest
import torch
from tokenizers import Tokenizer, pre_tokenizers

from configs.schema import ModelConfig
from data import tokenizer as bpe
from lm.inference import canonical
from lm.inference.canonical import Neighbours
from lm.inference.decoder import Decoder
from lm.inference.generate import Drafting, generate
from tests.lm.inference.test_generate import NoisyCopy
from tests.lm.random_model import random_model

TEXTS = [inspect.getsource(module) for module in (inspect, json, random)]
PIECES = [
    "'s",
    "'re",
    "'ll",
    "'",
    "s",
    "d",
    "self",
    "The",
    " ",
    "  ",
    "\n",
    "\t",
    "\r",
    "\u00a0",
    "\u3000",
    "\x1c",
    "é",
    "ſ",
    "文",
    "🙂",
]
PIECES += ["1", "23", "²", "Ⅷ", ".", "((", "::", "__", '"', bpe.END_OF_TEXT]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return bpe.train(TEXTS, 700)


def strange_texts(count: int) -> list[str]:
    chance = random.Random(1)
    places = [chance.randrange(len(TEXTS[0])) for _ in range(count)]
    return ["".join(chance.choices([*PIECES, TEXTS[0][place : place + 9]], k=30)) for place in places]


@pytest.mark.parametrize("size", [300, 700, 2000])
def test_every_pair_of_tokens_that_a_text_has_may_be_neighbours(size):
    tokenizer = bpe.train(TEXTS, size)
    neighbours = Neighbours(tokenizer)
    for ids in bpe.encode(tokenizer, [*strange_texts(2000), *TEXTS]):
        for one, other in pairwise([0, *ids.tolist(), 0]):
            assert neighbours.after(one)[other], (tokenizer.id_to_token(one), tokenizer.id_to_token(other))


def test_most_pairs_that_no_text_has_are_found(tokenizer):
    """Of pairs of frequent tokens, the ones that are encoded otherwise when they stand alone."""
    neighbours, chance = Neighbours(tokenizer), random.Random(1)
    tokens = [token for ids in bpe.encode(tokenizer, TEXTS) for token in ids.tolist()]
    others, found = 0, 0
    for pair in zip(chance.choices(tokens, k=2000), chance.choices(tokens, k=2000), strict=True):
        if tokenizer.encode(tokenizer.decode(pair), add_special_tokens=False).ids != list(pair):
            others += 1
            found += not neighbours.after(pair[0])[pair[1]]
    assert others > 100
    assert found > 0.9 * others


def test_the_answers_kept_in_a_long_chat_are_few(tokenizer, monkeypatch):
    monkeypatch.setattr(canonical, "NUM_KEPT", 10, raising=False)
    neighbours = Neighbours(tokenizer)
    tracemalloc.start()
    try:
        for token in range(700):
            neighbours.after(token)
        of_this = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, canonical.__file__)])
        kept = sum(trace.size for trace in of_this.traces)
    finally:
        tracemalloc.stop()
    assert kept < 100 * 700  # each is an array of 700 bytes


def test_of_a_tokenizer_with_other_rules_every_pair_is_allowed(tokenizer):
    other = Tokenizer.from_str(tokenizer.to_str())
    other.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    assert Neighbours(other).after(300).all()
    assert not Neighbours(tokenizer).after(300).all()


@pytest.mark.parametrize("token", ["我", "a b", ""])
def test_of_a_vocabulary_with_what_is_no_bytes_every_pair_is_allowed(token, tokenizer):
    described = json.loads(tokenizer.to_str())
    described["model"]["vocab"][token] = len(described["model"]["vocab"])
    assert Neighbours(Tokenizer.from_str(json.dumps(described))).after(300).all()


def test_an_added_token_may_be_anywhere(tokenizer):
    with_word = Tokenizer.from_str(tokenizer.to_str())
    with_word.add_tokens(["a b"])
    neighbours = Neighbours(with_word)
    assert neighbours.after(700).all()
    assert neighbours.after(300)[700]


@pytest.mark.parametrize("drafts", [False, True])
def test_new_tokens_are_what_their_text_is_encoded_as(tokenizer, drafts):
    """But for the first, which may end a word of the prompt; a model with random weights would write anything."""
    model = random_model(ModelConfig(hidden_size=32, num_layers=2, num_heads=2, seq_length=16, mlp_size=64), 704, 0.1)
    neighbours, wrong = Neighbours(tokenizer), 0
    for seed in range(5):
        for given in (neighbours, None):
            drafting = Drafting(NoisyCopy(model, noise=0.1)) if drafts else None
            how = {"temperature": 1.0, "top_p": 1.0, "generator": torch.Generator().manual_seed(seed)}
            text = list(generate(Decoder(model), [0, 300], 40, drafting=drafting, neighbours=given, **how))
            impossible = sum(one < 700 > other and not neighbours.after(one)[other] for one, other in pairwise(text))
            wrong += 0 if given else impossible
            assert not (given and impossible)
            if drafting and given:
                assert drafting.kept.total()
    assert wrong


def test_a_word_that_the_prompt_begins_can_be_ended(tokenizer):
    """ " sel" and "f" are encoded as " self", yet "f" may come."""
    neighbours = Neighbours(tokenizer)
    begun = tokenizer.encode(" sel", add_special_tokens=False).ids
    end = tokenizer.token_to_id("f")
    assert not neighbours.after(begun[-1])[end]
    model = random_model(ModelConfig(hidden_size=32, num_layers=1, num_heads=2, seq_length=16, mlp_size=64), 700)
    state = Decoder(model)([0, *begun])[-1]
    with torch.no_grad():
        model.output.weight[end] = 10 * state
    first, *_ = generate(Decoder(model), [0, *begun], 2, temperature=0, neighbours=neighbours)
    assert first == end
