"""A run that ends with conversations, from the preset to the answer: in the program and through the export."""

import json
import random
import re

import pytest

from data import tokenizer as bpe
from lm.report.metrics import read_metrics
from tests.program import BUDGET, Program

pytestmark = pytest.mark.slow

ANSWER = "Yes, of course."


def conversations(path) -> None:
    """Questions of a few words, each answered in the same way: what a tiny model learns in a few steps."""
    dice, words = (
        random.Random(1),
        ["is", "are", "was", "the", "a", "red", "old", "tree", "river", "good", "bad", "warm"],
    )
    lines = []
    for _ in range(3_000):
        turns = [turn for _ in range(dice.randint(1, 2)) for turn in question(dice, words)]
        lines.append(json.dumps({"messages": turns}))
    path.write_text("\n".join(lines))


def question(dice, words) -> list[dict[str, str]]:
    text = " ".join(dice.choices(words, k=dice.randint(3, 6))).capitalize() + "?"
    return [{"role": "user", "content": text}, {"role": "assistant", "content": ANSWER}]


@pytest.fixture(scope="module")
def trained(text, tmp_path_factory) -> Program:
    program = Program(tmp_path_factory.mktemp("program"), text)
    conversations(program.folder / "chat.jsonl")
    chat = {
        "type": "hf",
        "label": "chat",
        "dataset": "json",
        "data_files": str(program.folder / "chat.jsonl"),
        "messages": "messages",
    }
    books = {"type": "text", "label": "books", "path": str(text / "large")}
    finish = {"share": 0.8, "sources": [chat]}
    program.add(
        data={"sources": [books], "finish": finish},
        train={"eval_every_tokens": BUDGET, "per_gpu_batch_size": 4, "accumulation_steps": 1},
        model={"seq_length": 64},
    )
    program.first = program.run()
    yield program
    program.close()


def test_a_model_that_has_read_conversations_answers(trained):
    assert trained.first.code == 0, trained.first.err
    assert "expect     a model to talk to." in trained.first.out
    held_out = read_metrics(trained.checkpoints / "metrics.jsonl")[-1]["eval"]["per_source"]
    assert held_out["chat"]["bits_per_byte"] < 0.5 < held_out["books"]["bits_per_byte"]  # of the answers alone
    lines = ["t", "/temperature 0", "Is the river old?", "Was that good?", "/again", "/continue import", "/quit"]
    result = trained.run("\n".join(lines) + "\n")
    assert result.code == 0, result.err
    assert "It is small and makes things up" in result.out
    answers = re.findall(r"> (.*)\n\[(\d+) tokens?, \d+ tokens/s, seed \d+.*\]\n", result.out)
    num_tokens = len(bpe.load(trained.checkpoints / "tokenizer.json").encode(ANSWER).ids)
    assert answers[:3] == [(ANSWER, str(num_tokens))] * 3, result.out  # the end of the turn is none of them
    assert len(answers) == 4


def test_its_export_answers_in_transformers(trained):
    from transformers import pipeline

    folder = trained.checkpoints / "hf"
    assert (folder / "chat_template.jinja").exists()
    chat = pipeline("text-generation", str(folder), device="cpu")
    messages = [{"role": "user", "content": "Is the river old?"}]
    for _ in range(2):
        messages = chat(messages, max_new_tokens=20, do_sample=False)[0]["generated_text"]
        assert messages[-1] == {"role": "assistant", "content": ANSWER}
        messages.append({"role": "user", "content": "Was that good?"})
