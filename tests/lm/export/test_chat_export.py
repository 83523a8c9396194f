"""The export of a run with conversations: other programs chat with it, in the very tokens of its training."""

import json
import re

import pytest
import torch

from data import tokenizer as bpe
from data.chat_template import CHATML, MARKERS, OWN, ChatTemplate, Turn, template_beside
from lm.export.ollama import modelfile
from lm.inference.decoder import Decoder
from lm.inference.generate import generate
from tests.data.test_chat_template import LLAMA3, QWEN3, SMOLLM2
from tests.lm.export.test_huggingface import END_OF_TEXT, export, make_preset, model_of

TURNS = [
    Turn("system", "Be brief."),
    Turn("user", "What is 2 and 2?"),
    Turn("assistant", "Four, né."),
    Turn("user", "Sure"),
]
ENDS_DOCUMENTS = OWN.replace("<|end|>", END_OF_TEXT)
MESSAGES = [{"role": role, "content": text} for role, text in TURNS]


def tokenizer_with(folder, special_tokens):
    tokenizer = bpe.train(["What is two and two? Four. Sure? Yes! Be brief. user assistant system"] * 50, 320)
    tokenizer.add_special_tokens(list(special_tokens))
    tokenizer.save(str(folder / "tokenizer.json"))
    return bpe.load(folder / "tokenizer.json")


def exported(folder, source, special_tokens=MARKERS, **options):
    """(model, chat template, folder of the export)"""
    tokenizer = tokenizer_with(folder, special_tokens)
    (folder / "chat_template.jinja").write_text(source)
    source = template_beside(
        "the folder", lambda name: folder / name if name == "chat_template.jinja" else None, tokenizer
    )
    template = ChatTemplate(source, tokenizer)
    preset = make_preset()
    model = model_of(preset, 340)
    hf = export(
        model,
        preset,
        folder / "tokenizer.json",
        folder / "hf",
        chat_template=template,
        **options,
    )
    return model.eval(), template, hf


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    return exported(tmp_path_factory.mktemp("own"), OWN, gguf=True)


@pytest.mark.parametrize(
    ("source", "special_tokens"),
    [
        (OWN, MARKERS),
        (CHATML, ["<|im_start|>", "<|im_end|>"]),
        (SMOLLM2, ["<|im_start|>", "<|im_end|>"]),
        (f"{{{{ '{END_OF_TEXT}' }}}}{OWN}", MARKERS),
        (ENDS_DOCUMENTS, MARKERS),
        ("   {% if true %}{% endif %}\n" + OWN, MARKERS),
        ("\n" + OWN, MARKERS),
        (QWEN3, ["<|im_start|>", "<|im_end|>"]),
        (LLAMA3, ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|begin_of_text|>"]),
        ("{{ bos_token }}{{ pad_token }}" + OWN, MARKERS),
    ],
    ids=[
        "own",
        "ChatML",
        "SmolLM2",
        "one that begins documents itself",
        "a turn ends as a document does",
        "spaces before a block",
        "a line break first",
        "Qwen3, which thinks unless told not to",
        "Llama 3, which asks for the date",
        "tokens that no tokenizer_config.json names",
    ],
)
@pytest.mark.slow
def test_transformers_makes_the_tokens_of_the_training(tmp_path, source, special_tokens):
    from transformers import AutoTokenizer

    _, template, folder = exported(tmp_path, source, special_tokens)
    theirs = AutoTokenizer.from_pretrained(folder)
    ours, _ = template.encode(TURNS, generation_prompt=True)
    for form in ({}, {"chat_template": json.loads((folder / "tokenizer_config.json").read_text())["chat_template"]}):
        given = theirs.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False, **form)
        assert given == [0, *ours.tolist()]
    ends = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    assert ends == (0 if source == ENDS_DOCUMENTS else [*template.end_tokens, 0])
    assert theirs.eos_token_id == template.end_tokens[0]
    assert (theirs.bos_token_id, theirs.pad_token_id) == (0, 0)


