"""The trunk looks only back, starts as a uniform guess, and has one attention whatever path computes it."""

import math

import pytest
import torch
import torch.nn.functional as F

from aux_heads.joint import JointModel, build_heads
from configs.schema import AuxiliaryConfig, ModelConfig
from lm.families import exported_state
from lm.loss import linear_cross_entropy
from lm.model import Transformer, blocked_attention, causal_attention

pytestmark = pytest.mark.core

VOCAB = 500


def make_model(**changes) -> Transformer:
    config = {"hidden_size": 64, "num_layers": 2, "num_heads": 4, "seq_length": 32, "mlp_size": 64, **changes}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Transformer(ModelConfig(**config), VOCAB)


def make_trained_model(**changes) -> Transformer:
    """Random weights everywhere: as initialised, the blocks are the identity and would hide any mistake in them."""
    model = make_model(**changes)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    return model


def random_tokens(rows: int, length: int) -> torch.Tensor:
    return torch.randint(VOCAB, (rows, length), generator=torch.Generator().manual_seed(2))


def random_qkv(*shape: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(shape, generator=generator, requires_grad=True) for _ in range(3)]


@pytest.mark.parametrize("shape", [(1, 1, 4, 2), (2, 3, 16, 8), (3, 2, 40, 6), (1, 4, 64, 16)])
def test_blocked_attention_has_the_values_and_gradients_of_the_fused_kernel(shape):
    q, k, v = random_qkv(*shape)
    generator = torch.Generator().manual_seed(4)
    upstream = torch.randn(shape, generator=generator)
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    expected_grads = torch.autograd.grad(expected, (q, k, v), upstream)
    actual = blocked_attention(q, k, v)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
    for grad, expected_grad in zip(torch.autograd.grad(actual, (q, k, v), upstream), expected_grads, strict=True):
        torch.testing.assert_close(grad, expected_grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("compiling", [False, True], ids=["fused", "blocked"])
def test_queries_of_a_group_share_their_keys_and_values(compiling, monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    q, k, v = random_qkv(2, 6, 16, 8)
    repeated = [x[:, :2].repeat_interleave(3, dim=1) for x in (k, v)]
    expected = F.scaled_dot_product_attention(q, *repeated, is_causal=True)
    torch.testing.assert_close(causal_attention(q, k[:, :2], v[:, :2]), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 7, 8, 11, 13])
def test_compiled_attention_takes_every_length(length, monkeypatch):
    """Blocks are for lengths they divide; the others, 11 for example, fall back."""
    q, k, v = random_qkv(2, 2, length, 4)
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.testing.assert_close(causal_attention(q, k, v), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("compiling", [False, True], ids=["fused", "blocked"])
@pytest.mark.parametrize("changed", [1, 15, 16, 31])
def test_a_token_changes_its_own_hidden_state_and_later_ones_only(changed, compiling, monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    model, tokens = make_trained_model(), random_tokens(2, 32)
    edited = tokens.clone()
    edited[:, changed] = (edited[:, changed] + 1) % VOCAB
    with torch.no_grad():
        difference_BT = (model(tokens) - model(edited)).abs().amax(-1)
    assert difference_BT[:, :changed].max() < 1e-5
    assert difference_BT[:, changed:].min() > 1e-4


def test_order_of_earlier_tokens_matters():
    """To one layer without rotary positions, earlier tokens would be a set."""
    model, tokens = make_trained_model(num_layers=1), random_tokens(1, 8)
    swapped = tokens[:, [1, 0, 2, 3, 4, 5, 6, 7]]
    with torch.no_grad():
        assert (model(tokens) - model(swapped)).abs()[:, -1].max() > 1e-4


@pytest.mark.parametrize("tied", [False, True])
def test_first_loss_is_that_of_a_uniform_guess(tied):
    model, tokens = make_model(tie_embeddings=tied), random_tokens(8, 33)
    with torch.no_grad():
        logits = model(tokens[:, :-1]) @ model.output.weight.T
    loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    assert loss.item() == pytest.approx(math.log(VOCAB), rel=0.01)


def test_blocks_begin_as_the_identity():
    model, tokens = make_model(), random_tokens(2, 32)
    with torch.no_grad():
        assert torch.equal(model(tokens), model.norm(model.embedding_VD()[tokens]))


def test_the_size_of_a_tokens_embedding_means_nothing_in_the_model_its_heads_and_its_export():
    aux = AuxiliaryConfig(enable_dynamics=True, enable_span_contrastive=True)
    tokens = random_tokens(4, 65)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = JointModel(make_trained_model(seq_length=64), build_heads(aux, 64, 64), aux, linear_cross_entropy)
    trunk, sampled = model.trunk, model.sample_positions(4, 64, torch.Generator().manual_seed(4))
    found = []
    for size in (1, torch.logspace(0, 1, VOCAB)[:, None]):
        with torch.no_grad():
            trunk.embed.weight.mul_(size)
            losses = model(tokens, tokens[:, 1:], sampled).head_losses
        found.append(
            [trunk(tokens[:, :-1]), *losses.values(), *exported_state(trunk.state_dict(), trunk.config).values()]
        )
    assert len(losses) == 2
    for first, second in zip(*found, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-4)
    assert trunk.embedding_VD().square().mean(-1).sqrt().tolist() == pytest.approx([1] * VOCAB, abs=1e-3)


def test_tied_model_has_one_matrix_for_both_ends():
    model = make_model(tie_embeddings=True)
    assert model.output.weight is model.embed.weight
    count = sum(parameter.numel() for parameter in model.parameters())
    assert sum(parameter.numel() for parameter in make_model().parameters()) - count == VOCAB * 64
