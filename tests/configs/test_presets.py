"""The shipped presets and the generated schema: all valid, current and described."""

import json
from pathlib import Path

import pytest

from configs.catalog import FIELD_ALIASES, NAMED_SOURCES
from configs.schema import KINDS, Preset, load_preset, parse_preset, schema_text
from lm.cli.choose import presets_in
from lm.cli.menu import Choice, Menu, MenuEntry, ask, preset_paths, render_menu
from lm.runtime import estimate
from lm.runtime.machine import Machine
from lm.schedule import learning_rate_factor

pytestmark = pytest.mark.core

CONFIGS = Path(__file__).parents[2] / "configs"
SHIPPED = preset_paths(CONFIGS)

# The preset of the project's README: it must be accepted exactly as written.
README_PRESET = r"""
{"name":"qa_plus_wiki",
 "model":{"hidden_size":256,"num_layers":3,"num_heads":4,"seq_length":256},
 "train":{"per_gpu_batch_size":128,"accumulation_steps":4,"eval_tokens":2000000},
 "data":{"sources":[{"type":"hf","dataset":"sentence-transformers/natural-questions","split":"train","fields":["question","answer"],
          "format":"Q: {question}\nA: {answer}"},"wikipedia"],"mix_strategy":"round_robin","min_text_length":50},
 "auxiliary":{"enable_policy":true,"enable_value":true,"enable_dynamics":true,"enable_span_contrastive":true,"policy_kl_weight":0.05,
  "value_weight":0.05,"dynamics_weight":0.05,"span_contrastive_weight":0.05,"span_mask_fraction":0.15,
  "span_contrastive_temperature":0.07,"span_l2_normalize":true,"enable_adaptive_sources":true,"adaptive_interval_tokens":5000000}}
"""


def forward_backward_flops(preset: Preset) -> int:
    """FLOPs a token, forward and backward, causal attention counted as the half it is."""
    m = preset.model
    matrices = m.num_layers * (4 * m.hidden_size**2 + 3 * m.hidden_size * m.mlp_size) + m.hidden_size * m.vocab_size
    return 6 * matrices + 6 * m.num_layers * m.seq_length * m.hidden_size


def test_the_presets_ship_in_the_order_of_the_menu():
    names = ["00_best_general", "01_best_qa", "02_offline_python", "03_small_general", "04_babylm_strict"]
    names += ["05_chat", "06_my_texts"]
    assert [path.stem for path in SHIPPED] == names


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_preset_is_valid_and_presentable(path):
    preset = load_preset(path)
    assert path.stem.endswith(preset.name)
    assert path.parent / preset.schema_file == CONFIGS / "preset.schema.json"  # where editors look
    assert preset.description.endswith(".")
    assert len(preset.description) <= 76  # one line of the menu
    assert parse_preset(preset.to_json(), "stored") == preset
    tokens_per_step = preset.train.per_gpu_batch_size * preset.train.accumulation_steps * preset.model.seq_length
    assert tokens_per_step in (16_384, 32_768)


def test_the_benchmarks_preset_of_english_is_valid():
    path = CONFIGS.parent / "benchmarks" / "english.json"
    preset = load_preset(path)
    assert (path.parent / preset.schema_file).resolve() == CONFIGS / "preset.schema.json"
    assert [source.label for source in preset.data.all_sources] == ["wikipedia", "books"]


def test_a_copy_with_a_name_of_its_own_is_in_the_menu(tmp_path):
    text = SHIPPED[0].read_text(encoding="utf-8")
    (tmp_path / "07_mine.json").write_text(text.replace('"best_general"', '"mine"'), encoding="utf-8")
    [(path, preset)] = presets_in(tmp_path).items()
    menu = Menu([MenuEntry(path, preset)])
    assert "\n07  mine " in render_menu(menu)
    assert ask(menu, read=lambda _: "mine") == Choice("preset", path)


@pytest.mark.parametrize("path", SHIPPED[:2], ids=lambda path: path.stem)
def test_the_best_presets_fit_a_consumer_gpu(path):
    preset = load_preset(path)
    consumer_gpu = Machine("here", "cuda", "RTX 4090", True, True, 150e12)  # what its bfloat16 products come to
    assert estimate.seconds_to_budget(preset, consumer_gpu, 100_000_000) < 20 * 60
    assert estimate.memory_bytes(preset, "cuda") < 7e9  # and an 8 GB card holds it
    assert preset.auxiliary.any_head
    assert preset.auxiliary.enable_adaptive_sources