def test_a_template_that_is_exported_again_begins_documents_once(tmp_path):
    """As by a run that starts from an export."""
    _, template, folder = exported(tmp_path, OWN)
    imported = template_beside("the export", lambda name: folder / name, template.tokenizer)
    (tmp_path / "again").mkdir()
    _, again, folder = exported(tmp_path / "again", imported)
    source = (folder / "chat_template.jinja").read_text()
    assert source.endswith(imported)
    assert source.count("{{ bos_token }}") == 1
    assert again.encode(TURNS)[0].tolist() == template.encode(TURNS)[0].tolist()


def test_a_pipeline_answers_as_we_do_and_stops_where_we_do(own):
    from transformers import pipeline

    model, template, folder = own
    end = template.end_tokens[0]
    chat = pipeline("text-generation", str(folder), device="cpu")
    prompt = [0, *template.encode(TURNS, generation_prompt=True)[0].tolist()]
    assert len(prompt) < 50
    text = list(generate(Decoder(model), prompt, 14, temperature=0, stop_tokens=[end, 0]))
    answer = chat(MESSAGES, max_new_tokens=14, do_sample=False)[0]["generated_text"]
    assert answer[:-1] == MESSAGES
    assert answer[-1] == {"role": "assistant", "content": template.tokenizer.decode(text)}
    state = model(torch.tensor([prompt]))[0, -1].detach()
    for stop in (end, 0):
        with torch.no_grad():  # now it ends at once
            chat.model.lm_head.weight.zero_()[stop] = state
        output = chat(MESSAGES, max_new_tokens=14, do_sample=False, return_tensors=True)[0]
        assert output["generated_token_ids"] == [*prompt, stop]


def test_the_model_cards_example_chats_as_printed(own, monkeypatch, capsys):
    _, _, folder = own
    card = (folder / "README.md").read_text(encoding="utf-8")
    monkeypatch.chdir(folder)
    example = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    exec(example.replace("200", "5"), {})
    assert capsys.readouterr().out
    assert "A small chat model" in card
    assert "It was not taught to be right, to be safe or to decline" in card
    assert "to converse" not in card


def test_a_gguf_file_has_the_template_and_ends_where_a_turn_does(own):
    from gguf import GGUFReader

    _, template, folder = own
    facts = {name: field.contents() for name, field in GGUFReader(folder / "model.gguf").fields.items()}
    assert facts["tokenizer.chat_template"] == (folder / "chat_template.jinja").read_text()
    assert facts["tokenizer.ggml.eos_token_id"] == template.end_tokens[0]
    assert facts["tokenizer.ggml.bos_token_id"] == 0
    assert facts["tokenizer.ggml.add_bos_token"] is True


def test_ollama_gets_the_form_of_a_turn(own):
    _, _, folder = own
    lines = (folder / "Modelfile").read_text().splitlines()
    assert 'TEMPLATE "{{ range .Messages }}<|{{ .Role }}|>{{ .Content }}<|end|>{{ end }}<|assistant|>"' in lines
    assert [line for line in lines if " stop " in line] == [
        'PARAMETER stop "<|end|>"',
        'PARAMETER stop "<|endoftext|>"',
    ]
    assert "TEMPLATE" not in modelfile(64, ["<|im_end|>"], CHATML)


def test_llama_cpp_chats_with_it(own):
    """By its own reading of the template, in its server; llama-cpp-python has another."""
    xllamacpp = pytest.importorskip("xllamacpp", reason="xllamacpp is not installed")
    model, template, folder = own
    prompt = [0, *template.encode(TURNS, generation_prompt=True)[0].tolist()]
    text = list(generate(Decoder(model), prompt, 10, temperature=0, stop_tokens=[*template.end_tokens, 0]))
    parameters = xllamacpp.CommonParams()
    parameters.model.path, parameters.n_ctx, parameters.cpuparams.n_threads = str(folder / "model.gguf"), 64, 1
    request = {"messages": MESSAGES, "max_tokens": 10, "temperature": 0}
    answer = xllamacpp.Server(parameters).handle_chat_completions(request)
    assert answer["usage"]["prompt_tokens"] == len(prompt)
    assert answer["choices"][0]["message"]["content"] == template.tokenizer.decode(text)
