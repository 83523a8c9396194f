"""What an export says about where its model comes from; texts as vectors."""

import json

import pytest
import torch

from aux_heads.joint import build_heads
from configs.errors import UserError
from configs.schema import parse_preset
from data import tokenizer as bpe
from lm.inference.load import PassageEmbedder
from lm.report.export import run_facts
from tests.lm.random_model import random_model, randomize
from tests.program import preset_json

SOURCES = [
    "wikipedia",
    {"type": "hf", "dataset": "sentence-transformers/squad", "label": "questions", "text_field": "question"},
    {"type": "hf", "dataset": "me/pets"},
    {"type": "hf", "dataset": "./pets"},
    {"type": "text", "path": "~/notes"},
    "python_source",
]


def facts(folder, **changes):
    preset = parse_preset(json.dumps(preset_json(folder, data={"sources": SOURCES})), "test")
    state = {"tokens_seen": 100, "token_budget": 100, "exhausted": False, "facts": {"tokens": "100"}, **changes}
    return run_facts(state, preset, folder)


def test_sources_have_the_catalogues_licences_or_a_place_to_look(tmp_path):
    wikipedia, questions, pets, local, notes, python = facts(tmp_path).sources
    assert (wikipedia.licence, wikipedia.dataset) == ("CC-BY-SA-3.0", "wikimedia/wikipedia")
    assert (questions.label, questions.licence) == ("questions", "CC-BY-SA-4.0")
    assert pets == ("me/pets", "https://huggingface.co/datasets/me/pets", "see the dataset's page", "me/pets", "")
    assert (local.licence, local.dataset) == ("not stated", "")
    assert (notes.licence, notes.dataset) == ("not stated", "")
    assert python.licence.startswith("PSF-2.0")
    assert (wikipedia.language, notes.language, python.language) == ("en", "", "code")


def test_a_card_ends_where_its_checkpoint_does_and_says_what_was_left(tmp_path):
    lines = [{"tokens": 50, "loss": 3.0}, {"tokens": 60, "loss": 2.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "samples.md").write_text("## 50 tokens\na\n## 60 tokens\nb\n")
    run = facts(tmp_path, tokens_seen=50)
    assert run.records == lines[:1]
    assert [section.tokens for section in run.samples] == [50]
    assert run.facts == {"tokens": "100", "unfinished": "taken from the run at 50 of 100 tokens"}
    assert "unfinished" not in facts(tmp_path, tokens_seen=50, exhausted=True).facts
    assert "unfinished" not in facts(tmp_path).facts


def embedder(folder, monkeypatch, **auxiliary) -> PassageEmbedder:
    """Of a run that has just begun."""
    text = preset_json(folder, model={"seq_length": 64, "vocab_size": 300}, auxiliary=auxiliary)
    preset = parse_preset(json.dumps(text), "test")
    bpe.train(["one two three four " * 9], 300).save(str(folder / "tokenizer.json"))
    heads = build_heads(preset.auxiliary, preset.model.hidden_size, preset.model.seq_length)
    model = random_model(preset.model, 300)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        randomize(heads, 0.3)
    state = {"preset": preset.to_json(), "model": model.state_dict(), "heads": heads.state_dict()}
    monkeypatch.setattr("lm.checkpoint.store.load", lambda path: (state, ""))
    return PassageEmbedder(folder)


def test_texts_as_unit_vectors(tmp_path, monkeypatch):
    vectors = embedder(tmp_path, monkeypatch, enable_span_contrastive=True, enable_value=True)
    texts = ["one two", " two one", "", "three four " * 99]
    for embed in (vectors.of, vectors.coming):
        found = embed(texts)
        assert found.shape == (4, 128)
        assert found.norm(dim=-1).tolist() == pytest.approx([1] * 4)
        assert torch.equal(found, embed(texts))
    for embed, sees_order in ((vectors.of, False), (vectors.coming, True)):
        one, other = embed([" two three one", " three two one"])
        assert (float(one @ other) < 0.999) is sees_order
    last = "four " * 99 + "one"
    assert torch.allclose(vectors.coming([last]), vectors.coming(["three" + last]), atol=1e-5)  # what no longer fits


def test_a_run_without_the_head_has_no_vectors(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no span_contrastive head"):
        embedder(tmp_path, monkeypatch, enable_value=True)
