"""Cached decoding equals a fresh forward pass; the sampler draws from exactly the distribution it promises."""

from collections import Counter

import pytest
import torch

from configs.schema import ModelConfig
from lm.inference.decoder import Decoder
from lm.inference.generate import Drafting, generate, slid
from lm.inference.sampling import NgramBlocker, process_logits
from lm.model import Transformer
from tests.lm.random_model import random_model

VOCAB = 40


@pytest.fixture(scope="module")
def model() -> Transformer:
    return random_model(ModelConfig(hidden_size=32, num_layers=2, num_heads=2, seq_length=16, mlp_size=64), VOCAB)


def random_tokens(count: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(VOCAB, (1, count), generator=torch.Generator().manual_seed(seed))


def test_greedy_text_is_the_argmax_of_uncached_forwards_within_the_window(model):
    prompt = random_tokens(5)[0].tolist()
    text = list(generate(Decoder(model), prompt, 11, temperature=0, block_ngram=0))
    tokens = list(prompt)
    with torch.no_grad():
        for _ in range(11):
            tokens.append(int(model.output(model(torch.tensor([tokens]))[0, -1]).argmax()))
    assert text == tokens[5:]


def test_a_full_window_slides_by_a_quarter(model):
    prompt = random_tokens(16)[0].tolist()
    text = list(generate(Decoder(model), prompt, 10, temperature=0, block_ngram=0))
    tokens, start = list(prompt), 0
    with torch.no_grad():
        for _ in range(10):
            if len(tokens) - start > 16:
                start = len(tokens) - 12
            tokens.append(int(model.output(model(torch.tensor([tokens[start:]]))[0, -1]).argmax()))
    assert text == tokens[16:]
    assert (
        len(list(generate(Decoder(model), random_tokens(50)[0].tolist(), 30))) == 30
    )  # a prompt longer than the window


def test_no_3_gram_ever_comes_twice(model):
    prompt = random_tokens(3)[0].tolist()
    repetitive = list(generate(Decoder(model), prompt, 200, temperature=0, block_ngram=0))
    blocked = prompt + list(generate(Decoder(model), prompt, 200, temperature=0, block_ngram=3))
    trigrams = list(zip(blocked, blocked[1:], blocked[2:], strict=False))
    assert len(set(trigrams)) == len(trigrams)
    assert len(set(zip(repetitive, repetitive[1:], repetitive[2:], strict=False))) < 150  # there was something to block


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.6, 0.8)])
def test_sampled_tokens_follow_the_processed_distribution(temperature, top_p):
    """Chi-square of the first sampled token of the real sampler against `process_logits`, 1000 draws, alpha = 0.001."""
    config = ModelConfig(hidden_size=16, num_layers=1, num_heads=1, seq_length=8, mlp_size=16)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        tiny = Transformer(config, 6)
        torch.nn.init.normal_(tiny.output.weight, std=0.1)
    with torch.no_grad():
        expected = process_logits(tiny.output(tiny(torch.tensor([[2, 5]]))[0, -1]), (), temperature, top_p)
    generator = torch.Generator().manual_seed(4)
    settings = {"temperature": temperature, "top_p": top_p, "generator": generator}
    decoder = Decoder(tiny)
    draws = torch.tensor([next(generate(decoder, [2, 5], 1, **settings)) for _ in range(1000)])
    counts = torch.bincount(draws, minlength=6).float()
    possible = expected > 0
    assert counts[~possible].sum() == 0
    assert int(possible.sum()) >= 3
    statistic = ((counts - 1000 * expected)[possible] ** 2 / (1000 * expected)[possible]).sum()
    critical = {1: 10.83, 2: 13.82, 3: 16.27, 4: 18.47, 5: 20.52}[int(possible.sum()) - 1]
    assert statistic < critical


def test_a_seed_fixes_the_text_and_global_state_is_left_alone(model):
    before = torch.random.get_rng_state()
    texts = []
    for seed in (7, 7, 8):
        stream = generate(Decoder(model), [1, 2], 40, generator=torch.Generator().manual_seed(seed))
        first = next(stream)
        assert not torch.is_inference_mode_enabled()  # between tokens the caller is in its own mode
        texts.append([first, *stream])
    list(generate(Decoder(model), [1, 2], 5))
    assert texts[0] == texts[1] != texts[2]
    assert torch.equal(before, torch.random.get_rng_state())


