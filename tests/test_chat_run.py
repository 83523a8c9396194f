"""A run that ends with conversations, and one that starts from a model: what is learnt, reported and left behind."""

import json
import random
import shutil
import signal

import pytest
from tokenizers import Tokenizer

from data.chat_template import CHATML, OWN
from lm.report.metrics import read_metrics
from tests.hf_models import save, transformers_model
from tests.program import ADAPTIVE, ALL_HEADS, BUDGET, Program, ended, fingerprint

pytestmark = pytest.mark.slow
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


@pytest.fixture(scope="module")
def talks(tmp_path_factory):
    """Conversations in which the answer repeats what was asked, often enough to fill some rows."""
    rng, path = random.Random(3), tmp_path_factory.mktemp("talks") / "talks.jsonl"
    with path.open("w") as file:
        for _ in range(400):
            words = " ".join(rng.choices(WORDS, k=rng.randrange(1, 30)))
            turns = [{"from": "human", "value": f"Say {words}!"}, {"from": "gpt", "value": words}] * rng.randrange(1, 3)
            file.write(json.dumps({"conversations": turns}) + "\n")
    return {"type": "hf", "dataset": "json", "data_files": str(path), "messages": "conversations", "label": "talks"}


@pytest.fixture
def make(text, tmp_path, talks):
    made = []

    def program(name: str) -> Program:
        made.append(Program(tmp_path / name, text))
        finish = {"share": 0.5, "sources": [talks, {"type": "text", "label": "small", "path": str(text / "small")}]}
        made[-1].add(
            model={"seq_length": 64},
            data={"finish": finish, "mix_strategy": "round_robin"},
            auxiliary=ALL_HEADS | ADAPTIVE,
        )
        return made[-1]

    yield program
    for one in made:
        one.close()


def test_a_run_that_ends_with_conversations_is_the_same_when_it_was_interrupted_and_reports_its_answers(make):
    whole = make("whole")
    result = whole.run()
    assert result.code == 0, result.err
    folder = whole.checkpoints
    assert (folder / "chat_template.jinja").read_text() == OWN
    lines = read_metrics(folder / "metrics.jsonl")
    evaluation = [line["eval"] for line in lines if "eval" in line][-1]["per_source"]
    answers = evaluation["talks"]
    # Of conversations nothing but the answers counts, apart from the tokens that open documents and hold no text.
    assert answers["answer_bits_per_byte"] == pytest.approx(answers["bits_per_byte"])
    assert "answer_loss" not in evaluation["large"]
    report = (folder / "report.md").read_text()
    assert "| conversations | talks: the model learns the answers, and is scored on them alone |" in report
    assert "<|user|>Say" in (folder / "samples.md").read_text()

    parts = make("parts")
    process = parts.start()
    parts.wait_for(int(0.3 * BUDGET), process)
    process.send_signal(signal.SIGINT)
    assert ended(process).code == 0
    assert parts.state()["tokens_seen"] < BUDGET
    (parts.checkpoints / "chat_template.jinja").unlink()
    result = parts.run()
    assert result.code == 0, result.err
    assert "Made again: chat_template.jinja" in result.out + result.err
    assert fingerprint(parts.state()) == fingerprint(whole.state())
    assert read_metrics(parts.checkpoints / "metrics.jsonl")[-1]["tokens"] == BUDGET


def test_a_model_with_a_template_of_its_own_is_continued_in_it_and_needed_only_at_the_beginning(text, tmp_path, talks):
    folder = save(transformers_model("llama"), tmp_path / "model", texts=[" ".join(WORDS), "Say user assistant"])
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    template = CHATML + "{# its own #}"
    (folder / "chat_template.jinja").write_text(template)
    program = Program(tmp_path / "program", text)
    try:
        program.add(model={"init_from": str(folder), "seq_length": 64}, data={"sources": [talks]})
        process = program.start()
        program.wait_for(BUDGET // 3, process)
        process.send_signal(signal.SIGINT)
        assert ended(process).code == 0
        assert 0 < program.state()["tokens_seen"] < BUDGET
        shutil.rmtree(folder)
        (program.checkpoints / "chat_template.jinja").unlink()
        (program.checkpoints / "stream" / "heldout.npz").unlink()  # tokenized again
        result = program.run()
        assert result.code == 0, result.err
        assert (program.checkpoints / "chat_template.jinja").read_text() == template
        evaluations = [
            line["eval"]["per_source"]["talks"]
            for line in read_metrics(program.checkpoints / "metrics.jsonl")
            if "eval" in line
        ]
        assert evaluations[-1]["answer_loss"] < evaluations[0]["answer_loss"]
    finally:
        program.close()
