"""Tiny models as `transformers` writes them: Qwen3 and Llama, tied and not, in one file and in several."""

import shutil
from collections.abc import Iterable
from pathlib import Path

import torch

from data import tokenizer as bpe

VOCAB, LONGEST = 320, 96
# Grouped queries, and heads that are not as wide as hidden_size / num_heads.
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 40,
    "intermediate_size": 72,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 14,
    "max_position_embeddings": LONGEST,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
LLAMA_3_1 = {  # in so short a model: of its seven wavelengths some are stretched, some partly, some not
    "rope_type": "llama3",
    "rope_theta": 5_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 48,
}
TEXTS = ("def return the response don't 12345 self.assertEqual import from class ", "for name in names: ")


def transformers_model(family: str, *, tied: bool = False, theta: float = 5_000.0, **changes):
    """One with random weights everywhere, norms included."""
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

    config_of, model_of = {
        "qwen3": (Qwen3Config, Qwen3ForCausalLM),
        "llama": (LlamaConfig, LlamaForCausalLM),
    }[family]
    rope = {"rope_type": "default", "rope_theta": theta}
    config = config_of(**SIZES, **{"tie_word_embeddings": tied, "rope_parameters": rope, **changes})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = model_of(config)
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                torch.nn.init.uniform_(parameter, 0.5, 1.5)
            else:
                torch.nn.init.normal_(parameter, std=0.3 if "embed" in name else 0.1)
    return model.eval()


def save(model, folder: Path, *, shard: str = "5GB", texts: Iterable[str] = TEXTS) -> Path:
    """Write it as `save_pretrained` does, with a tokenizer."""
    model.save_pretrained(folder, max_shard_size=shard)
    bpe.train([text for text in texts for _ in range(20)], VOCAB - 10).save(str(folder / "tokenizer.json"))
    return folder


def copy(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    return to
