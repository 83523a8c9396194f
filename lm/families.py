"""The families of models in Hugging Face form that the trunk equals: `Qwen3ForCausalLM`, and without
QK-norm `LlamaForCausalLM`.

Their config.json and their names of tensors, in both directions: lm/start_point.py reads, and
lm/export/huggingface.py writes. Our fused matrices stack theirs, and only the embedding's norm is ever computed. Never
here: files, and torch, since the menu asks for shapes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import ValidationError

from configs.model import SHAPE, ModelConfig, RopeScaling
from configs.validation import causes, explain

if TYPE_CHECKING:
    from torch import Tensor

CLASSES = {"qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM"}  # by the model_type of a config.json
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
SIZES = {  # ours: theirs, which every config.json gives
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "vocab_size": "vocab_size",
    "mlp_size": "intermediate_size",
}
OTHERS = {"num_kv_heads": "num_key_value_heads", "tie_embeddings": "tie_word_embeddings", "norm_eps": "rms_norm_eps"}
# What else a config.json may hold that would make it another model, and the values that do not.
ALLOWED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "use_sliding_window": (False, None),
    "quantization_config": (None,),
}
ALLOWED_ROPE: dict[str, tuple[Any, ...]] = {
    "rope_type": ("default", "llama3", None),
    "type": ("default", "llama3", None),
    "partial_rotary_factor": (1, None),
}


class Stacked(NamedTuple):
    """Where a tensor of theirs is: these rows of our parameter."""

    parameter: str
    first_row: int
    shape: tuple[int, ...]


def family(config: ModelConfig) -> str:
    """Return the model_type of the family that has this trunk."""
    return "qwen3" if config.qk_norm else "llama"


# ---- tensors ------------------------------------------------------------------------------------


def tensors(config: ModelConfig) -> dict[str, Stacked]:
    """Return every tensor of a checkpoint by its name there; a tied output layer is omitted."""
    width, inner = config.hidden_size, config.mlp_size
    queries, keys, values = (heads * config.head_dim for heads in config.heads_qkv)
    head = [(config.head_dim,)] if config.qk_norm else []
    shapes: dict[str, list[tuple[int, ...]]] = {
        "attention_norm": [(width,)],
        "attention.qkv": [(queries, width), (keys, width), (values, width)],
        "attention.q_norm": list(head),
        "attention.k_norm": list(head),
        "attention.proj": [(width, queries)],
        "mlp_norm": [(width,)],
        "mlp.gate_up": [(inner, width), (inner, width)],
        "mlp.down": [(width, inner)],
    }
    found = dict(_stacked("embed", (OUTER_NAMES["embed"],), [(config.vocab_size, width)]))
    for index in range(config.num_layers):
        for ours, sizes in shapes.items():
            theirs = tuple(f"model.layers.{index}.{name}" for name in LAYER_NAMES[ours][: len(sizes)])
            found |= _stacked(f"layers.{index}.{ours}", theirs, sizes)
    found |= _stacked("norm", (OUTER_NAMES["norm"],), [(width,)])
    if not config.tie_embeddings:
        found |= _stacked("output", (OUTER_NAMES["output"],), [(config.vocab_size, width)])
    return found


def _stacked(module: str, names: tuple[str, ...], shapes: list[tuple[int, ...]]) -> Iterator[tuple[str, Stacked]]:
    first_row = 0
    for name, shape in zip(names, shapes, strict=True):
        yield f"{name}.weight", Stacked(f"{module}.weight", first_row, shape)
        first_row += shape[0]


def exported_state(model_state: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Return `Transformer.state_dict()` under the family's names, in fp32, with the norm behind the
    embedding, which no family has, applied to its rows."""
    vocab_size = len(model_state["embed.weight"])  # that of the tokenizer, if the preset names one
    from lm.model import unit_rms

    exported = {}
    for name, (parameter, first_row, shape) in tensors(config.model_copy(update={"vocab_size": vocab_size})).items():
        rows = model_state[parameter].detach()[first_row : first_row + shape[0]].float().cpu()
        has_norm = parameter == "embed.weight" and config.embedding_norm
        exported[name] = unit_rms(rows, config.norm_eps) if has_norm else rows.clone()
    return exported


# ---- config.json --------------------------------------------------------------------------------


