"""The export of a run: a folder that transformers and other readers of `Qwen3ForCausalLM` open
without custom code.

The trunk already has that architecture: exporting renames tensors and splits our fused matrices,
bit for bit. The folder is written beside an older one and replaces it as a whole. Never here:
loading checkpoints, uploading, changing weights.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from tokenizers import Tokenizer, processors
from torch import Tensor

from configs.catalog import catalogued
from configs.schema import ModelConfig, Preset, Source, parse_preset
from data import tokenizer as bpe
from data.files import sync_folder
from lm.inference.sampling import TEMPERATURE, TOP_P
from lm.model import NORM_EPS, ROPE_THETA
from lm.report.gguf import ENCODINGS, write_gguf
from lm.report.metrics import read_metrics
from lm.report.model_card import RunFacts, SourceFacts, write_model_card
from lm.report.samples import read_samples

LAYER_NAMES = {  # ours: theirs; where there are several, ours stacks theirs in this order
    "attention_norm": ("input_layernorm",),
    "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention.q_norm": ("self_attn.q_norm",),
    "attention.k_norm": ("self_attn.k_norm",),
    "attention.proj": ("self_attn.o_proj",),
    "mlp_norm": ("post_attention_layernorm",),
    "mlp.gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.down": ("mlp.down_proj",),
}
OUTER_NAMES = {"embed": "model.embed_tokens", "norm": "model.norm", "output": "lm_head"}


def qwen3_state(model_state: Mapping[str, Tensor], *, tied: bool) -> dict[str, Tensor]:
    """Return `Transformer.state_dict()` under the names of `Qwen3ForCausalLM`, in fp32; a tied
    output layer is omitted, as it is there."""
    exported = {}
    for name, tensor in model_state.items():
        if tied and name == "output.weight":
            continue
        module = name.removesuffix(".weight")
        if module in OUTER_NAMES:
            targets: tuple[str, ...] = (OUTER_NAMES[module],)
        else:
            _, index, inner = module.split(".", 2)
            targets = tuple(f"model.layers.{index}.{target}" for target in LAYER_NAMES[inner])
        for target, part in zip(targets, tensor.detach().float().cpu().chunk(len(targets)), strict=True):
            exported[f"{target}.weight"] = part.clone()
    return exported


def qwen3_config(config: ModelConfig, vocab_size: int, end_of_text: int) -> dict[str, Any]:
    """Return config.json, with `rope_theta` where transformers 5 and where older readers look."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.mlp_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.seq_length,
        "rms_norm_eps": NORM_EPS,
        "rope_theta": ROPE_THETA,
        "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_THETA},
        "tie_word_embeddings": config.tie_embeddings,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "use_sliding_window": False,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "pad_token_id": end_of_text,  # without one, classifiers made of the model refuse batches
        "dtype": "float32",
        "torch_dtype": "float32",  # the name readers before transformers 5 look for
    }


def export_huggingface(
    model_state: Mapping[str, Tensor],
    preset: Preset,
    tokenizer_path: Path,
    out_dir: Path,
    *,
    end_of_text: str,
    run: RunFacts,
    aux_heads: Mapping[str, Tensor] | None = None,
    gguf: bool = False,
) -> Path:
    """Write `out_dir` (config, weights, tokenizer, generation settings, model card) and return it.

    `model_state` is the `state_dict` of the unwrapped `Transformer`; `end_of_text` is the token
    that began every document of the stream; the model card is made from `run`; `aux_heads` are
    written beside the weights, in a file that other readers ignore; with `gguf`, GGUF files and
    Ollama's Modelfile are too. An earlier export is replaced once the new one is complete.
    """
    tokenizer = Tokenizer.from_file(str(tokenizer_path))
    tokenizer_id = tokenizer.token_to_id(end_of_text)
    assert tokenizer_id is not None, f"{tokenizer_path} has no token {end_of_text!r}"
    tokenizer.post_processor = begins_document(end_of_text, tokenizer_id)
    config = qwen3_config(preset.model, model_state["embed.weight"].shape[0], tokenizer_id)
    files = {
        "config.json": json.dumps(config, indent=2),
        "generation_config.json": json.dumps(generation_config(tokenizer_id), indent=2),
        "tokenizer_config.json": json.dumps(tokenizer_config(end_of_text, preset.model.seq_length), indent=2),
    }
    temporary, old = out_dir.with_name(out_dir.name + ".tmp"), out_dir.with_name(out_dir.name + ".old")
    for leftover in (temporary, old):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary.mkdir(parents=True)
    for name, text in files.items():
        (temporary / name).write_text(text + "\n", encoding="utf-8")
    tokenizer.save(str(temporary / "tokenizer.json"))
    state = qwen3_state(model_state, tied=preset.model.tie_embeddings)
    save_file(state, temporary / "model.safetensors", metadata={"format": "pt"})
    if aux_heads:
        heads = {name: tensor.detach().cpu().clone() for name, tensor in aux_heads.items()}
        save_file(heads, temporary / "aux_heads.safetensors", metadata={"format": "pt"})
    if gguf:
        for encoding in ENCODINGS:
            write_gguf(temporary, encoding, config, state, tokenizer_path, name=preset.name)
        (temporary / "Modelfile").write_text(modelfile(end_of_text, preset.model.seq_length), encoding="utf-8")
    write_model_card(temporary, preset, end_of_text, run, gguf=gguf)
    for file in temporary.iterdir():
        # safetensors lets only the owner read its files.
        file.chmod((temporary / "config.json").stat().st_mode)
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
    if out_dir.exists():
        out_dir.rename(old)
    temporary.rename(out_dir)
    sync_folder(out_dir.parent)
    shutil.rmtree(old, ignore_errors=True)
    return out_dir


