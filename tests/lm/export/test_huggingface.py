"""The export is the same model: transformers gives our logits, our greedy text and our token ids."""

import errno
import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from configs.errors import DiskError
from configs.schema import parse_preset
from lm.export.huggingface import export_huggingface, keep_other_files, replaced_folder
from lm.export.model_card import RunFacts, SourceFacts
from lm.inference.decoder import Decoder
from lm.inference.generate import generate
from lm.report.samples import Section
from tests import hf_models
from tests.lm.random_model import random_model, random_norms

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


def model_of(preset, vocab_size):
    """Norms and both halves of fused matrices random too, so that no mix-up goes unseen."""
    return random_norms(random_model(preset.model, vocab_size, std=0.1))


def make_preset(tied=False, hidden_size=48, **more):
    model = {
        "hidden_size": hidden_size,
        "num_layers": 3,
        "num_heads": 4,
        "seq_length": 64,
        "mlp_size": 80,
        "tie_embeddings": tied,
        **more,
    }
    preset = {"name": "tiny", "description": "A | test.", "model": model, "data": {"sources": [{"type": "python"}]}}
    return parse_preset(json.dumps(preset), "test")


RECORDS = [
    {"tokens": 50, "loss": 3.0, "tokens_per_second": 10.0},
    {
        "tokens": 100,
        "eval": {
            "loss": 2.5,
            "bits_per_byte": 1.25,
            "tokens": 30,
            "per_source": {"pets": {"loss": 2.5, "bits_per_byte": 1.25, "tokens": 30}},
        },
        "mixture": {"pets": 0.75, "py": 0.25},
    },
]
RUN = RunFacts(
    {"tokens": "100 in 3 steps", "machine": "a | b"},
    [
        SourceFacts("pets", "cats and dogs", "CC0-1.0", "me/pets", "en"),
        SourceFacts("py", "Python", "PSF-2.0", language="code"),
        SourceFacts("notes", "local files", "not stated"),
    ],
    RECORDS,
    [Section(40, "an early one"), Section(100, "a late one")],
)


def export(model, preset, tokenizer_path, folder, run=RUN, **options):
    state = model.state_dict()
    return export_huggingface(state, preset, tokenizer_path, folder, run=run, **options)


LLAMA = {"qk_norm": False, "num_kv_heads": 2, "head_dim": 10, "rope_theta": 500_000, "norm_eps": 1e-5}
LLAMA_3_1 = {key: value for key, value in hf_models.LLAMA_3_1.items() if key != "rope_theta"}


@pytest.mark.parametrize(
    ("more", "name"),
    [
        ({}, "Qwen3ForCausalLM"),
        ({"tied": True}, "Qwen3ForCausalLM"),
        (LLAMA, "LlamaForCausalLM"),
        (LLAMA | {"rope_scaling": LLAMA_3_1}, "LlamaForCausalLM"),
    ],
    ids=["untied", "tied", "a Llama", "a Llama 3.1"],
)
@torch.no_grad()
def test_transformers_computes_the_same_logits_and_the_same_text(tmp_path, tokenizer_path, more, name):
    from transformers import AutoModelForCausalLM

    preset = make_preset(**more)
    model = model_of(preset, 300)
    theirs, info = AutoModelForCausalLM.from_pretrained(
        export(model, preset, tokenizer_path, tmp_path / "hf"), output_loading_info=True
    )
    assert type(theirs).__name__ == name
    assert f"Architecture `{name}`" in (tmp_path / "hf" / "README.md").read_text()
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert sum(p.numel() for p in theirs.parameters()) == sum(p.numel() for p in model.parameters())
    tokens = torch.randint(300, (2, 64), generator=torch.Generator().manual_seed(1))
    ours = model.output(model(tokens))
    assert ours.std() > 0.5
    torch.testing.assert_close(theirs(tokens).logits, ours, atol=1e-4, rtol=0)
    prompt = tokens[0, :8].tolist()
    greedy = theirs.generate(tokens[:1, :8], max_new_tokens=50, do_sample=False, temperature=None, top_p=None)
    text = list(generate(Decoder(model), prompt, 50, temperature=0, stop_tokens=[0]))
    assert greedy[0, 8:].tolist() in (text, [*text, 0])  # theirs keeps the end-of-text token
    blocked = list(generate(Decoder(model), prompt, 50, temperature=0, stop_tokens=[0], block_ngram=3))
    assert text != blocked  # the export's settings block nothing


def test_transformers_gives_the_same_token_ids(tmp_path, tokenizer_path):
    from transformers import AutoTokenizer

    preset = make_preset()
    theirs = AutoTokenizer.from_pretrained(export(model_of(preset, 300), preset, tokenizer_path, tmp_path / "hf"))
    ours = Tokenizer.from_file(str(tokenizer_path))
    assert theirs(PROMPT)["input_ids"] == [0, *ours.encode(PROMPT).ids]  # as every document of the stream began
    assert theirs("a", "b")["input_ids"] == [0, *ours.encode("a").ids, 0, *ours.encode("b").ids]
    assert theirs(PROMPT, add_special_tokens=False)["input_ids"] == ours.encode(PROMPT).ids
    assert theirs.decode(theirs(PROMPT)["input_ids"]) == END_OF_TEXT + PROMPT
    assert theirs.decode(
        theirs(PROMPT.replace(END_OF_TEXT, ""))["input_ids"], skip_special_tokens=True
    ) == PROMPT.replace(END_OF_TEXT, "")
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.model_max_length) == (0, 0, 64)


