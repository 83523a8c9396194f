"""What an export says about where its model comes from."""

import json
import shutil

import pytest
import torch

from configs.errors import UserError
from configs.schema import parse_preset
from data import tokenizer as bpe
from lm.checkpoint.store import BEST
from lm.cli import use as module
from lm.cli.use import use
from lm.export.huggingface import is_export_of, run_facts
from lm.inference.load import load_state
from lm.report.record import choice_in_words
from tests.lm.checkpoint.small_checkpoint import make_state, save
from tests.lm.random_model import random_model
from tests.program import preset_json, tiny_preset

SOURCES = [
    "wikipedia",
    {"type": "hf", "dataset": "sentence-transformers/squad", "label": "questions", "text_field": "question"},
    {"type": "hf", "dataset": "me/pets"},
    {"type": "hf", "dataset": "./pets"},
    {"type": "text", "path": "~/notes"},
    "python_source",
]


def facts(folder, **changes):
    preset = tiny_preset(folder, data={"sources": SOURCES})
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
    best = {"tokens": 100, "best": {"tokens": 50, "gained": 0.1, "stderr": 0.01, "exported": True}}
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(best) + "\n")
    of_finished = facts(tmp_path, tokens_seen=50, best_loss=2.0).facts
    assert of_finished == {
        "tokens": "100",
        "checkpoint": "that of 50 tokens, whose held-out loss is the lowest of the run",
    }
    assert "unfinished" in facts(tmp_path, tokens_seen=60).facts


def test_what_was_exported_is_what_is_used(tmp_path):
    """The best checkpoint where the end of the run has chosen it, unless it is gone, or another run's; else the last."""
    for tokens, more in ((50, {"best_loss": 2.0}), (60, {}), (100, {})):
        save(tmp_path, make_state(tokens) | {"run_id": "this"} | more)

    def used(**best) -> tuple[int, str]:
        record = {"tokens": 100, "best": {"tokens": 50, "gained": 0.1, "stderr": 0.01, "exported": True} | best}
        (tmp_path / "metrics.jsonl").write_text(json.dumps(record) + "\n")
        state, notice = load_state(tmp_path)
        return state["tokens_seen"], notice

    words = "Exported is lm_best.pth, after 50 tokens: on held-out text it is 0.1000 ± 0.0100 bits per byte better"
    assert used() == (50, f"{words} than the last checkpoint.")
    assert used(exported=False) == (100, "")
    assert "is not better on all held-out text (-0.0100 ± 0.0200" in choice_in_words(
        {"tokens": 50, "gained": -0.01, "stderr": 0.02, "exported": False}
    )
    whole = (tmp_path / BEST).read_bytes()
    (tmp_path / BEST).write_bytes(whole[:-1])
    tokens, notice = used()
    assert (tokens, notice.endswith("The last checkpoint is used instead of the best.")) == (100, True)
    save(tmp_path / "other", make_state(50) | {"run_id": "other", "best_loss": 1.0})
    shutil.copy(tmp_path / "other" / BEST, tmp_path / BEST)
    assert used()[0] == 100
    (tmp_path / BEST).unlink(missing_ok=True)
    assert used()[0] == 100
    (tmp_path / BEST).write_bytes(whole)
    assert used()[0] == 50
    save(tmp_path, make_state(110) | {"run_id": "this"})  # the run went on, with a larger budget
    assert used() == (110, "")


def test_a_checkpoint_that_does_not_fit_itself_is_neither_talked_to_nor_exported(tmp_path, capsys):
    text = preset_json(tmp_path, model={"seq_length": 64, "vocab_size": 300})
    preset = parse_preset(json.dumps(text), "test")
    model = dict(random_model(preset.model, 300).state_dict())
    path, trained = tmp_path / "tokenizer.json", bpe.train(["one two three four " * 9], 300)
    trained.save(str(path))
    good = {**make_state(5), "preset": preset.to_json(), "model": model, "heads": {}}
    good["tokenizer_sha256"] = bpe.fingerprint(trained)
    larger = {**text, "model": {"hidden_size": 8192, "num_layers": 128, "num_heads": 64, "seq_length": 8192}}
    hostile = {
        "does not fit": {"preset": parse_preset(json.dumps(larger), "test").to_json()},  # 400 GB
        "embed.weight does not fit": {
            "model": {name: tensor for name, tensor in model.items() if name != "embed.weight"}
        },
        "norm.weight does not fit": {"model": {**model, "norm.weight": torch.ones(7)}},
        "extra does not fit": {"model": {**model, "extra": torch.ones(7)}},
        "head does not fit": {"heads": {"head": torch.ones(7)}},
        "the preset does not fit": {"preset": json.dumps({**text, "model": {"init_from": "a/b", "seq_length": 64}})},
    }
    for action in ("talk", "export"):
        for reason, changes in hostile.items():
            save(tmp_path, {**good, **changes})
            with pytest.raises(UserError, match=rf"not what its own preset makes: .*{reason}"):
                use(action, tmp_path)
        save(tmp_path, {**good, "preset": '{"name": "x", "model": 7}'})
        with pytest.raises(UserError, match=r"the checkpoint: .*model"):
            use(action, tmp_path)
        save(tmp_path, good)
        tokenizer = path.read_bytes()
        for size in (300, 400):  # another run's may have as many
            bpe.train([f"{number}" for number in range(10_000)], size).save(str(path))
            with pytest.raises(
                UserError, match=f"is not the tokenizer this run was trained with: it has {size} tokens"
            ):
                use(action, tmp_path)
        path.write_bytes(tokenizer[:-9])
        with pytest.raises(UserError, match=r"tokenizer .*tokenizer\.json: cannot be read"):
            use(action, tmp_path)
        path.unlink()
        with pytest.raises(UserError, match=r"tokenizer\.json is missing"):
            use(action, tmp_path)
        path.write_bytes(tokenizer)
    use("export", tmp_path)
    assert "exported to" in capsys.readouterr().out
    assert is_export_of(tmp_path / "hf", good)


def test_an_export_of_earlier_weights_is_made_anew_before_it_is_pushed(tmp_path, monkeypatch, capsys):
    preset = tiny_preset(tmp_path, model={"seq_length": 64, "vocab_size": 300})
    trained = bpe.train(["one two three four " * 9], 300)
    trained.save(str(tmp_path / "tokenizer.json"))
    facts = {"preset": preset.to_json(), "tokenizer_sha256": bpe.fingerprint(trained), "heads": {}}
    model = random_model(preset.model, 300)
    pushed = []
    monkeypatch.setattr(module, "account", lambda: "me")
    monkeypatch.setattr(module, "upload", lambda folder, *_: pushed.append(folder) or "there")
    monkeypatch.setattr(module, "read_line", lambda prompt: "")
    for tokens, exports in ((5, True), (5, False), (6, True)):
        model.norm.weight.data.fill_(1 + tokens)
        save(tmp_path, state := {**make_state(tokens), **facts, "model": dict(model.state_dict())})
        use("push", tmp_path)
        assert ("exported to" in capsys.readouterr().out) is exports
        assert is_export_of(tmp_path / "hf", state)
    assert pushed == [tmp_path / "hf"] * 3