def test_the_small_general_preset_reads_the_same_and_fits_a_patient_cpu():
    small, best = (load_preset(CONFIGS / name) for name in ("03_small_general.json", "00_best_general.json"))
    assert (small.data, small.auxiliary) == (best.data, best.auxiliary)
    flops = forward_backward_flops(small) * 1.05  # heads cost about 5%
    assert flops * 5_000_000 / 350e9 < 25 * 60  # two CPU cores, a twentieth of a run


def test_the_babylm_preset_keeps_the_checkpoints_that_the_challenge_asks_for():
    preset = load_preset(CONFIGS / "04_babylm_strict.json")
    assert list(preset.train.milestones) == [f"chck_{millions}M" for millions in [*range(1, 10), *range(10, 101, 10)]]
    assert preset.train.milestones["chck_7M"] == 7_000_000
    [source] = preset.data.all_sources
    assert (source.dataset, source.rows_per_document) == ("BabyLM-community/BabyLM-2026-Strict", 100)


def test_the_chat_preset_ends_with_conversations_that_are_hardly_repeated():
    preset = load_preset(CONFIGS / "05_chat.json")
    best = load_preset(CONFIGS / "00_best_general.json")
    assert (preset.model, preset.train) == (best.model, best.train)
    finish = preset.data.finish
    conversations = {source.label for source in preset.data.all_sources if source.messages}
    assert conversations == {"smol_smoltalk", "everyday_conversations", "dolly", "oasst2"}
    assert not conversations & set(preset.data.sources)
    shares = dict(zip(finish.sources, finish.source_weights, strict=True))
    assert sum(shares.values()) == 100
    assert sum(shares[label] for label in conversations) > 80
    # Tokens of the smallest: 2,260 conversations of about 170, 15,000 of 220, 4,700 of 600.
    tokens = {"everyday_conversations": 380_000, "dolly": 3_300_000, "oasst2": 2_800_000}
    for label, size in tokens.items():
        assert shares[label] / 100 * finish.share * 100_000_000 < 2 * size, label


def test_the_preset_that_continues_a_model_reads_ones_own_folder_and_watches_what_is_forgotten():
    preset = load_preset(CONFIGS / "06_my_texts.json")
    assert preset.model.init_from == "HuggingFaceTB/SmolLM2-135M"
    [mine] = preset.data.trained_sources
    assert (mine.type, mine.path, mine.repeat) == ("text", "~/my_texts", 4)
    assert preset.data.watch == ["fineweb_edu"]
    small = 4 * 200_000 / 4  # tokens of four readings of 0.2 MB
    assert learning_rate_factor(small / 2 / 100e6, preset.train.warmup_fraction, preset.train.decay_fraction) == 1


def test_offline_preset_needs_no_network_and_suits_two_cpu_cores():
    preset = load_preset(CONFIGS / "02_offline_python.json")
    assert [source.type for source in preset.data.all_sources] == ["python"]
    assert forward_backward_flops(preset) <= 17_500_000
    assert not preset.auxiliary.any_head


def test_the_readme_preset_is_accepted_as_written():
    preset = parse_preset(README_PRESET, "README.md")
    assert [source.label for source in preset.data.all_sources] == [
        "sentence-transformers/natural-questions",
        "wikipedia",
    ]
    assert preset.data.all_sources[0].format == "Q: {question}\nA: {answer}"
    assert preset.auxiliary.adaptive_max_weight == 3.0


@pytest.mark.parametrize("name", NAMED_SOURCES)
def test_named_source_is_a_valid_source_with_a_licence(name):
    source = NAMED_SOURCES[name]
    assert KINDS[source.spec["type"]].model_validate(source.spec)
    assert source.licence
    assert source.about


def test_an_alias_never_names_itself():
    assert all(name not in others for name, others in FIELD_ALIASES.items())


def test_the_schema_file_is_current():
    on_disk = (CONFIGS / "preset.schema.json").read_text(encoding="utf-8")
    assert on_disk == schema_text(), "run: python -m configs.schema"


def test_every_knob_is_described_for_the_editor():
    schema = json.loads(schema_text())
    for title, section in {"Preset": schema, **schema["$defs"]}.items():
        for key, value in section["properties"].items():
            assert value.get("description", "").endswith("."), f"{title}.{key} has no sentence"
