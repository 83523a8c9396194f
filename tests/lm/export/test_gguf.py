"""The GGUF file is the same model: its tensors and tokens as the package `gguf` reads them, its text in llama.cpp."""

import json
import re
from itertools import islice, takewhile

import numpy as np
import pytest
import torch
from tokenizers import Regex, normalizers, pre_tokenizers

from data import tokenizer as bpe
from lm.export.gguf import gguf_obstacle, write_gguf
from lm.export.huggingface import export_huggingface
from lm.families import exported_config, exported_state
from lm.inference.decoder import Decoder
from lm.inference.generate import generate
from tests.lm.export.test_huggingface import END_OF_TEXT, LLAMA, LLAMA_3_1, PROMPT, RUN, export, make_preset, model_of

TEXTS = (
    PROMPT,
    "",
    " ",
    "\n",
    "a  b   c \t\t d\n\n\n  e\r\n \u00a0\u3000 f ",
    "don't we'll I'VE 'tis they're",
    "1234567 3.14 ²③ ٣٤ x1y2",
    "def f(x, *args):\n    return {'a': x[0] ** 2}  # héé\n\n\nclass A:\n\tpass",
    "漢字かな 한국어 Ελληνικά עברית العربية हिन्दी 👩‍👩‍👧 e\u0301 \u200b\ufeff",
    '<|endoftext|><|im_start|> --- ... !?"#$%&',
)


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def exported(request, tmp_path_factory):
    """(model, tokenizer, GGUF file) of a run; the tokenizer has fewer tokens than the model has room for."""
    folder = tmp_path_factory.mktemp("exported")
    tokenizer = bpe.train([text for text in TEXTS for _ in range(3)], 380)
    tokenizer.save(str(folder / "tokenizer.json"))
    preset = make_preset(tied=request.param)
    model = model_of(preset, 400)
    assert gguf_obstacle(folder / "tokenizer.json") == ""
    hf = export(
        model,
        preset,
        folder / "tokenizer.json",
        folder / "hf",
        gguf=True,
    )
    assert "model.gguf" in (hf / "README.md").read_text()
    return model.eval(), bpe.load(folder / "tokenizer.json"), hf / "model.gguf"


def test_a_reader_finds_every_weight_and_what_the_model_is(exported):
    from gguf import GGUFReader

    model, tokenizer, path = exported
    reader = GGUFReader(path)
    facts = {name: field.contents() for name, field in reader.fields.items()}
    assert facts["general.architecture"] == "qwen3"
    for key, value in {
        "context_length": 64,
        "embedding_length": 48,
        "block_count": 3,
        "feed_forward_length": 80,
        "attention.head_count": 4,
        "attention.head_count_kv": 4,
        "attention.key_length": 12,
        "attention.value_length": 12,
        "rope.freq_base": 10_000.0,
        "attention.layer_norm_rms_epsilon": pytest.approx(1e-6),
    }.items():
        assert facts[f"qwen3.{key}"] == value, key
    tensors = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    assert sum(tensor.size for tensor in tensors.values()) == sum(p.numel() for p in model.parameters())
    attention = model.layers[2].attention
    q, k, _ = attention.qkv.weight.detach().chunk(3)
    for name, weight in {
        "token_embd": model.embedding_VD(),
        "blk.2.attn_q": q,
        "blk.2.attn_k": k,
        "blk.2.attn_q_norm": attention.q_norm.weight,
        "blk.2.attn_k_norm": attention.k_norm.weight,
    }.items():
        assert np.array_equal(tensors[f"{name}.weight"], weight.detach().numpy()), name
    assert ("output.weight" in tensors) != model.config.tie_embeddings

    tokens, types = facts["tokenizer.ggml.tokens"], facts["tokenizer.ggml.token_type"]
    assert (facts["tokenizer.ggml.model"], facts["tokenizer.ggml.pre"]) == ("gpt2", "gpt-2")
    assert tokens[: tokenizer.get_vocab_size()] == [
        tokenizer.id_to_token(number) for number in range(tokenizer.get_vocab_size())
    ]
    assert len(set(tokens)) == len(types) == 400
    assert [types[0], types[1], types[399]] == [3, 1, 5]  # control, normal, unused
    assert (facts["tokenizer.ggml.bos_token_id"], facts["tokenizer.ggml.eos_token_id"]) == (0, 0)
    assert facts["tokenizer.ggml.add_bos_token"] is True


