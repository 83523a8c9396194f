"""docs/presets.md is what the schema says today, and it is complete."""

import pytest

from configs import schema
from configs.catalog import NAMED_SOURCES
from configs.reference import PATH, reference_text

pytestmark = pytest.mark.core

SECTIONS = [field.annotation for field in schema.Preset.model_fields.values() if isinstance(field.annotation, type)]
MODELS = [
    schema.Preset,
    *(section for section in SECTIONS if hasattr(section, "model_fields")),
    *schema.KINDS.values(),
]


def test_the_document_is_up_to_date():
    assert PATH.read_text(encoding="utf-8") == reference_text(), "run `python -m configs.reference`"


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_key_is_described(model):
    rows = [line for line in reference_text().splitlines() if line.startswith("| `")]
    keys = {info.alias or name: info.description for name, info in model.model_fields.items()}
    described = {
        key for key, words in keys.items() if any(row.startswith(f"| `{key}` ") and words in row for row in rows)
    }
    assert described == keys.keys()


def test_every_named_source_and_every_kind_is_listed():
    text = reference_text()
    assert [name for name in NAMED_SOURCES if f"| `{name}` |" not in text] == []
    assert [kind for kind in schema.KINDS if f'### `"type": "{kind}"`' not in text] == []


@pytest.mark.parametrize(
    ("section", "key", "words"),
    [
        ("model", "hidden_size", "a whole number from 16 to 8192, a multiple of 2 | required"),
        ("train", "gradient_clip", "a number above 0 to 1,000,000 | `1.0`"),
        ("train", "matrix_learning_rate", "null or a number above 0 to 10 | see meaning"),
        ("train", "multi_token_weights", "a list of at most 4, each a number from 0 to 10 | `[]`"),
        ("data", "source_weights", "null or a list of at most 200, each a number above 0 to 1,000,000 | see meaning"),
        ("data", "mix_strategy", '"round_robin" or "sequential" or "weighted" | `"round_robin"`'),
        ("data", "tokenizer", "null or text of at most 1,000 characters | see meaning"),
    ],
)
def test_ranges_and_defaults_are_in_words(section, key, words):
    part = reference_text().partition(f"\n## `{section}`\n")[2].partition("\n## ")[0]
    assert f"| `{key}` | {words} | " in part