def test_stop_token_ends_the_text_and_is_not_part_of_it(model):
    text = list(generate(Decoder(model), [1, 2], 30, temperature=0))
    stop = text[10]
    assert list(generate(Decoder(model), [1, 2], 30, temperature=0, stop_tokens=[stop])) == text[: text.index(stop)]


class NoisyCopy:
    """Drafts with a trunk of its own that errs: each logit is off by `noise` times a normal number."""

    def __init__(self, model: Transformer, noise: float = 1.0):
        self.model, self.noise, self.tokens_N = model, noise, torch.arange(model.output.out_features)
        self.generator = torch.Generator().manual_seed(5)

    def begin(self, hidden_D: torch.Tensor, tokens: list[int]) -> int:
        self.tokens = tokens[:-1]
        return 3

    def step(self, token: int) -> torch.Tensor:
        self.tokens = [*self.tokens, token][-self.model.config.seq_length :]
        logits = self.model.output(self.model(torch.tensor([self.tokens]))[0, -1])
        return logits + self.noise * torch.randn(logits.shape, generator=self.generator)


class Ignorant:
    """Knows four of six tokens and prefers token 3, whatever the text and the model."""

    tokens_N = torch.tensor([0, 2, 3, 5])

    def __init__(self, model: Transformer):
        pass

    def begin(self, hidden_D: torch.Tensor, tokens: list[int]) -> int:
        return 2

    def step(self, token: int) -> torch.Tensor:
        return torch.tensor([0.0, 0.5, 2.0, 1.0])


@pytest.mark.slow
@pytest.mark.parametrize("block_ngram", [0, 3])
def test_greedy_text_is_the_same_with_drafts(model, block_ngram):
    """64 prompts of 1 to 20 tokens, beyond the window of 16; drafts that are kept, and drafts that are not."""
    decoder, drafting = Decoder(model), Drafting(NoisyCopy(model, noise=0.5))
    for seed in range(64):
        prompt = random_tokens(1 + seed % 20, seed)[0].tolist()
        settings = {"temperature": 0, "block_ngram": block_ngram, "stop_tokens": [7]}
        plain = list(generate(decoder, prompt, 30, **settings))
        assert list(generate(decoder, prompt, 30, **settings, drafting=drafting)) == plain
    assert 0.1 < drafting.share_kept < 0.9