@pytest.mark.parametrize(
    ("encoding", "bytes_each", "largest_error"), [("F16", 2, 2**-11), ("Q8_0", 34 / 32, 1 / 127 / 2 + 2**-11)]
)
def test_smaller_files_hold_the_same_model_within_their_precision(tmp_path, encoding, bytes_each, largest_error):
    """Errors are shares of the largest weight in a block of 32, or of the weight itself."""
    from gguf import GGUFReader, dequantize

    bpe.train(["some text"], 300).save(str(tmp_path / "tokenizer.json"))
    preset = make_preset(hidden_size=64)  # 80 wide inside the MLP: no multiple of 32
    model = model_of(preset, 300)
    state = exported_state(model.state_dict(), preset.model)
    config = exported_config(preset.model, 300, 0, 0)
    write_gguf(tmp_path, encoding, config, state, tmp_path / "tokenizer.json", name="tiny")
    reader = GGUFReader(tmp_path / f"model-{encoding}.gguf")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert tensors["blk.0.attn_norm.weight"].tensor_type.name == "F32"
    assert tensors["blk.0.ffn_down.weight"].tensor_type.name == "F16"
    assert tensors["token_embd.weight"].n_bytes == 300 * 64 * bytes_each
    for name, weight in {
        "token_embd": model.embedding_VD(),
        "output": model.output.weight,
        "blk.2.attn_q": model.layers[2].attention.qkv.weight.chunk(3)[0],
    }.items():
        tensor = tensors[f"{name}.weight"]
        assert tensor.tensor_type.name == encoding
        blocks = weight.detach().numpy().reshape(-1, 32)
        errors = np.abs(dequantize(tensor.data, tensor.tensor_type).reshape(-1, 32) - blocks)
        assert (errors <= np.abs(blocks).max(axis=1, keepdims=True) * largest_error).all(), name
    assert reader.fields["general.file_type"].contents() == {"F16": 1, "Q8_0": 7}[encoding]


def test_a_llama_has_its_channels_in_the_order_of_llama_cpp(tmp_path):
    """As transformers undoes it when it reads such a file."""
    from transformers import AutoModelForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    bpe.train(TEXTS, 300).save(str(tmp_path / "tokenizer.json"))
    preset = make_preset(**LLAMA)
    state = model_of(preset, 300).state_dict()
    folder = export_huggingface(state, preset, tmp_path / "tokenizer.json", tmp_path / "hf", run=RUN, gguf=True)
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    read = load_gguf_checkpoint(folder / "model.gguf", return_tensors=True, model_to_load=theirs)
    known = {"model_type": "llama", "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 10}
    assert known.items() <= read["config"].items()
    assert read["tensors"].keys() == theirs.state_dict().keys()
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(read["tensors"][name], tensor), name


def test_a_llama_3_1_has_what_llama_cpp_divides_its_frequencies_by(tmp_path):
    from gguf import GGUFReader
    from transformers import AutoModelForCausalLM

    bpe.train(TEXTS, 300).save(str(tmp_path / "tokenizer.json"))
    preset = make_preset(**LLAMA, rope_scaling=LLAMA_3_1)
    folder = export(model_of(preset, 300), preset, tmp_path / "tokenizer.json", tmp_path / "hf", gguf=True)
    theirs = AutoModelForCausalLM.from_pretrained(folder).model.rotary_emb.inv_freq.numpy()
    stored = {tensor.name: tensor.data for tensor in GGUFReader(folder / "model.gguf").tensors}["rope_freqs.weight"]
    plain = 500_000.0 ** -(np.arange(0, 10, 2) / 10)
    np.testing.assert_allclose(plain / stored, theirs, rtol=1e-5)
    assert (stored[0], stored[-1]) == (1, 8)


def test_ollama_gets_the_text_as_it_comes_and_the_exports_sampling(exported):
    folder = exported[2].parent
    lines = dict(line.split(" ", 1) for line in (folder / "Modelfile").read_text().splitlines())
    assert (folder / lines["FROM"]).read_bytes().startswith(b"GGUF")
    assert lines["TEMPLATE"] == '"{{ .Prompt }}"'
    parameters = [line.split()[1:] for line in (folder / "Modelfile").read_text().splitlines() if "PARAMETER" in line]
    settings = json.loads((folder / "generation_config.json").read_text())
    for name in ("temperature", "top_p", "top_k"):
        assert float(dict(parameters)[name]) == settings[name]
    assert dict(parameters)["stop"] == f'"{END_OF_TEXT}"'
    assert dict(parameters)["num_ctx"] == "64"


def test_llama_cpp_gives_the_same_tokens_logits_and_text(exported):
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    model, tokenizer, path = exported
    fp32 = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}  # its cache would halve them
    llama = llama_cpp.Llama(str(path), n_ctx=64, n_threads=1, logits_all=True, verbose=False, **fp32)
    for text in TEXTS:
        assert llama.tokenize(text.encode(), add_bos=False) == tokenizer.encode(text).ids, text
        assert llama.tokenize(text.encode())[0] == 0
        assert llama.detokenize(tokenizer.encode(text).ids).decode() == text
    for text in ("", "def f(x", "漢字", " 123"):
        prompt = [0, *tokenizer.encode(text).ids]
        llama.reset()
        llama.eval(prompt)
        with torch.no_grad():
            logits = model.output(model(torch.tensor([prompt])))[0]
        np.testing.assert_allclose(llama.scores[: len(prompt)], logits.numpy(), atol=1e-4)
        ours = list(generate(Decoder(model), prompt, 40, temperature=0, stop_tokens=[0], block_ngram=0))
        theirs = islice(llama.generate(prompt, temp=0, repeat_penalty=1.0), 40)
        assert len(ours) > 10
        assert list(takewhile(lambda token: token != 0, theirs)) == ours
    llama.close()


