"""The vectors of texts that benchmarks/embeddings.py compares."""

import json

import pytest
import torch

from aux_heads.joint import build_heads
from benchmarks.embeddings import Pairs, PassageEmbedder, found, scores
from configs.errors import UserError
from configs.schema import parse_preset
from data import tokenizer as bpe
from tests.lm.random_model import random_model, randomize
from tests.program import preset_json


def embedder(folder, monkeypatch, **auxiliary) -> PassageEmbedder:
    """Of a run that has just begun."""
    text = preset_json(folder, model={"seq_length": 64, "vocab_size": 300}, auxiliary=auxiliary)
    preset = parse_preset(json.dumps(text), "test")
    tokenizer = bpe.train(["one two three four " * 9], 300)
    tokenizer.save(str(folder / "tokenizer.json"))
    heads = build_heads(preset.auxiliary, preset.model.hidden_size, preset.model.seq_length)
    model = random_model(preset.model, 300)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        randomize(heads, 0.3)
    state = {"preset": preset.to_json(), "model": model.state_dict(), "heads": heads.state_dict()}
    state["tokenizer_sha256"] = bpe.fingerprint(tokenizer)
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


def test_every_way_to_compare_passages_has_its_scores(tmp_path, monkeypatch):
    pairs = Pairs(["one one", "two two", "four"], ["one two one", "two three two", "four"], torch.tensor([0, 0, 1]))
    ways = scores(embedder(tmp_path, monkeypatch, enable_span_contrastive=True), pairs)
    assert [scores_NN.shape for scores_NN in ways.values()] == [(3, 3)] * 5
    assert found(ways["tf-idf"], pairs.document) == (1.0, 1.0, 1.0)  # by words in common
