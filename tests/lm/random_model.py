"""Trunks with random weights: as initialised, blocks are the identity and norms all alike, which would hide mix-ups."""

import torch
from torch import nn

from configs.schema import ModelConfig
from lm.model import Transformer

LLAMA = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 6, "qk_norm": False, "rope_theta": 500.0, "norm_eps": 1e-3}


def random_model(config: ModelConfig, vocab_size: int, std: float = 0.3) -> Transformer:
    """The same every time, norms as they are at the beginning."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Transformer(config, vocab_size)
        randomize(model, std)
    return model


def randomize(module: nn.Module, std: float) -> None:
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=std)


def random_norms(model: Transformer) -> Transformer:
    """The same model, with random norms too."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for parameter in model.parameters():
            if parameter.dim() == 1:
                nn.init.uniform_(parameter, 0.5, 1.5)
    return model
