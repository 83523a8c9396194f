"""The decoder's states are those of the trunk's own forward pass, however the tokens are cut up."""

import pytest
import torch

from configs.schema import ModelConfig
from lm.inference.decoder import Decoder
from lm.model import Transformer
from tests.lm.random_model import LLAMA, random_model, random_norms

VOCAB = 40


@pytest.fixture(scope="module", params=[{"num_heads": 2}, LLAMA], ids=["Qwen3", "Llama"])
def model(request) -> Transformer:
    config = ModelConfig(hidden_size=32, num_layers=2, seq_length=16, mlp_size=64, **request.param)
    return random_norms(random_model(config, VOCAB))


def random_tokens(count: int, seed: int = 1) -> list[int]:
    return torch.randint(VOCAB, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def assert_equal_a_fresh_forward(model: Transformer, tokens: list[int], hidden_TD: torch.Tensor) -> None:
    fresh_TD = model(torch.tensor([tokens]))[0, -len(hidden_TD) :]
    torch.testing.assert_close(hidden_TD, fresh_TD, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_cached_states_and_logits_equal_a_fresh_forward(model):
    tokens = random_tokens(16)
    decoder = Decoder(model)
    pieces = [decoder(tokens[a:b]) for a, b in ((0, 5), (5, 6), (6, 7), (7, 11), (11, 16))]
    assert_equal_a_fresh_forward(model, tokens, torch.cat(pieces))
    assert decoder.length == 16
    for hidden_TD in pieces:
        torch.testing.assert_close(decoder.output(hidden_TD), model.output(hidden_TD), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_rollback_forgets_what_came_after(model):
    tokens, rejected = random_tokens(12), random_tokens(6, seed=2)
    decoder = Decoder(model)
    decoder(tokens[:7])
    decoder(rejected)
    decoder.rollback(7)
    assert_equal_a_fresh_forward(model, tokens, decoder(tokens[7:]))


@torch.no_grad()
def test_the_model_is_left_alone_and_other_devices_are_served(model, monkeypatch):
    """Without oneDNN the plain products are used, as on a GPU; the first product would notice weights laid out anew."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tokens = random_tokens(9)
    assert_equal_a_fresh_forward(model, tokens, Decoder(model)(tokens))
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert_equal_a_fresh_forward(model, tokens, Decoder(model)(tokens))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
