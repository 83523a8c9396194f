"""The drafter reads the heads as they were trained, and drafts less where value expects trouble."""

import pytest
import torch

from aux_heads.drafter import ASKED_EVERY, NUM_TOKENS, HeadDrafter
from aux_heads.joint import build_heads
from aux_heads.sizes import UNROLL_STEPS
from configs.schema import AuxiliaryConfig, ModelConfig
from lm.inference.decoder import Decoder
from lm.inference.generate import Drafting, generate
from tests.lm.random_model import random_model

WIDTH, VOCAB = 32, NUM_TOKENS + 8


def random_heads(width: int) -> torch.nn.ModuleDict:
    heads = build_heads(AuxiliaryConfig(enable_policy=True, enable_value=True), width, 64)
    generator = torch.Generator().manual_seed(0)
    for parameter in heads.parameters():
        torch.nn.init.normal_(parameter, std=0.5, generator=generator)
    return heads


@pytest.mark.parametrize(("width", "error"), [(32, 0.03), (30, 1e-5)])  # of bytes, or of a width that bytes do not fit
@torch.no_grad()
def test_each_draft_is_read_from_the_latent_one_step_further(width, error):
    generator = torch.Generator().manual_seed(1)
    embedding, output = torch.randn(2, VOCAB, width, generator=generator)
    heads, latent = random_heads(width), torch.randn(width, generator=generator)
    drafter = HeadDrafter(heads, embedding, output)
    drafter.begin(latent, [3])
    for token in (3, VOCAB - 1, 5):  # the text may hold tokens that are never drafted
        latent = heads["dynamics"].step(latent, embedding[token])
        expected = output[:NUM_TOKENS] @ latent
        assert (drafter.step(token) - expected).norm() < error * expected.norm()


@torch.no_grad()
def test_the_most_frequent_tokens_are_drafted():
    embedding, output = torch.randn(2, VOCAB, WIDTH)
    counts = torch.ones(VOCAB, dtype=torch.int64)
    counts[[2, 5, 9]] = 0
    counts[VOCAB - 1] = 7
    drafter, of_all = HeadDrafter(random_heads(WIDTH), embedding, output, counts), set(range(VOCAB))
    assert {VOCAB - 1} <= set(drafter.tokens_N.tolist()) <= of_all - {2, 5, 9}
    assert len(drafter.tokens_N) == NUM_TOKENS
    drafter.begin(torch.ones(WIDTH), [3])
    latent = random_heads(WIDTH)["dynamics"].step(torch.ones(WIDTH), embedding[3])
    expected = output[drafter.tokens_N] @ latent
    assert (drafter.step(3) - expected).norm() < 0.03 * expected.norm()


@torch.no_grad()
def test_the_harder_what_comes_the_fewer_drafts():
    drafter = HeadDrafter(random_heads(WIDTH), *torch.randn(2, VOCAB, WIDTH))

    def drafts(nats: float, text: list[int], length: int) -> int:
        text.extend([1] * (length - len(text)))
        last = drafter.value.outer
        last.weight.zero_()
        last.bias.fill_(-100)[round(nats * 63 / 10)] = 100  # the prediction is this number
        return drafter.begin(torch.ones(WIDTH), text)

    text = [1]
    assert drafts(0.5, text, 50) == drafts(5, text, 100) == UNROLL_STEPS
    assert drafts(8, text, 100 + ASKED_EVERY - 1) == UNROLL_STEPS  # not asked yet
    assert drafts(8, text, 100 + ASKED_EVERY) == 2
    assert drafts(5, [1], 100 + ASKED_EVERY) == UNROLL_STEPS  # another text


@pytest.mark.parametrize(("width", "vocab"), [(16, 258), (30, 300), (64, NUM_TOKENS + 5)])
def test_text_with_its_drafts_is_the_text(width, vocab):
    """Greedy, through the whole program of decoder, sampler and heads, of which some weights are zero."""
    model = random_model(ModelConfig(hidden_size=width, num_layers=1, num_heads=1, seq_length=64), vocab)
    heads = random_heads(width)
    with torch.no_grad():
        model.embed.weight[:vocab:2] = 0
        heads["dynamics"].linear.weight[0] = 0
    drafting = Drafting(HeadDrafter(heads, model.embed.weight.detach(), model.output.weight.detach()))
    decoder = Decoder(model)
    for temperature in (0, 0.8):
        seeds = [torch.Generator().manual_seed(1) for _ in range(3)]
        plain, *drafted = (
            list(generate(decoder, [5], 40, temperature=temperature, generator=generator, drafting=given))
            for generator, given in zip(seeds, (None, drafting, drafting), strict=True)
        )
        assert drafted[0] == drafted[1]  # a seed fixes it
        assert len(plain) == len(drafted[0])
        assert temperature or drafted[0] == plain
    assert drafting.drafted.total() > 40