def exported_config(config: ModelConfig, vocab_size: int, end_of_text: int, end: int) -> dict[str, Any]:
    """Return config.json, with the rotary embeddings where transformers 5 and where older readers look.
    `end` is the token that ends what the model writes."""
    model_type = family(config)
    scaling = config.rope_scaling.model_dump() if config.rope_scaling else {}
    return {
        "architectures": [CLASSES[model_type]],
        "model_type": model_type,
        "vocab_size": vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.mlp_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.seq_length,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta, **scaling},
        **({"rope_scaling": scaling} if scaling else {}),
        "tie_word_embeddings": config.tie_embeddings,
        "attention_bias": False,
        "attention_dropout": 0.0,
        **({"use_sliding_window": False} if model_type == "qwen3" else {"mlp_bias": False}),
        "bos_token_id": end_of_text,
        "eos_token_id": end,
        "pad_token_id": end_of_text,  # without one, classifiers made of the model refuse batches
        "dtype": "float32",
        "torch_dtype": "float32",  # the name readers before transformers 5 look for
    }


def shape_in(config: Mapping[str, Any], model: ModelConfig) -> ModelConfig:
    """Return `model` with the shape that a config.json gives, whatever its own is; keys that the
    file omits have the default of their family, as in transformers.

    Raises ValueError, whose message follows "config.json", for another architecture, for sizes
    beyond a preset's range, and for rows longer than the model can read.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in CLASSES:
        raise ValueError(f"has the model_type {_show(model_type)}; this program starts from {' and '.join(CLASSES)}")
    rope: dict[str, Any] = {}
    for key in ("rope_parameters", "rope_scaling"):  # the latter, of transformers 4, counts where both are
        if not isinstance(part := config.get(key) or {}, dict):
            raise ValueError(f"has {key} {_show(part)}, which is no object")
        rope |= part
    layers = config.get("layer_types") or ["full_attention"]
    for key, value, allowed in (
        *((key, config.get(key, values[0]), values) for key, values in ALLOWED.items()),
        *((f"rope_parameters.{key}", rope.get(key), values) for key, values in ALLOWED_ROPE.items()),
        ("layer_types", layers, (["full_attention"] * len(layers),) if isinstance(layers, list) else ()),
    ):
        if value not in allowed:
            raise ValueError(f"has {key} {_show(value)}, which this program does not compute")
    given = {ours: config.get(theirs) for ours, theirs in SIZES.items()}
    heads = given["num_heads"]
    is_qwen3 = model_type == "qwen3"
    given |= {
        "head_dim": config.get("head_dim") or (128 if is_qwen3 else None),
        "num_kv_heads": config.get("num_key_value_heads", 32 if is_qwen3 else None) or heads,
        "tie_embeddings": config.get("tie_word_embeddings", False),
        "rope_theta": rope.get("rope_theta", config.get("rope_theta", 10_000.0)),
        "rope_scaling": _scaling(rope),
        "norm_eps": config.get("rms_norm_eps", 1e-6),
        "qk_norm": is_qwen3,
    }
    try:
        shape = ModelConfig.model_validate({"seq_length": 8, **given})
    except ValidationError as error:
        problem = next(explain(causes(error), ModelConfig, {}))
        theirs = (SIZES | OTHERS).get(problem.where, problem.where)
        raise ValueError(f"has {theirs} {problem.what.removeprefix('= ')}; {problem.hint}") from None
    longest = config.get("max_position_embeddings", 32_768 if is_qwen3 else 2048)
    if not isinstance(longest, int) or model.seq_length > longest:
        raise ValueError(f"has max_position_embeddings {_show(longest)}, and model.seq_length is {model.seq_length}")
    if shape.head_size is None:
        shape = shape.model_copy(update={"head_size": shape.head_dim})
    return model.model_copy(update={name: getattr(shape, name) for name in SHAPE})


def _scaling(rope: Mapping[str, Any]) -> dict[str, Any] | None:
    if "llama3" not in (rope.get("rope_type"), rope.get("type")):
        return None
    return {name: rope.get(name) for name in RopeScaling.model_fields} | {"rope_type": "llama3"}


def _show(value: Any) -> str:
    shown = json.dumps(value)
    return shown if len(shown) <= 80 else shown[:77] + "..."
