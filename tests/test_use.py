"""What an export says about where its model comes from."""

import json

from configs.schema import parse_preset
from tests.program import preset_json
from use import run_facts

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
    assert pets == ("me/pets", "https://huggingface.co/datasets/me/pets", "see the dataset's page", "me/pets")
    assert (local.licence, local.dataset) == ("not stated", "")
    assert (notes.licence, notes.dataset) == ("not stated", "")
    assert python.licence.startswith("PSF-2.0")


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