def test_the_model_cards_example_for_llama_cpp_runs_as_printed(exported, monkeypatch, capfd):
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    folder = exported[2].parent
    monkeypatch.chdir(folder)
    example = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)[1]
    exec(example, names := {})
    names["model"].close()
    assert capfd.readouterr().out.startswith("The")


BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
GPT_2 = pre_tokenizers.ByteLevel(add_prefix_space=False)


def gpt_4(digits: str, behaviour: str = "isolated"):
    """As in the tokenizer.json of Llama 3 and Qwen."""
    letters, others = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+", r" ?[^\s\p{L}\p{N}]+[\r\n]*"
    words = rf"{letters}|\p{{N}}{digits}|{others}|\s*[\r\n]+|\s+(?!\S)|\s+"
    split = pre_tokenizers.Split(Regex(words), behaviour)
    return pre_tokenizers.Sequence([split, BYTES])


def digits_apart(individual: bool):
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual), GPT_2])


@pytest.mark.parametrize(
    ("pre_tokenizer", "normalizer", "ignores_merges", "name"),
    [
        (GPT_2, None, False, "gpt-2"),
        (digits_apart(True), None, False, "smollm"),
        (gpt_4(""), normalizers.NFC(), False, "qwen2"),
        (gpt_4(""), None, False, "qwen2"),
        (gpt_4("{1,3}"), None, True, "llama-bpe"),
        (gpt_4("{1,3}"), None, False, ""),
        (gpt_4("{1,3}"), normalizers.NFC(), True, ""),
        (gpt_4("{1,3}", "removed"), None, True, ""),
        (gpt_4("{1,2}"), None, False, ""),
        (gpt_4(""), normalizers.NFKC(), False, ""),
        (GPT_2, normalizers.NFC(), False, ""),
        (GPT_2, None, True, ""),
        (BYTES, None, False, ""),
        (pre_tokenizers.ByteLevel(add_prefix_space=True), None, False, ""),
        (digits_apart(False), None, False, ""),
    ],
)
def test_the_name_of_a_tokenizers_rules_is_written_or_no_file(
    tmp_path, pre_tokenizer, normalizer, ignores_merges, name
):
    """What llama.cpp makes of such files is in benchmarks/LOG.md."""
    from gguf import GGUFReader

    tokenizer, path = bpe.train(["some text"], 300), tmp_path / "tokenizer.json"
    tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer:
        tokenizer.normalizer = normalizer
    described = json.loads(tokenizer.to_str())
    described["model"]["ignore_merges"] = ignores_merges
    path.write_text(json.dumps(described))
    if not name:
        assert "No GGUF file" in gguf_obstacle(path)
        return
    assert gguf_obstacle(path) == ""
    preset = make_preset()
    state = exported_state(model_of(preset, 300).state_dict(), preset.model)
    write_gguf(tmp_path, "Q8_0", exported_config(preset.model, 300, 0, 0), state, path, name="tiny")
    assert GGUFReader(tmp_path / "model-Q8_0.gguf").fields["tokenizer.ggml.pre"].contents() == name


def test_gpt_2s_own_file_leaves_out_what_is_usual(tmp_path):
    described = json.loads(bpe.train(["some text"], 300).to_str())
    described["model"] |= {"continuing_subword_prefix": "", "end_of_word_suffix": ""}
    del described["model"]["ignore_merges"], described["pre_tokenizer"]["use_regex"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(described))
    assert gguf_obstacle(tmp_path / "tokenizer.json") == ""


def test_without_the_package_its_installation_is_said(tmp_path, monkeypatch):
    bpe.train(["some text"], 300).save(str(tmp_path / "tokenizer.json"))
    monkeypatch.setattr("lm.export.gguf.find_spec", lambda _: None)
    assert 'pip install -e ".[gguf]"' in gguf_obstacle(tmp_path / "tokenizer.json")


@pytest.mark.parametrize(("pre_tokenizer", "said"), [(GPT_2, True), (gpt_4(""), False)], ids=["ours", "Qwen's"])
def test_the_card_says_that_ollama_splits_words_otherwise_also_of_a_model_that_was_continued(
    tmp_path, pre_tokenizer, said
):
    tokenizer = bpe.train(TEXTS, 300)
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    preset = make_preset(init_from="./its/own/export")
    hf = export(model_of(preset, 300), preset, tmp_path / "tokenizer.json", tmp_path / "hf", gguf=True)
    assert ("by the\nrule of Qwen 3 instead of this model's" in (hf / "README.md").read_text()) == said
