"""The drafter reads the heads as they were trained, and drafts less where value expects trouble."""

import pytest
import torch

from aux_heads.drafter import NUM_TOKENS, HeadDrafter
from aux_heads.inputs import UNROLL_STEPS
from aux_heads.joint import build_heads
from configs.schema import AuxiliaryConfig

WIDTH, VOCAB = 16, NUM_TOKENS + 8


@pytest.fixture
def drafter() -> HeadDrafter:
    heads = build_heads(AuxiliaryConfig(enable_policy=True, enable_value=True), WIDTH, 64)
    generator = torch.Generator().manual_seed(0)
    for parameter in heads.parameters():
        torch.nn.init.normal_(parameter, std=0.5, generator=generator)
    embedding, output = torch.randn(2, VOCAB, WIDTH, generator=generator)
    return HeadDrafter(heads, embedding, output)


@torch.no_grad()
def test_each_draft_is_read_from_the_latent_one_step_further(drafter):
    latent = torch.randn(WIDTH, generator=torch.Generator().manual_seed(1))
    drafter.begin(latent, [3])
    for token in (3, VOCAB - 1, 5):  # the text may hold tokens that are never drafted
        latent = drafter.dynamics.step(latent, drafter.embedding_VD[token])
        torch.testing.assert_close(drafter.step(token), drafter.output_DN.T @ latent)
    assert drafter.output_DN.shape == (WIDTH, NUM_TOKENS)


@torch.no_grad()
def test_the_harder_what_comes_the_fewer_drafts(drafter):
    def drafts(nats: float) -> int:
        last = drafter.value.mlp[-1]
        last.weight.zero_()
        last.bias.fill_(-100)[round(nats * 63 / 10)] = 100  # the prediction is this number
        return drafter.begin(torch.ones(WIDTH), [1])

    assert [drafts(nats) for nats in (0.5, 5, 8)] == [UNROLL_STEPS, UNROLL_STEPS, 2]