def begins_document(end_of_text: str, end_of_text_id: int) -> processors.TemplateProcessing:
    """Return the rule by which other programs put the token before a text, and between two: every
    document of the stream began with it."""
    return processors.TemplateProcessing(
        single=f"{end_of_text} $A",
        pair=f"{end_of_text} $A {end_of_text}:1 $B:1",
        special_tokens=[(end_of_text, end_of_text_id)],
    )


def generation_config(end_of_text_id: int) -> dict[str, Any]:
    """Return the sampling settings that `lm.inference.generate.generate` uses by default."""
    return {
        "bos_token_id": end_of_text_id,
        "eos_token_id": end_of_text_id,
        "pad_token_id": end_of_text_id,
        "do_sample": True,
        "temperature": TEMPERATURE,
        "top_p": TOP_P,
        "top_k": 0,
    }


def modelfile(end_of_text: str, seq_length: int) -> str:
    """Return Ollama's description of the model: the text as it comes, without a chat's form, and
    the sampling of `generation_config`."""
    return f"""FROM ./{ENCODINGS["F16"]}
TEMPLATE "{{{{ .Prompt }}}}"
PARAMETER num_ctx {seq_length}
PARAMETER num_predict {seq_length}
PARAMETER temperature {TEMPERATURE}
PARAMETER top_p {TOP_P}
PARAMETER top_k 0
PARAMETER repeat_penalty 1.0
PARAMETER stop "{end_of_text}"
"""


def tokenizer_config(end_of_text: str, seq_length: int) -> dict[str, Any]:
    """Return tokenizer_config.json: no cleaning up of spaces, only inputs that the model takes."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": end_of_text,
        "eos_token": end_of_text,
        "pad_token": end_of_text,
        "model_max_length": seq_length,
        "model_input_names": ["input_ids", "attention_mask"],  # transformers 4 would add token_type_ids
        "clean_up_tokenization_spaces": False,
    }


def export(state: dict[str, Any], folder: Path, out_dir: Path | None = None, *, gguf: bool = False) -> Path:
    """Export a checkpoint's `state`, of the run in `folder`, to `out_dir` (default: `folder/hf`), for
    all programs that read Qwen3."""
    preset = parse_preset(state["preset"], "the checkpoint")
    path = folder / "tokenizer.json"
    tokenizer = bpe.load(path)
    return export_huggingface(
        state["model"],
        preset,
        path,
        out_dir or folder / "hf",
        end_of_text=bpe.end_name(tokenizer),
        run=run_facts(state, preset, folder),
        aux_heads=state["heads"] or None,
        gguf=gguf,
    )


def run_facts(state: dict[str, Any], preset: Preset, folder: Path) -> RunFacts:
    """Return the facts for the model card. Records after the checkpoint do not count."""
    seen, facts = state["tokens_seen"], state["facts"]
    if seen < state["token_budget"] and not state["exhausted"]:
        facts = facts | {"unfinished": f"taken from the run at {seen:,} of {state['token_budget']:,} tokens"}
    records = [record for record in read_metrics(folder / "metrics.jsonl") if record["tokens"] <= seen]
    samples = [section for section in read_samples(folder / "samples.md") if section.tokens <= seen]
    return RunFacts(facts, [source_facts(source) for source in preset.data.all_sources], records, samples)


def source_facts(source: Source) -> SourceFacts:
    """Return what the catalogue knows about a preset's source, or where to find out."""
    dataset = source.dataset if source.type == "hf" and not source.is_local else ""  # on the Hub
    if known := catalogued(source):
        return SourceFacts(source.label, known.about, known.licence, dataset, known.language)
    if dataset:
        return SourceFacts(
            source.label, f"https://huggingface.co/datasets/{dataset}", "see the dataset's page", dataset
        )
    return SourceFacts(source.label, "local files", "not stated")
