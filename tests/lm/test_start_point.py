"""A model of transformers becomes our trunk without a change, and nothing in its folder is trusted."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from configs.errors import PresetError, StartPointError, UserError
from configs.schema import Preset, parse_preset
from data import tokenizer as bpe
from data.chat_template import CHATML
from lm.families import exported_state
from lm.inference.decoder import Decoder
from lm.model import Transformer
from lm.start_point import open_start_point, peek
from tests.hf_models import LLAMA_3_1, LONGEST, VOCAB, copy, save, transformers_model


def starting_from(folder: Path | str, **model) -> Preset:
    preset = {"name": "on", "model": {"init_from": str(folder), "seq_length": 64, **model}}
    return parse_preset(json.dumps(preset | {"data": {"sources": [{"type": "python"}]}}), "test")


def trunk_of(folder: Path) -> Transformer:
    start = open_start_point(starting_from(folder))
    trunk = Transformer(start.model, start.model.vocab_size)
    start.load_into(trunk)
    return trunk.eval()


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied in shards"])
@pytest.mark.parametrize("family", ["qwen3", "llama", "llama 3.1"])
@torch.no_grad()
def test_logits_are_those_of_transformers_and_the_way_back_changes_no_bit(tmp_path, family, tied, monkeypatch):
    scaled = {"rope_parameters": LLAMA_3_1} if family == "llama 3.1" else {}
    theirs = transformers_model(family.split()[0], tied=tied, **scaled)
    folder = save(theirs, tmp_path / "model", shard="30KB" if tied else "5GB")
    assert len(list(folder.glob("*.safetensors"))) == (6 if tied else 1)
    trunk = trunk_of(folder)
    assert (trunk.config.rope_scaling is not None) == bool(scaled)
    tokens = torch.randint(VOCAB, (2, 64), generator=torch.Generator().manual_seed(1))
    logits = theirs(tokens).logits
    assert logits.std() > 0.5
    torch.testing.assert_close(trunk.output(trunk(tokens)), logits, atol=1e-4, rtol=0)
    with monkeypatch.context() as patch:  # as compiled for a CPU
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
        torch.testing.assert_close(trunk.output(trunk(tokens)), logits, atol=1e-4, rtol=0)
    decoder = Decoder(trunk)
    pieces = [decoder(tokens[0, a:b].tolist()) for a, b in ((0, 5), (5, 6), (6, 7), (7, 40), (40, 64))]
    torch.testing.assert_close(decoder.output(torch.cat(pieces)), logits[0], atol=1e-4, rtol=0)

    exported = exported_state(trunk.state_dict(), trunk.config)
    stored = {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}
    assert exported.keys() == stored.keys()
    assert all(torch.equal(exported[name], tensor) for name, tensor in stored.items())


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    return save(transformers_model("llama"), tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def sharded(tmp_path_factory) -> Path:
    return save(transformers_model("qwen3", tied=True), tmp_path_factory.mktemp("models") / "qwen3", shard="30KB")


def test_half_precision_and_leftovers_that_have_no_effect_are_taken(tmp_path, llama):
    folder = copy(llama, tmp_path / "model")
    state = {name: tensor.bfloat16() for name, tensor in load_file(folder / "model.safetensors").items()}
    rotary = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(7)}
    save_file(state | rotary, folder / "model.safetensors")
    exported = exported_state(trunk_of(folder).state_dict(), peek(starting_from(folder)).model)
    assert all(torch.equal(exported[name], tensor.float()) for name, tensor in state.items())


def test_the_shape_is_the_models_and_a_preset_that_contradicts_it_is_refused(llama):
    preset = starting_from(llama)
    assert preset.model.unknown
    model = peek(preset).model
    assert (model.hidden_size, model.head_dim, model.num_kv_heads, model.qk_norm) == (40, 14, 2, False)
    assert (model.rope_theta, model.norm_eps, model.vocab_size, model.seq_length) == (5_000, 1e-5, VOCAB, 64)
    assert open_start_point(starting_from(llama, hidden_size=40, head_dim=14)).model == model
    with pytest.raises(PresetError) as refused:
        open_start_point(starting_from(llama, hidden_size=64, rope_theta=10_000, num_layers=2))
    assert f"model.hidden_size: 64 in the preset, 40 in {llama}" in str(refused.value)
    assert f"model.rope_theta: 10000.0 in the preset, 5000.0 in {llama}" in str(refused.value)
    assert "num_layers" not in str(refused.value)
    with pytest.raises(StartPointError, match=f"max_position_embeddings {LONGEST}, and model.seq_length is 97"):
        open_start_point(starting_from(llama, seq_length=LONGEST + 1))


# ---- what may be wrong with a folder ----------------------------------------------------------------------------


def config(**changes):
    def change(folder: Path) -> None:
        known = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(known | changes))

    return change


def text(name: str, content: str):
    return lambda folder: (folder / name).write_text(content)


def weights(change, name: str = "model.safetensors"):
    """Change the tensors of a file, given their dict."""

    def rewrite(folder: Path) -> None:
        state = load_file(folder / name)
        change(state)
        save_file(state, folder / name)

    return rewrite


def as_bytes(change):
    def rewrite(folder: Path) -> None:
        path = folder / "model.safetensors"
        path.write_bytes(change(path.read_bytes()))

    return rewrite


def replaced(name: str, put):
    def replace(folder: Path) -> None:
        (folder / name).unlink()
        put(folder / name)

    return replace


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def large_tokenizer(folder: Path) -> None:
    texts = [f"{letters} {letters}{letters}" for letters in map(chr, range(ord("A"), ord("z")))] * 9
    tokenizer = bpe.train(texts, 400)
    assert bpe.vocab_size(tokenizer) > VOCAB
    tokenizer.save(str(folder / "tokenizer.json"))


Q_PROJ, NORM = "model.layers.1.self_attn.q_proj.weight", "model.norm.weight"
NAN = torch.full((40,), torch.nan)
WRONG = {
    "cut off": (as_bytes(lambda content: content[:-100]), "is no whole safetensors file"),
    "cut off in its header": (as_bytes(lambda content: content[:100]), "is no whole safetensors file"),
    "a huge header": (as_bytes(lambda content: (2**40).to_bytes(8, "little") + content[8:]), "a header of more than"),
    "a tensor with a very long name": (weights(lambda s: s.update({"a" * 100_000: NAN})), "model.safetensors: a{79}… has no"),
    "a number that is not finite with a very long name": (
        weights(lambda s: s.update({"a" * 100_000 + "rotary_emb.inv_freq": NAN})), "a{79}… holds numbers that are not finite"),
    "a tensor of very many dimensions": (
        weights(lambda s: s.update({NORM: s[NORM].view([40, *[1] * 60])})), r"of shape \[40(, 1)+.*…; by config"
    ),
    "another file": (as_bytes(lambda content: b"PK" + content), "is no whole safetensors file"),
    "a matrix of another shape": (weights(lambda s: s.update({Q_PROJ: s[Q_PROJ][:-2].clone()})), r"shape \[54, 40\]"),
    "whole numbers": (weights(lambda s: s.update({Q_PROJ: s[Q_PROJ].to(torch.int8)})), "q_proj.weight is I8"),
    "no number": (weights(lambda s: s.update({NORM: NAN})), f"{NORM} holds numbers that are not finite"),
    "a tensor less": (weights(lambda s: s.pop(NORM)), f"lacks 1 tensor of the model, such as {NORM}"),
    "a bias": (weights(lambda s: s.update({"model.norm.bias": NAN})), "model.norm.bias has no place in this model"),
    "an adapter": (weights(lambda s: s.update({f"{Q_PROJ}.lora_A": NAN})), "has no place in this model"),
    "a layer more in config.json": (config(num_hidden_layers=3), "lacks 9 tensors of the model"),
    "pickles only": (pickled, r"only as pickles \(pytorch_model.bin\), which may run code"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "has no model.safetensors"),
    "a link to nothing": (replaced("model.safetensors", lambda p: p.symlink_to("/nowhere")), "has no model.safetensors"),
    "a link to itself": (replaced("model.safetensors", lambda p: p.symlink_to(p.name)), "has no model.safetensors"),
    "a pipe": (replaced("model.safetensors", os.mkfifo), "has no model.safetensors"),
    "a link to a device": (replaced("config.json", lambda p: p.symlink_to("/dev/zero")), "has no config.json"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
    "a config that is no JSON": (text("config.json", '{"model_type": '), "config.json is no JSON that can be read"),
    "a config that is a list": (text("config.json", "[1]"), "not an object"),
    "a config that is deep": (text("config.json", "[" * 100_000), "config.json is no JSON that can be read"),
    "another architecture": (config(model_type="gpt2"), 'model_type "gpt2"; this program starts from qwen3 and llama'),
    "no architecture": (config(model_type=["llama"]), r'model_type \["llama"\]'),
    "scaled rotations": (config(rope_parameters={"rope_type": "yarn"}), 'rope_parameters.rope_type "yarn"'),
    "rotations scaled by nothing": (
        config(rope_parameters=LLAMA_3_1 | {"factor": None}),
        "config.json has rope_scaling.factor null; allowed: a number from 1",
    ),
    "rotations scaled from nowhere": (
        config(rope_scaling=LLAMA_3_1 | {"high_freq_factor": 1.0}),
        "rope_scaling.high_freq_factor 1.0; above low_freq_factor",
    ),
    "old scaled rotations": (config(rope_parameters=None, rope_scaling={"type": "linear"}), 'type "linear", which'),
    "biases": (config(attention_bias=True), "attention_bias true, which this program does not compute"),
    "another activation": (config(hidden_act="gelu"), 'hidden_act "gelu"'),
    "windows": (config(layer_types=["full_attention", "sliding_attention"]), r'layer_types \["full_attention", "sl'),
    "windows in late layers": (config(layer_types=["full_attention"] * 9 + ["sliding_attention"]), "layer_types"),
    "quantized": (config(quantization_config={"bits": 4}), "quantization_config"),
    "an odd head": (config(head_dim=7), "config.json has head_dim 7; allowed: a whole number"),
    "a negative size": (config(hidden_size=-40), "config.json has hidden_size -40; allowed"),
    "no size": (config(intermediate_size=None), "config.json has intermediate_size null; allowed"),
    "text for a size": (config(num_hidden_layers="2"), 'config.json has num_hidden_layers "2"; allowed'),
    "groups that do not divide": (config(num_key_value_heads=3), "config.json has num_key_value_heads 3"),
    "no number in the config": (config(rms_norm_eps=float("nan")), "config.json has rms_norm_eps"),
    "rotations that are a list": (config(rope_scaling=[1]), r"rope_scaling \[1\], which is no object"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "has no tokenizer.json"),
    "a tokenizer that is none": (text("tokenizer.json", "{}"), "tokenizer .*: cannot be read"),
    "a tokenizer without an end": (
        lambda f: text("tokenizer.json", (f / "tokenizer.json").read_text().replace("endoftext", "stop"))(f),
        "no special token ends a document",
    ),
    "too large a tokenizer": (large_tokenizer, "and by config.json the model has 320"),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), WRONG.values(), ids=WRONG)
def test_a_folder_that_is_not_what_it_says_is_one_message(tmp_path, llama, damage, message):
    folder = copy(llama, tmp_path / "model")
    trunk_of(folder)
    damage(folder)
    with pytest.raises(UserError, match=message) as refused:
        trunk_of(folder)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 1000


def in_index(**files):
    def change(folder: Path) -> None:
        path = folder / "model.safetensors.index.json"
        index = json.loads(path.read_text())
        index["weight_map"] |= files
        path.write_text(json.dumps(index))

    return change


FIRST, SECOND, THIRD = (f"model-0000{number}-of-00006.safetensors" for number in (1, 2, 3))
WRONG_SHARDS = {
    "a shard that is missing": (lambda folder: (folder / SECOND).unlink(), f"names {SECOND}, which is not there"),
    "a shard elsewhere": (in_index(x="../../secret.safetensors"), "has no weight_map"),
    "a shard at a path": (in_index(x="/etc/secret.safetensors"), "has no weight_map"),
    "a shard that is no file name": (in_index(x=[1]), "has no weight_map"),
    "a shard of pickles": (in_index(x="pytorch_model.bin"), "has no weight_map"),
    "no map": (text("model.safetensors.index.json", "{}"), "has no weight_map"),
    "a tensor twice": (
        lambda folder: save_file(load_file(folder / SECOND) | load_file(folder / THIRD), folder / THIRD),
        "is in another file too",
    ),
    "an output layer of its own": (
        weights(lambda state: state.update({"lm_head.weight": torch.ones(VOCAB, 40)}), THIRD),
        "lm_head.weight differs from the embedding",
    ),
}


@pytest.mark.parametrize(("damage", "message"), WRONG_SHARDS.values(), ids=WRONG_SHARDS)
def test_shards_that_do_not_fit_are_one_message(tmp_path, sharded, damage, message):
    folder = copy(sharded, tmp_path / "model")
    damage(folder)
    with pytest.raises(StartPointError, match=message):
        trunk_of(folder)


def test_a_tied_output_layer_that_is_stored_too_is_taken_if_it_is_the_same(tmp_path, sharded):
    folder = copy(sharded, tmp_path / "model")
    embedding = trunk_of(folder).embed.weight.detach().clone()
    for shard in (SECOND, THIRD, FIRST):  # before and after that of the embedding
        changed = copy(sharded, tmp_path / shard)
        weights(lambda state: state.update({"lm_head.weight": embedding}), shard)(changed)
        assert torch.equal(trunk_of(changed).output.weight, embedding)


def test_a_folder_that_is_not_there_is_one_message(tmp_path):
    with pytest.raises(StartPointError, match=r"model.init_from: the folder .*nowhere cannot be read"):
        open_start_point(starting_from(tmp_path / "nowhere"))
    export = tmp_path / "archive" / "a-run" / "hf"  # of the run that was there, before another was begun and stopped
    export.mkdir(parents=True)
    with pytest.raises(StartPointError, match=f"the last run that was archived has {export}"):
        open_start_point(starting_from(tmp_path / "hf"))


# ---- its chat template -------------------------------------------------------------------------------------------


def test_a_run_with_conversations_takes_the_models_own_template_or_chatml_for_its_tokens(llama, tmp_path):
    given = json.loads(starting_from(llama).to_json())
    talks = {"type": "hf", "dataset": "json", "data_files": "talks.jsonl", "messages": "messages"}

    def template_in(folder: Path) -> str | None:
        given["model"]["init_from"] = str(folder)
        return open_start_point(parse_preset(json.dumps(given), "test")).chat_template

    folder = copy(llama, tmp_path / "model")
    text("chat_template.jinja", "{{ 1/0 }}")(folder)
    assert template_in(folder) is None  # without conversations nothing is read
    given["data"]["sources"].append(talks)
    with pytest.raises(UserError, match="the chat template cannot be used: ZeroDivisionError"):
        template_in(folder)
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="model has no chat template, which sources of conversations need"):
        template_in(folder)

    tokenizer = bpe.load(folder / "tokenizer.json")
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>", "</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    assert template_in(folder) == CHATML
    source = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token }}{% endfor %}"
    text("tokenizer_config.json", json.dumps({"chat_template": source, "eos_token": {"content": "</s>"}}))(folder)
    assert template_in(folder) == '{% set eos_token = "</s>" %}\n' + source
    several = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": source}]
    text("tokenizer_config.json", json.dumps({"chat_template": several, "eos_token": "</s>"}))(folder)
    assert template_in(folder) == '{% set eos_token = "</s>" %}\n' + source
    text("chat_template.jinja", CHATML + "{# the file counts #}")(folder)
    assert template_in(folder) == CHATML + "{# the file counts #}"
    text("tokenizer_config.json", "[" * 100_000)(folder)
    with pytest.raises(UserError, match=r"tokenizer_config.json cannot be read .* the chat template may be in it"):
        template_in(folder)
