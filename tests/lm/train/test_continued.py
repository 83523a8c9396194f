"""A run that starts from a model: it is evaluated first, needs that model never again, and ends in its family."""

import re
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file

import main
from configs.errors import PresetError, UserError
from lm.cli.choose import gather_menu
from lm.report.metrics import read_metrics
from lm.report.samples import read_samples
from lm.start_point import open_start_point
from tests.hf_models import LLAMA_3_1, VOCAB, save, transformers_model
from tests.lm.train.test_trainer import stop_at
from tests.program import ALL_HEADS, Program, fingerprint, state_in, tiny_preset, torchrun

pytestmark = pytest.mark.usefixtures("eager")

BUDGET = 9_001


@pytest.fixture
def make(text):
    def preset_of(start, name="on", model=(), **changes):
        model = {"init_from": str(start), "seq_length": 64, **dict(model)}
        return tiny_preset(text, name=name, model=model, **changes)

    return preset_of


def text_lines(folder):
    return [path.read_text() for path in sorted(folder.glob("large/*.txt"))[:60]]


@pytest.mark.slow
@pytest.mark.parametrize(("family", "tied"), [("qwen3", True), ("llama", False)], ids=["qwen3", "llama 3.1"])
def test_a_run_from_a_model_is_resumed_to_the_bit_without_it_and_exported_in_its_family(
    make, text, tmp_path, family, tied, capsys
):
    from transformers import AutoModelForCausalLM

    scaled = {"rope_parameters": LLAMA_3_1} if family == "llama" else {}
    folder = save(
        transformers_model(family, tied=tied, **scaled),
        tmp_path / "model",
        shard="30KB" if tied else "5GB",
        texts=text_lines(text),
    )
    preset = make(folder, auxiliary=ALL_HEADS)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    main.train(preset, token_budget=BUDGET, checkpoint_dir=whole)
    assert f"startsfrom{folder}"[:60] in re.sub(r"\s+", "", capsys.readouterr().out)  # long paths are cut
    with stop_at(1):
        main.train(preset, token_budget=BUDGET, checkpoint_dir=parts)
    shutil.rmtree(folder)
    with stop_at(BUDGET // 2):
        main.train(preset, token_budget=BUDGET, checkpoint_dir=parts)
    main.train(preset, token_budget=BUDGET, checkpoint_dir=parts)
    state = state_in(whole)
    assert fingerprint(state_in(parts)) == fingerprint(state)

    assert state["start_point"]["init_from"] == str(folder)
    assert state["start_point"]["files"].keys() >= {"config.json", "tokenizer.json"}
    for run in (whole, parts):
        evaluated = [line for line in read_metrics(run / "metrics.jsonl") if "eval" in line]
        assert [line["tokens"] for line in evaluated] == [0, 1_024, 2_048, 4_096, 8_192, BUDGET]
        assert evaluated[-1]["eval"]["loss"] < evaluated[0]["eval"]["loss"]
        assert [section.tokens for section in read_samples(run / "samples.md")] == [0, BUDGET]
    report = (whole / "report.md").read_text()
    assert f"| starts from | {folder}: " in report
    assert "## Bits per byte before the first step, and after 9,001 tokens" in report
    assert "Bits per byte before the first step" in (whole / "hf" / "README.md").read_text()

    theirs = AutoModelForCausalLM.from_pretrained(whole / "hf").eval()
    assert theirs.config.model_type == family
    assert theirs.config.rope_parameters.items() >= scaled.get("rope_parameters", {}).items()
    assert theirs.config.tie_word_embeddings == tied
    again = open_start_point(make(whole / "hf"))  # and the export is a start point
    assert again.model.head_dim == 14
    tokens = torch.randint(VOCAB, (1, 64), generator=torch.Generator().manual_seed(1))
    from lm.inference.load import load_model

    ours, _, _ = load_model(state, whole)
    with torch.no_grad():
        torch.testing.assert_close(theirs(tokens).logits, ours.output(ours(tokens)), atol=1e-4, rtol=0)


def test_the_first_checkpoint_is_the_model_itself(make, text, tmp_path, monkeypatch):
    """Saved before the first step; and the preset's rates are a small share of a new model's."""
    folder = save(transformers_model("llama"), tmp_path / "model", texts=text_lines(text))
    monkeypatch.setattr("lm.train.trainer.Trainer.next_step", lambda trainer, on_status: None)
    main.train(make(folder), token_budget=BUDGET, checkpoint_dir=tmp_path / "run")
    state = state_in(tmp_path / "run")
    assert state["tokens_seen"] == 0
    stored = load_file(folder / "model.safetensors")
    assert torch.equal(state["model"]["output.weight"], stored["lm_head.weight"])
    assert torch.equal(
        state["model"]["layers.1.attention.qkv.weight"][56:84], stored["model.layers.1.self_attn.k_proj.weight"]
    )


@pytest.mark.slow
def test_a_run_is_continued_from_its_own_export_which_is_archived_meanwhile(make, text, tmp_path):
    folder, run = save(transformers_model("llama"), tmp_path / "model", texts=text_lines(text)), tmp_path / "run"
    main.train(make(folder), token_budget=2_000, checkpoint_dir=run)
    weights = load_file(run / "hf" / "model.safetensors")
    main.train(make(run / "hf", name="further"), token_budget=2_000, checkpoint_dir=run, fresh=True)
    (archived,) = (run / "archive").iterdir()
    assert torch.equal(
        load_file(archived / "hf" / "model.safetensors")["model.norm.weight"], weights["model.norm.weight"]
    )
    first, *_, last = (line["eval"]["loss"] for line in read_metrics(run / "metrics.jsonl") if "eval" in line)
    *_, before = (line["eval"]["loss"] for line in read_metrics(archived / "metrics.jsonl") if "eval" in line)
    assert first == pytest.approx(before)
    assert last < first


def test_an_edit_that_contradicts_the_run_or_its_model_is_refused(make, text, tmp_path):
    folder = save(transformers_model("llama"), tmp_path / "model", texts=text_lines(text))
    with pytest.raises(PresetError, match=r"model.num_layers: 3 in the preset, 2 in"):
        main.train(make(folder, model={"num_layers": 3}), token_budget=BUDGET, checkpoint_dir=tmp_path / "run")
    assert not (tmp_path / "run" / "tokenizer.json").exists()
    with stop_at(1):
        main.train(make(folder), token_budget=BUDGET, checkpoint_dir=tmp_path / "run")
    for model, words in (({"num_layers": 3}, "model.num_layers: 2 -> 3"), ({"seq_length": 32}, "seq_length: 64 -> 32")):
        with pytest.raises(PresetError, match=words):
            main.train(make(folder, model=model), token_budget=BUDGET, checkpoint_dir=tmp_path / "run")
    with pytest.raises(PresetError, match=r"model\.init_from"):
        main.train(make("some/model"), token_budget=BUDGET, checkpoint_dir=tmp_path / "run")
    (tmp_path / "run" / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="a run from a model needs it: copy it there"):
        main.train(make(folder), token_budget=BUDGET, checkpoint_dir=tmp_path / "run")
    with pytest.raises(UserError, match="cannot be read"):
        main.train(make(tmp_path / "none"), token_budget=BUDGET, checkpoint_dir=tmp_path / "other")


@pytest.mark.slow
def test_a_model_of_the_hub_is_pinned_and_a_resumed_run_asks_for_nothing(hub, make, text, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("data.sources.hub_client.RETRY_DELAYS", (0.01,))
    folder = save(transformers_model("llama"), tmp_path / "model", texts=text_lines(text))
    hub.add("some/llama", {path.name: path for path in folder.iterdir()})
    preset = make("some/llama")
    (tmp_path / "00_on.json").write_text(preset.to_json())
    (tmp_path / "run").mkdir()
    (entry,) = gather_menu(tmp_path / "run", tmp_path).entries
    assert (entry.preset.model.hidden_size, entry.num_parameters, entry.obstacle) == (40, 56_520, "")
    with stop_at(1):
        main.train(preset, token_budget=2_000, checkpoint_dir=tmp_path / "run")
    commit = hub.revision("some/llama")
    assert state_in(tmp_path / "run")["start_point"]["commit"] == commit
    assert not any("README" in request for request in hub.requests)
    hub.repos.clear()
    hub.requests.clear()
    shutil.rmtree(tmp_path / "hub")
    main.train(preset, token_budget=2_000, checkpoint_dir=tmp_path / "run")
    assert hub.requests == []
    assert (
        f"| starts from | some/llama at commit {commit[:12]}: 1 file of weights, "
        in (tmp_path / "run" / "report.md").read_text()
    )
    (entry,) = gather_menu(tmp_path / "run", tmp_path).entries
    assert entry.obstacle == "some/llama is not available"
    with pytest.raises(UserError, match="some/llama does not exist on the Hub or is private"):
        main.train(preset, token_budget=2_000, checkpoint_dir=tmp_path / "run", fresh=True)


@pytest.mark.slow
def test_two_processes_start_from_the_same_weights(text, tmp_path):
    """What the second rank evaluates and trains is the model too: its weights are the first rank's."""
    folder = save(transformers_model("qwen3", tied=True), tmp_path / "model", texts=text_lines(text))
    found = []
    for number in (1, 2):
        program = Program(tmp_path / str(number), text, token_budget=2_000)
        program.add("00_on", model={"init_from": str(folder), "seq_length": 64})
        try:
            result = program.run("0\n", launcher=torchrun(2) if number == 2 else (sys.executable,))
        finally:
            program.close()
        assert result.code == 0, result.err
        found.append(
            [line["eval"]["loss"] for line in read_metrics(program.checkpoints / "metrics.jsonl") if "eval" in line]
        )
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-3)
    assert found[1][-1] < found[1][0]