def enumerated(model, prompt, length, settings) -> dict[tuple[int, ...], float]:
    """The probability of every continuation, one fresh forward over the window and one `process_logits` a token."""
    window = model.config.seq_length
    found, ended, start = {(): 1.0}, Counter(), 0
    for number in range(length):
        if len(prompt) + number - start > window:
            start = len(prompt) + number - slid(window)
        longer = {}
        for text, probability in found.items():
            tokens = [*prompt, *text]
            banned = NgramBlocker(tokens, settings["block_ngram"]).banned()
            with torch.no_grad():
                logits = model.output(model(torch.tensor([tokens[start:]]))[0, -1])
            p = process_logits(logits, banned, settings["temperature"], settings["top_p"]).tolist()
            longer |= {(*text, token): probability * p[token] for token in range(len(p)) if p[token]}
        found = {text: probability for text, probability in longer.items() if text[-1] not in settings["stop_tokens"]}
        for text in longer.keys() - found.keys():
            ended[text[:-1]] += longer[text]
    return found | ended


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "temperature", "top_p", "block_ngram", "prompt", "stop_tokens"),
    [
        (Ignorant, 1.0, 1.0, 0, [2, 3, 1, 2, 3], ()),
        (Ignorant, 0.7, 0.9, 2, [2, 3, 1, 2, 3], ()),
        (Ignorant, 1.5, 0.8, 3, [2, 3, 1, 2, 3], ()),
        (NoisyCopy, 1.0, 0.9, 2, [2, 3, 1, 2, 3], ()),
        (NoisyCopy, 1.0, 1.0, 3, [2, 3, 1, 2, 3, 0, 5], ()),  # the window is full after one token
        (Ignorant, 1.0, 1.0, 0, [2, 3, 1, 2, 3, 0, 5], {3, 4}),  # its favourite ends the text, or another
    ],
)
def test_drafted_text_is_distributed_as_plain_text(make, temperature, top_p, block_ngram, prompt, stop_tokens):
    """Chi-square of all tokens at once, 1000 texts, against the enumeration; alpha = 0.001, cells under 5 pooled."""
    config = ModelConfig(hidden_size=16, num_layers=1, num_heads=1, seq_length=8, mlp_size=16)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        tiny = Transformer(config, 6)
        for parameter in tiny.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.4)
    draws = 1000
    settings = {"temperature": temperature, "top_p": top_p, "block_ngram": block_ngram, "stop_tokens": stop_tokens}
    decoder, drafting, generator = Decoder(tiny), Drafting(make(tiny)), torch.Generator().manual_seed(4)
    texts = Counter(
        tuple(generate(decoder, prompt, 4, **settings, generator=generator, drafting=drafting)) for _ in range(draws)
    )
    possible = enumerated(tiny, prompt, 4, settings)
    assert sum(possible.values()) == pytest.approx(1, abs=1e-5)
    assert set(texts) <= set(possible)

    def by_end(counts) -> Counter:
        """Whole texts by their last three tokens: of four there are too many."""
        together = Counter()
        for text, count in counts.items():
            together[text[1:] if len(text) == 4 else (len(text), *text)] += count
        return together

    expected, seen_of = by_end(possible), by_end(texts)
    cells = [(seen_of[text], draws * share) for text, share in expected.items() if draws * share >= 5]
    rest = draws - sum(seen for seen, _ in cells), draws - sum(count for _, count in cells)
    cells += [rest] if rest[1] >= 5 else []
    statistic = sum((seen - count) ** 2 / count for seen, count in cells)
    freedom = len(cells) - 1
    assert freedom >= 8
    critical = freedom * (1 - 2 / (9 * freedom) + 3.09 * (2 / (9 * freedom)) ** 0.5) ** 3  # Wilson and Hilferty
    assert statistic < critical
    assert 0 < drafting.kept[0] < drafting.drafted[0]
    if len(prompt) == 5:  # a longer one leaves no room for a second draft
        assert 0 < drafting.kept[1] < drafting.kept[0]


def test_no_3_gram_comes_twice_with_drafts_either(model):
    drafting = Drafting(NoisyCopy(model, noise=0.5))
    for temperature in (0, 0.8):
        settings = {"temperature": temperature, "block_ngram": 3}
        text = list(generate(Decoder(model), [1, 2], 200, drafting=drafting, **settings))
        trigrams = list(zip(text, text[1:], text[2:], strict=False))
        assert len(text) == 200
        assert len(set(trigrams)) == len(trigrams)
    assert drafting.kept.total() > 50


def test_after_each_rollback_the_cache_is_that_of_the_text(model):
    """Every pass: its states are those of a fresh forward over the window that it continues."""

    class Checked(Decoder):
        seen = ()

        def __call__(self, tokens):
            self.seen = [*self.seen[: self.length], *tokens]
            hidden_TD = super().__call__(tokens)
            fresh_TD = model(torch.tensor([self.seen]))[0, -len(tokens) :]
            torch.testing.assert_close(hidden_TD, fresh_TD, atol=1e-5, rtol=1e-5)
            return hidden_TD

    drafting, decoder = Drafting(NoisyCopy(model, noise=1.0)), Checked(model)
    text = [1, 2, *generate(decoder, [1, 2], 60, drafting=drafting)]
    assert 0 < drafting.kept.total() < drafting.drafted.total()
    assert decoder.seen[: decoder.length] == text[-decoder.length - 1 : -1]


def test_a_drafted_stop_token_ends_the_text(model):
    perfect = Drafting(NoisyCopy(model, noise=0.0))
    text = list(generate(Decoder(model), [1, 2], 30, temperature=0))
    for stop in text[:12]:
        stopped = list(generate(Decoder(model), [1, 2], 30, temperature=0, stop_tokens=[stop], drafting=perfect))
        assert stopped == text[: text.index(stop)]
    for limit in range(12):
        assert list(generate(Decoder(model), [1, 2], limit, temperature=0, drafting=perfect)) == text[:limit]
