"""What is loaded beside a model: the text that tells which tokens a drafter should know."""

import json
import random

import numpy as np

from configs.schema import ModelConfig
from data import tokenizer as bpe
from data.journal import ROWS, JournalWriter, write_header
from data.packing import row_dtype
from data.stream_files import HELD_OUT
from lm.inference import load
from tests.lm.inference.test_memory import LENGTH, document, held_out
from tests.lm.random_model import random_model

DTYPE = row_dtype(4, 1000)
SHAPE = {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "seq_length": LENGTH, "mlp_size": 64}


def test_the_newest_text_of_a_run_if_it_is_there(tmp_path, monkeypatch):
    assert len(load.newest_tokens(tmp_path, DTYPE)) == 0
    (tmp_path / "stream").mkdir()
    writer, rows = JournalWriter(tmp_path / "stream", DTYPE), np.zeros(3, DTYPE)
    rows["tokens"] = np.arange(3)[:, None] * 4 + np.arange(5)
    writer.append(rows, {})
    assert load.newest_tokens(tmp_path, DTYPE).tolist() == list(range(1, 13))
    monkeypatch.setattr(load, "COUNTED_TOKENS", 8)
    assert load.newest_tokens(tmp_path, DTYPE).tolist() == list(range(5, 13))
    writer.close()
    (tmp_path / "stream" / ROWS).write_bytes(bytes(3 * DTYPE.itemsize))
    assert len(load.newest_tokens(tmp_path, DTYPE)) == 0


def test_recall_is_fitted_on_the_held_out_text_of_the_run_and_no_other(tmp_path):
    tokenizer, chance = bpe.train(["a few words"], 300), random.Random(1)
    config = ModelConfig(**SHAPE)
    model, path = random_model(config, 300), tmp_path / "stream" / HELD_OUT
    sources = [{"type": "text", "path": label, "label": label} for label in "01"]
    preset = {"name": "x", "model": SHAPE, "data": {"sources": sources[:1], "watch": sources[1:]}}
    state = {"stream_position": {}, "preset": json.dumps(preset)}
    assert "missing or damaged" in load.load_recall(state, tmp_path, model, tokenizer)[1]
    path.parent.mkdir()
    texts = held_out([document(chance, 12) for _ in range(8)])
    texts.save(path)
    state["stream_position"]["header"] = {"held_out": texts.digest()}
    recall, words = load.load_recall(state, tmp_path, model, tokenizer)
    assert recall
    assert "bits per byte" in words
    watched = held_out([document(chance, 12)], [document(chance, 12) for _ in range(8)])
    watched.save(path)
    state["stream_position"]["header"] = {"held_out": watched.digest()}
    assert "too few" in load.load_recall(state, tmp_path, model, tokenizer)[1]
    others = held_out([document(chance, 12) for _ in range(8)])
    others.save(path)
    state["stream_position"]["header"] = {"held_out": texts.digest()}
    write_header(path.parent, {"held_out": others.digest()})  # another run, since this chat began
    assert load.load_recall(state, tmp_path, model, tokenizer)[0] is None
    texts.save(path)
    path.write_bytes(path.read_bytes()[:-100])
    assert load.load_recall(state, tmp_path, model, tokenizer)[0] is None
