"""The export is the same model: transformers gives our logits, our greedy text and our token ids."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from configs.schema import parse_preset
from lm.export import export_huggingface
from lm.generate import generate
from lm.model import Transformer

END_OF_TEXT = "<|endoftext|>"
PROMPT = "  The réponse:\tdef f(x1):\n\n    return 漢字 12345 'don't' <|endoftext|> "


@pytest.fixture(scope="module")
def tokenizer_path(tmp_path_factory):
    """Byte-level BPE, as the runs train it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["def return the response don't 12345 " * 20], trainer)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def random_model(preset, vocab_size) -> Transformer:
    """Every parameter random, norms and both halves of fused matrices included, so that no mix-up goes unseen."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Transformer(preset.model, vocab_size)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.1)
            else:
                torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return model


def make_preset(tied=False):
    model = {
        "hidden_size": 48,
        "num_layers": 3,
        "num_heads": 4,
        "seq_length": 64,
        "mlp_size": 80,
        "tie_embeddings": tied,
    }
    preset = {"name": "tiny", "description": "A | test.", "model": model, "data": {"sources": [{"type": "python"}]}}
    return parse_preset(json.dumps(preset), "test")


def export(model, preset, tokenizer_path, folder, **options):
    facts = {"trained on": "100 tokens", "machine": "a | b"}
    state = model.state_dict()
    return export_huggingface(state, preset, tokenizer_path, folder, end_of_text=END_OF_TEXT, facts=facts, **options)


@pytest.mark.parametrize("tied", [False, True])
@torch.no_grad()
def test_transformers_computes_the_same_logits_and_the_same_text(tmp_path, tokenizer_path, tied):
    from transformers import AutoModelForCausalLM

    preset = make_preset(tied)
    model = random_model(preset, 300)
    theirs, info = AutoModelForCausalLM.from_pretrained(
        export(model, preset, tokenizer_path, tmp_path / "hf"), output_loading_info=True
    )
    assert type(theirs).__name__ == "Qwen3ForCausalLM"
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert sum(p.numel() for p in theirs.parameters()) == sum(p.numel() for p in model.parameters())
    tokens = torch.randint(300, (2, 64), generator=torch.Generator().manual_seed(1))
    ours = model.output(model(tokens))
    assert ours.std() > 0.5
    torch.testing.assert_close(theirs(tokens).logits, ours, atol=1e-4, rtol=1e-4)
    prompt = tokens[0, :8].tolist()
    greedy = theirs.generate(tokens[:1, :8], max_new_tokens=50, do_sample=False, temperature=None, top_p=None)
    text = list(generate(model, prompt, 50, temperature=0, stop_token=0))
    assert greedy[0, 8:].tolist() in (text, [*text, 0])  # theirs keeps the end-of-text token
    assert text != list(generate(model, prompt, 50, temperature=0, stop_token=0, block_ngram=0))  # blocking mattered


def test_transformers_gives_the_same_token_ids(tmp_path, tokenizer_path):
    from transformers import AutoTokenizer

    preset = make_preset()
    theirs = AutoTokenizer.from_pretrained(export(random_model(preset, 300), preset, tokenizer_path, tmp_path / "hf"))
    ours = Tokenizer.from_file(str(tokenizer_path))
    assert theirs(PROMPT)["input_ids"] == ours.encode(PROMPT).ids
    assert theirs.decode(theirs(PROMPT)["input_ids"]) == PROMPT
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.model_max_length) == (0, 0, 64)


def test_the_model_cards_example_runs_as_printed(tmp_path, tokenizer_path, monkeypatch, capsys):
    preset = make_preset()
    folder = export(random_model(preset, 300), preset, tokenizer_path, tmp_path / "hf")
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert r"a \| b" in card
    assert '"hidden_size": 48' in card
    monkeypatch.chdir(folder)
    exec(re.search(r"```python\n(.*?)```", card, re.DOTALL)[1], {})
    assert capsys.readouterr().out.startswith(f"{END_OF_TEXT}The")


def test_a_second_export_replaces_the_first_whole(tmp_path, tokenizer_path):
    preset = make_preset()
    first, second = random_model(preset, 300), random_model(preset, 300)
    torch.nn.init.zeros_(second.norm.weight)
    export(first, preset, tokenizer_path, tmp_path / "hf", aux_heads={"value.weight": torch.ones(2, 3)})
    heads = load_file(tmp_path / "hf" / "aux_heads.safetensors")
    assert heads["value.weight"].tolist() == [[1.0] * 3] * 2
    (tmp_path / "hf.tmp").mkdir()  # left by an export that was killed
    export(second, preset, tokenizer_path, tmp_path / "hf")
    assert load_file(tmp_path / "hf" / "model.safetensors")["model.norm.weight"].abs().sum() == 0
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]
    assert not (tmp_path / "hf" / "aux_heads.safetensors").exists()
