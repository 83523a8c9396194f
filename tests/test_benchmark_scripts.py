"""Scripts of benchmarks/: the rows that they train on, and what they count."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks import memory, recipes
from benchmarks.contenders import Shape
from benchmarks.memory_texts import NGRAM, RecallOfJournal, copied
from benchmarks.text_index import TextIndex, build_index
from lm.inference.memory import Gate
from lm.model import Transformer


def test_a_second_pass_reads_the_same_rows(tmp_path, monkeypatch):
    rows, read = np.arange(8 * 17).reshape(8, 17), []

    def keep_rows(preset, shape, steps, options):
        read.extend(step for step in steps)
        assert options.num_steps == len(read)
        return SimpleNamespace(trunk=Transformer(preset.model, shape.vocab))

    monkeypatch.setattr(memory, "BATCH", 32)
    monkeypatch.setattr(memory, "train_preset", keep_rows)
    memory.train(rows, Shape(32, 1, 2, 16, 300), 2, 1, tmp_path)
    first, second = np.concatenate(read[:4]), np.concatenate(read[4:])
    assert np.array_equal(first, second)
    assert np.array_equal(np.sort(first, 0), rows)


def test_what_the_journal_has_is_copied_and_recalled(tmp_path):
    build_index(np.arange(100), tmp_path / "index")
    index = TextIndex(tmp_path / "index")
    assert copied([*range(5, 5 + NGRAM)], index) == 1
    assert copied([*range(5, 5 + NGRAM), 3, *range(20, 20 + NGRAM)], index) == pytest.approx(2 / (NGRAM + 2))
    recall = RecallOfJournal(Gate(np.array([[3.0, *[0.0] * 7]])), index)
    recall.begin([1, 2, 3])  # of a prompt it takes nothing
    assert int(recall(torch.zeros(100), [40, 41, 42]).argmax()) == 43


def test_a_result_is_taken_for_the_very_recipe_and_rows_that_it_is_of(tmp_path, monkeypatch, capsys):
    trained, text = [], SimpleNamespace(seq_length=512, vocab_size=300, digest="6a9adf33cfa3")

    def train(text, shape, preset, options):
        trained.append(preset.train.multi_token_weights)
        return {"mean": 1.5, "seconds": 2.0}

    monkeypatch.setattr(recipes, "corpus_preset", lambda corpus, shape: None)
    monkeypatch.setattr(recipes, "Text", lambda *_: text)
    monkeypatch.setattr(recipes, "train", train)
    variations = ["default", "multi_token_weights=[0.5,0.125],layers=2", "MUON_MOMENTUM=0.9"]
    for _ in range(2):  # the second time from OUT
        recipes.main(tmp_path, tmp_path, 1_000, variations)
        lines = capsys.readouterr().out.splitlines()
        assert lines == [f"1.5000 bits per byte,     2 s, rows 6a9adf33cfa3  {words}" for words in variations]
    assert trained == [[0.5, 0.25], [0.5, 0.125], [0.5, 0.25]]
    text.digest = "0123456789ab"
    recipes.main(tmp_path, tmp_path, 1_000, ["default"])
    monkeypatch.setattr("lm.optim.NORMED_EMBEDDING", 2)
    recipes.main(tmp_path, tmp_path, 1_000, ["default"])
    assert len(trained) == 5