def test_a_classifier_made_of_the_export_takes_batches(tmp_path, tokenizer_path):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    preset = make_preset()
    folder = export(model_of(preset, 300), preset, tokenizer_path, tmp_path / "hf")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3).eval()
    texts = ["def f(x): return x", "a"]
    with torch.no_grad():
        together = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits
        alone = torch.cat([model(**tokenizer(text, return_tensors="pt")).logits for text in texts])
    assert together.std() > 0
    torch.testing.assert_close(together, alone)


def test_the_model_cards_example_runs_as_printed(tmp_path, tokenizer_path, monkeypatch, capsys):
    preset = make_preset()
    folder = export(model_of(preset, 300), preset, tokenizer_path, tmp_path / "hf")
    card = (folder / "README.md").read_text(encoding="utf-8")
    monkeypatch.chdir(folder)
    exec(re.search(r"```python\n(.*?)```", card, re.DOTALL)[1], {})
    assert capsys.readouterr().out.startswith(f"{END_OF_TEXT}The")


def test_the_model_card_says_what_the_run_was(tmp_path, tokenizer_path):
    from huggingface_hub import ModelCard

    preset = make_preset()
    folder = export(model_of(preset, 300), preset, tokenizer_path, tmp_path / "hf")
    card = ModelCard.load(folder / "README.md")
    assert card.data.datasets == ["me/pets"]
    assert card.data.license == "other"  # nobody but its owner can say
    assert card.data.language == ["en", "code"]
    assert card.data.model_name == "tiny"
    (result,) = card.data.eval_results
    assert (result.dataset_type, result.metric_type, result.metric_value) == ("me/pets", "bits_per_byte", 1.25)
    for part in (
        "| tokens | 100 in 3 steps |",
        r"| machine | a \| b |",
        "![loss, bits per byte, mixture and speed over tokens](curves.png)",
        "| pets | cats and dogs | 75.0% | CC0-1.0 |",
        "| py | Python | 25.0% | PSF-2.0 |",
        "## Held-out text after 100 tokens",
        "| all | 1.2500 |",
        "## Samples after 100 tokens\n\na late one",
        "## Limits",
        '"hidden_size": 48',
    ):
        assert part in card.content, part
    assert "an early one" not in card.content
    assert "model.gguf" not in card.content
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_each_source_has_results_of_its_own_and_no_folder_of_its_users_disk_is_published(tmp_path, tokenizer_path):
    from huggingface_hub import ModelCard

    sources = [{"type": "text", "path": f"/home/ann/{name}", "label": name} for name in ("acme-lawsuit", "diary")]
    given = {"name": "x", "data": {"sources": sources}, "model": {"hidden_size": 48, "num_layers": 3, "num_heads": 4}}
    preset = parse_preset(json.dumps(given | {"model": given["model"] | {"seq_length": 64, "mlp_size": 80}}), "test")
    measured = {
        name: {"loss": 1.0, "bits_per_byte": number, "tokens": 9}
        for number, name in enumerate(("acme-lawsuit", "diary"))
    }
    evaluation = {"loss": 1.0, "bits_per_byte": 0.5, "tokens": 18, "per_source": measured}
    run = RunFacts(
        {},
        [SourceFacts(name, "local files", "not stated") for name in measured],
        [{"tokens": 1, "eval": evaluation}],
        [],
    )
    folder = export(model_of(preset, 300), preset, tokenizer_path, tmp_path / "hf", run)
    card = ModelCard.load(folder / "README.md")
    found = {(result.dataset_name, result.metric_value) for result in card.data.eval_results}
    assert found == {("acme-lawsuit, held-out documents", 0), ("diary, held-out documents", 1)}
    assert "/home/ann" not in (folder / "README.md").read_text()
    assert '"path": "diary"' in card.content


def test_a_run_that_wrote_nothing_down_has_a_card_too(tmp_path, tokenizer_path):
    preset = make_preset()
    run = RUN._replace(records=[], samples=[])
    folder = export(model_of(preset, 300), preset, tokenizer_path, tmp_path / "hf", run=run)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "| pets | cats and dogs | not measured yet | CC0-1.0 |" in card
    assert "curves.png" not in card
    assert "model-index" not in card
    assert not (folder / "curves.png").exists()


