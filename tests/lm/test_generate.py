"""Cached decoding equals a fresh forward pass; the sampler draws from exactly the distribution it promises."""

import math

import pytest
import torch

from configs.schema import ModelConfig
from lm.generate import KVCache, NgramBlocker, generate, process_logits
from lm.model import Transformer

VOCAB = 40


@pytest.fixture(scope="module")
def model() -> Transformer:
    """Random weights everywhere: as initialised, the blocks are the identity and the cache would not matter."""
    config = ModelConfig(hidden_size=32, num_layers=2, num_heads=2, seq_length=16, mlp_size=64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Transformer(config, VOCAB)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.3)
    return model


def random_tokens(count: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(VOCAB, (1, count), generator=torch.Generator().manual_seed(seed))


def reference_nucleus(probabilities: list[float], top_p: float) -> set[int]:
    """The definition, in exact sums: take tokens by falling probability until their mass reaches top_p."""
    kept: list[int] = []
    for token in sorted(range(len(probabilities)), key=lambda i: -probabilities[i]):
        kept.append(token)
        if math.fsum(probabilities[i] for i in kept) >= top_p:
            break
    return set(kept)


@torch.no_grad()
def test_cached_hidden_states_equal_a_fresh_forward(model):
    tokens = random_tokens(16)
    fresh = model(tokens)
    cache = KVCache.for_model(model)
    pieces = [model(part, cache=cache) for part in tokens.split([5, 1, 1, 4, 5], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), fresh, atol=1e-5, rtol=1e-5)
    assert cache.length == 16


@torch.no_grad()
def test_rollback_forgets_what_came_after(model):
    tokens, rejected = random_tokens(12), random_tokens(6, seed=2)
    cache = KVCache.for_model(model)
    model(tokens[:, :7], cache=cache)
    model(rejected, cache=cache)
    cache.rollback(7)
    continued = model(tokens[:, 7:], cache=cache)
    torch.testing.assert_close(continued, model(tokens)[:, 7:], atol=1e-5, rtol=1e-5)


def test_greedy_text_is_the_argmax_of_uncached_forwards_within_the_window(model):
    prompt = random_tokens(5)[0].tolist()
    text = list(generate(model, prompt, 11, temperature=0, block_ngram=0))
    tokens = list(prompt)
    with torch.no_grad():
        for _ in range(11):
            tokens.append(int(model.output(model(torch.tensor([tokens]))[0, -1]).argmax()))
    assert text == tokens[5:]


def test_a_full_window_starts_again_with_its_last_half(model):
    prompt = random_tokens(16)[0].tolist()
    text = list(generate(model, prompt, 10, temperature=0, block_ngram=0))
    tokens, start = list(prompt), 0
    with torch.no_grad():
        for _ in range(10):
            if len(tokens) - start > 16:
                start = len(tokens) - 8
            tokens.append(int(model.output(model(torch.tensor([tokens[start:]]))[0, -1]).argmax()))
    assert text == tokens[16:]
    assert len(list(generate(model, random_tokens(50)[0].tolist(), 30))) == 30  # a prompt longer than the window


@pytest.mark.parametrize("top_p", [0.05, 0.3, 0.5, 0.9, 0.999])
def test_nucleus_is_the_smallest_set_that_reaches_top_p(top_p):
    for seed in range(20):
        logits = torch.randn(50, generator=torch.Generator().manual_seed(seed)) * 3
        full = process_logits(logits, (), 0.7, 1.0)
        torch.testing.assert_close(full, torch.softmax(logits / 0.7, -1))
        nucleus = process_logits(logits, (), 0.7, top_p)
        kept = reference_nucleus(full.tolist(), top_p)
        assert set(nucleus.nonzero().flatten().tolist()) == kept
        expected = torch.where(nucleus > 0, full, 0)
        torch.testing.assert_close(nucleus, expected / expected.sum())


def test_nucleus_edges():
    quarter = torch.tensor([0.5, 0.25, 0.25]).log()
    assert process_logits(quarter, (), 1.0, 0.75).nonzero().flatten().tolist() == [0, 1]  # reached, not exceeded
    assert process_logits(quarter, (), 1.0, 0.0).tolist() == [1, 0, 0]
    assert process_logits(quarter, (), 0.0, 0.5).tolist() == [1, 0, 0]


def test_banned_tokens_have_no_mass_unless_all_are_banned():
    logits = torch.tensor([3.0, 2.0, 1.0])
    assert process_logits(logits, [0, 0], 0, 1.0).tolist() == [0, 1, 0]
    torch.testing.assert_close(
        process_logits(logits, [1], 1.0, 1.0), torch.softmax(torch.tensor([3, -torch.inf, 1]), -1)
    )
    torch.testing.assert_close(process_logits(logits, [0, 1, 2], 1.0, 1.0), torch.softmax(logits, -1))
    assert logits.tolist() == [3.0, 2.0, 1.0]  # the model's logits stay as they were


def test_no_3_gram_ever_comes_twice(model):
    prompt = random_tokens(3)[0].tolist()
    repetitive = list(generate(model, prompt, 200, temperature=0, block_ngram=0))
    blocked = prompt + list(generate(model, prompt, 200, temperature=0))
    trigrams = list(zip(blocked, blocked[1:], blocked[2:], strict=False))
    assert len(set(trigrams)) == len(trigrams)
    assert len(set(zip(repetitive, repetitive[1:], repetitive[2:], strict=False))) < 150  # there was something to block


def test_blocker_rollback_undoes_append():
    tokens = [1, 2, 3, 1, 2, 4, 1, 2, 3, 1, 2]
    blocker = NgramBlocker(tokens[:6])
    for token in tokens[6:]:
        blocker.append(token)
    assert sorted(set(blocker.banned())) == [3, 4]
    for length in range(len(tokens), -1, -1):
        blocker.rollback(length)
        assert sorted(blocker.banned()) == sorted(NgramBlocker(tokens[:length]).banned())


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.6, 0.8)])
def test_sampled_tokens_follow_the_processed_distribution(temperature, top_p):
    """Chi-square of the first sampled token of the real sampler against `process_logits`, 4000 draws, alpha = 0.001."""
    config = ModelConfig(hidden_size=16, num_layers=1, num_heads=1, seq_length=8, mlp_size=16)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        tiny = Transformer(config, 6)
        torch.nn.init.normal_(tiny.output.weight, std=0.1)
    with torch.no_grad():
        expected = process_logits(tiny.output(tiny(torch.tensor([[2, 5]]))[0, -1]), (), temperature, top_p)
    generator = torch.Generator().manual_seed(4)
    settings = {"temperature": temperature, "top_p": top_p, "generator": generator}
    draws = torch.tensor([next(generate(tiny, [2, 5], 1, **settings)) for _ in range(4000)])
    counts = torch.bincount(draws, minlength=6).float()
    possible = expected > 0
    assert counts[~possible].sum() == 0
    assert int(possible.sum()) >= 3
    statistic = ((counts - 4000 * expected)[possible] ** 2 / (4000 * expected)[possible]).sum()
    critical = {1: 10.83, 2: 13.82, 3: 16.27, 4: 18.47, 5: 20.52}[int(possible.sum()) - 1]
    assert statistic < critical


def test_a_seed_fixes_the_text_and_global_state_is_left_alone(model):
    before = torch.random.get_rng_state()
    texts = []
    for seed in (7, 7, 8):
        stream = generate(model, [1, 2], 40, generator=torch.Generator().manual_seed(seed))
        first = next(stream)
        assert not torch.is_inference_mode_enabled()  # between tokens the caller is in its own mode
        texts.append([first, *stream])
    list(generate(model, [1, 2], 5))
    assert texts[0] == texts[1] != texts[2]
    assert torch.equal(before, torch.random.get_rng_state())


def test_stop_token_ends_the_text_and_is_not_part_of_it(model):
    text = list(generate(model, [1, 2], 30, temperature=0))
    stop = text[10]
    assert list(generate(model, [1, 2], 30, temperature=0, stop_token=stop)) == text[: text.index(stop)]
