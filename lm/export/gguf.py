"""The exported model as GGUF files, for llama.cpp and programs built on it.

One file holds the weights in fp32, so nothing is lost and `llama-quantize` can make others of it;
two more hold the matrices in half and in about a quarter of the space. The tokenizer is written
with the name of its pre-tokenizer, the rule that splits text into words, since converters guess
that name from vocabularies they know. The package `gguf` (the extra of that name) is imported only
when a file is written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from configs.model import RopeScaling
from lm.model import rotary_frequencies

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType

BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
GPT_2_WORDS = BYTES | {"use_regex": True}


def _words_with(digits: str) -> dict[str, Any]:
    """Return the rule of the family of GPT-4, which differ in how many digits may be a word."""
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
        + digits
        + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


PRE_TOKENIZERS = {  # llama.cpp's names of rules that split text into words, as a tokenizer.json has them
    "gpt-2": [GPT_2_WORDS],
    "smollm": [{"type": "Digits", "individual_digits": True}, GPT_2_WORDS],
    "qwen2": [_words_with(r"\p{N}"), BYTES],
    "llama-bpe": [_words_with(r"\p{N}{1,3}"), BYTES],
}
# Of these rules llama.cpp looks for the whole word among the tokens before it merges any.
IGNORES_MERGES = ("llama-bpe",)
# Qwen's tokenizers compose characters, as nearly all text has them. llama.cpp never does.
NORMALIZERS: dict[str, tuple[Any, ...]] = {"qwen2": (None, {"type": "NFC"})}
ENCODINGS = {"F32": "model.gguf", "F16": "model-F16.gguf", "Q8_0": "model-Q8_0.gguf"}  # of matrices: file
PLAIN_BPE = {
    "type": "BPE",
    "dropout": None,
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "byte_fallback": False,
}


def gguf_obstacle(tokenizer_path: Path) -> str:
    """Return why no GGUF file can be written with this tokenizer, and the fix; "" if one can."""
    if not pre_tokenizer_name(json.loads(tokenizer_path.read_text(encoding="utf-8"))):
        return (
            "No GGUF file for llama.cpp: it would split text differently from this tokenizer, which is not byte-level BPE with "
            "the word rule of GPT-2, Qwen, Llama 3 or SmolLM. convert_hf_to_gguf.py of llama.cpp knows some others."
        )
    if not find_spec("gguf"):
        return 'For a GGUF file as well (llama.cpp): python -m pip install -e ".[gguf]", then export again.'
    return ""


def pre_tokenizer_name(tokenizer: Mapping[str, Any]) -> str:
    """Return llama.cpp's name for how a tokenizer.json makes tokens of text; "" if it has none."""
    model = PLAIN_BPE | {key: value for key, value in tokenizer["model"].items() if value != ""}
    if not PLAIN_BPE.items() <= model.items():
        return ""
    steps = tokenizer.get("pre_tokenizer") or {}
    steps = steps.get("pretokenizers", [steps])
    for name, rules in PRE_TOKENIZERS.items():
        if (
            len(steps) == len(rules)
            # Older files say nothing of the regex of ByteLevel.
            and all(
                rule.items() <= ({"use_regex": True} | step).items() for rule, step in zip(rules, steps, strict=True)
            )
            and model.get("ignore_merges", False) == (name in IGNORES_MERGES)
            and tokenizer.get("normalizer") in NORMALIZERS.get(name, (None,))
        ):
            return name
    return ""


def write_gguf(
    folder: Path,
    encoding: str,
    config: Mapping[str, Any],
    state: Mapping[str, Tensor],
    tokenizer_path: Path,
    *,
    name: str,
    chat_template: str = "",
) -> None:
    """Write `config` and `state`, as in the export's config.json and model.safetensors, to the file
    of that encoding in `folder`, with the source of a chat template if there is one.

    There must be no `gguf_obstacle`.
    """
    from gguf import GGML_QUANT_VERSION, MODEL_ARCH, GGUFWriter, LlamaFileType, get_tensor_name_map, quantize

    writer = GGUFWriter(folder / ENCODINGS[encoding], config["model_type"])  # GGUF's own name for both families
    writer.add_name(name)
    writer.add_file_type(LlamaFileType[f"{'ALL' if encoding == 'F32' else 'MOSTLY'}_{encoding}"])
    writer.add_quantization_version(GGML_QUANT_VERSION)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])

    tokenizer = json.loads(tokenizer_path.read_text(encoding="utf-8"))
    tokens, types, merges = gguf_tokens(tokenizer, config["vocab_size"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer_name(tokenizer))
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_add_bos_token(True)  # every training document began with that token
    writer.add_add_eos_token(False)
    if chat_template:
        writer.add_chat_template(chat_template)

    if scaling := config.get("rope_scaling"):
        plain, scaled = (
            rotary_frequencies(config["head_dim"], config["rope_theta"], how)
            for how in (None, RopeScaling.model_validate(scaling))
        )
        writer.add_tensor("rope_freqs.weight", (plain / scaled).numpy())  # by which llama.cpp divides
    names = get_tensor_name_map(MODEL_ARCH[config["model_type"].upper()], config["num_hidden_layers"])
    for theirs, tensor in state.items():
        name_there = names.get_name(theirs, try_suffixes=(".weight",))
        assert name_there, f"llama.cpp's {config['model_type']} has no {theirs}"
        if config["model_type"] == "llama" and theirs.endswith(("q_proj.weight", "k_proj.weight")):
            tensor = interleaved(tensor, config["head_dim"])
        kind = tensor_type(tensor, encoding)
        writer.add_tensor(name_there, quantize(tensor.numpy(), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def interleaved(weight: Tensor, head_dim: int) -> Tensor:
    """Return a matrix of queries or keys with the rows of each head in the order of llama.cpp's
    Llama, which rotates neighbouring channels as a pair; all others rotate the two halves."""
    halves = weight.view(-1, 2, head_dim // 2, weight.shape[1])
    return halves.transpose(1, 2).reshape(weight.shape)


def tensor_type(tensor: Tensor, encoding: str) -> GGMLQuantizationType:
    """Return how a tensor is stored, as llama.cpp's converter does: vectors (norms) in fp32, and
    rows that do not divide into the blocks of Q8_0 in F16."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    if tensor.dim() == 1:
        return GGMLQuantizationType.F32
    kind = GGMLQuantizationType[encoding]
    block_size, _ = GGML_QUANT_SIZES[kind]
    return kind if tensor.shape[-1] % block_size == 0 else GGMLQuantizationType.F16


def gguf_tokens(tokenizer: Mapping[str, Any], vocab_size: int) -> tuple[list[str], list[int], list[str]]:
    """Return (token of each id, its type, merges as "left right") of a tokenizer.json.

    A special token is "control": text never becomes one. An id of the model that the tokenizer
    does not use needs a name too.
    """
    from gguf import TokenType

    tokens = [f"[unused {number}]" for number in range(vocab_size)]
    types: list[int] = [TokenType.UNUSED] * vocab_size
    for token, number in tokenizer["model"]["vocab"].items():
        tokens[number], types[number] = token, TokenType.NORMAL
    for added in tokenizer["added_tokens"]:
        tokens[added["id"]] = added["content"]
        types[added["id"]] = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in tokenizer["model"]["merges"]]
    return tokens, types, merges