def test_a_second_export_replaces_the_first_whole(tmp_path, tokenizer_path):
    preset = make_preset()
    first, second = model_of(preset, 300), model_of(preset, 300)
    torch.nn.init.zeros_(second.norm.weight)
    export(first, preset, tokenizer_path, tmp_path / "hf", aux_heads={"value.weight": torch.ones(2, 3)})
    heads = load_file(tmp_path / "hf" / "aux_heads" / "model.safetensors")
    assert heads["value.weight"].tolist() == [[1.0] * 3] * 2
    # vLLM reads whatever has this suffix.
    assert [path.name for path in (tmp_path / "hf").glob("*.safetensors")] == ["model.safetensors"]
    assert not {path.stat().st_mode & 0o777 for path in (tmp_path / "hf").rglob("*.*")} - {0o644}
    (tmp_path / "hf" / "aux_heads.safetensors").touch()  # of an earlier version
    (tmp_path / ".hf.tmp").mkdir()  # left by an export that was killed
    export(second, preset, tokenizer_path, tmp_path / "hf")
    assert load_file(tmp_path / "hf" / "model.safetensors")["model.norm.weight"].abs().sum() == 0
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]
    assert not list((tmp_path / "hf").glob("aux_heads*"))


def test_an_export_that_the_disk_refuses_leaves_the_one_before(tmp_path, monkeypatch):
    folder, rename = tmp_path / "hf", Path.rename

    def refuse_the_last_name(path: Path, target: Path) -> Path:
        if target == folder and path.name == ".hf.tmp":
            raise OSError(errno.EIO, "Input/output error")
        return rename(path, target)

    def write(content: str) -> None:
        with replaced_folder(folder) as temporary:
            (temporary / "model").write_text(content)

    write("first")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", refuse_the_last_name)
        with pytest.raises(DiskError, match=r"cannot write .*hf: Input/output error"):
            write("second")
    assert [path.name for path in tmp_path.rglob("*")] == ["hf", "model"]
    assert (folder / "model").read_text() == "first"

    for name in ("hf.old", "hf.tmp"):  # copies that a user keeps
        (tmp_path / name).mkdir()
        (tmp_path / name / "model").write_text(name)
    folder.rename(tmp_path / ".hf.old")  # killed between the two renames
    with pytest.raises(ZeroDivisionError), replaced_folder(folder):
        raise ZeroDivisionError
    assert (folder / "model").read_text() == "first"
    write("third")
    assert (folder / "model").read_text() == "third"
    assert all((tmp_path / name / "model").read_text() == name for name in ("hf.old", "hf.tmp"))


def test_a_model_card_that_was_edited_is_kept_beside_the_new_one(tmp_path, tokenizer_path):
    preset = make_preset()

    def export_again() -> set[str]:
        export(model_of(preset, 300), preset, tokenizer_path, tmp_path / "hf")
        return {path.name for path in (tmp_path / "hf").glob("README*")}

    export_again()
    assert export_again() == {"README.md"}
    card = tmp_path / "hf" / "README.md"
    mine = card.read_text().replace("license: other", "license: mit")
    card.write_text(mine)
    for _ in range(2):
        assert export_again() == {"README.md", "README.new.md"}
        assert card.read_text() == mine
    assert "license: other" in (tmp_path / "hf" / "README.new.md").read_text()


def test_what_others_have_put_into_the_export_stays_there(tmp_path, tokenizer_path):
    preset, folder = make_preset(), tmp_path / "hf"
    export(model_of(preset, 300), preset, tokenizer_path, folder, gguf=True)
    theirs = {"LICENSE": "MIT", "model-Q4_K_M.gguf": "quantized", "lora/adapter.json": "{}"}
    (folder / "lora").mkdir()
    for name, content in theirs.items():
        (folder / name).write_text(content)
    (folder / "link").symlink_to("LICENSE")
    for _ in range(2):
        export(model_of(preset, 300), preset, tokenizer_path, folder)
        assert {name: (folder / name).read_text() for name in theirs} == theirs
        assert (folder / "link").is_symlink()
        assert not (folder / "model.gguf").exists()  # of the weights before
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_a_file_of_others_that_cannot_be_copied_is_a_message(tmp_path, monkeypatch):
    """Of another user, in a folder of the export: neither a link to it nor a copy is allowed."""

    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    (tmp_path / "hf" / "cache").mkdir(parents=True)
    (tmp_path / "hf" / "cache" / "theirs").touch()
    monkeypatch.setattr("os.link", refuse)
    monkeypatch.setattr("shutil.copy2", refuse)
    refused = pytest.raises(DiskError, match=r"cache.theirs cannot be copied: .*Permission denied")
    with refused, replaced_folder(tmp_path / "hf") as temporary:
        keep_other_files(tmp_path / "hf", temporary)
    assert (tmp_path / "hf" / "cache" / "theirs").exists()


def test_a_link_in_place_of_the_export_is_replaced_and_its_target_left_alone(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine").write_text("mine")
    (tmp_path / "hf").symlink_to(tmp_path / "elsewhere")
    for content in ("first", "second"):
        with replaced_folder(tmp_path / "hf") as temporary:
            (temporary / "model").write_text(content)
        assert (tmp_path / "hf" / "model").read_text() == content
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["mine"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "hf"]
