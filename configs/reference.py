"""Writes docs/presets.md, the reference of every key that a preset may hold, from the schema.

`python -m configs.reference` rewrites it; tests/configs/test_reference.py fails if it is outdated.
"""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from configs import schema
from configs.catalog import NAMED_SOURCES
from configs.sources import SourceEntry
from configs.validation import allowed_values, section

PATH = Path(__file__).parents[1] / "docs" / "presets.md"
ROOT = schema.Preset
INTRODUCTION = """\
# Presets

This is the reference of every key in a preset. It is generated from `configs/schema.py` by
`python -m configs.reference`; do not edit it.

A preset is one JSON object. Its paths may begin with `~`; relative ones start from the folder in which the program
is started. Keys that have a default may be omitted, unknown keys are errors, and `null` is
accepted only where it is listed. [The README](../README.md#your-own-data) shows a complete preset.
"""
SOURCES = "## Source objects\n\n`type` selects the kind of a source. Every kind has also these keys:\n"
LAYOUTS = """\
### Layouts of data

| data | source object |
| --- | --- |
| one version of a dataset | `{"type": "hf", "dataset": "owner/name", "revision": "v1.0"}` |
| its first tenth, in Parquet | `{"type": "hf", "dataset": "owner/name", "split": "train[:10%]"}` |
| compressed JSON lines | `{"type": "hf", "dataset": "json", "data_files": "pile/*.jsonl.zst", "text_field": "text"}` |
| a spreadsheet | `{"type": "hf", "dataset": "csv", "data_files": "rows.csv", "delimiter": ";", "text_field": "body"}` |
| files of each split | `{"type": "hf", "dataset": "json", "data_files": {"train": "a/*.jsonl", "test": "b.jsonl"}}` |
| files of several formats | `{"type": "hf", "dataset": "./folder", "data_files": ["*.parquet", "*.jsonl"]}` |
| conversations | `{"type": "hf", "dataset": "owner/chat", "messages": "conversations"}` |
| questions and answers | `{"type": "hf", "dataset": "owner/qa", "messages": ["prompt", "completion"]}` |
| compressed text | `{"type": "text", "path": "~/books", "glob": "**/*.txt.zst"}` |

Files ending in .gz, .bz2, .xz and .zst are read as what is inside. Of CSV every cell is taken as it is written, and
a line with more cells than the header is skipped and counted. Without `data_files`, all tables of a folder on this
disk are read, and of a dataset on the Hub those of its most common format.
"""
CONVERSATIONS = """\
### Conversations

With `messages`, a document is a conversation. A turn is `{"role": "user", "content": "..."}` or `{"from": "human",
"value": "..."}`; roles are `system`, `user` (also `human`) and `assistant` (also `gpt`, `model` and others), and the
content is text. Of several columns, all before the last are the question, joined by blank lines where they are not
empty: `["instruction", "input", "output"]`; columns that all hold lists of turns are one conversation, in their order.
A system prompt may come first.

- The model reads all turns, and learns what the assistant says and that it then ends: the loss counts these tokens
  alone, in training and of held-out conversations. The token budget counts all.
- Rows without an answer, with an empty turn, a role that is not known, calls of tools, or anything but text are
  skipped and counted by reason, and so are those whose turns the chat template refuses. One that has a place for
  thoughts, as Qwen3's, is taken to refuse answers with `</think>`: the model is not trained to think.
- A conversation of more than 16,384 characters is cut between two exchanges; each piece has the system prompt. A
  single exchange that is longer is left out.
- A conversation that begins with the same question as a held-out one is not trained on, unless many do.
- The turns are put into tokens by a chat template, `checkpoints/chat_template.jinja`. In a tokenizer trained here, its
  markers `<|system|>`, `<|user|>`, `<|assistant|>` and `<|end|>` are special tokens; no text is ever read as one. With
  `model.init_from` it is the template in that folder (`chat_template.jinja`, or `chat_template` in
  `tokenizer_config.json`), or ChatML if the tokenizer has its tokens, or this program's if it has those; so it is with
  `data.tokenizer`.
- Mix conversations with text: `data.finish` is a good place for them, since a model that is to talk has to know a
  language first.
"""
SMALL = """\
### Small texts

A run always has 100,000,000 tokens, so a small text is read again and again: 1 MB (about 300,000 tokens) some 350
times. Up to about 4 readings teach nearly as much as new text, later ones less and less, and after some tens the
model knows it by heart and gets worse at everything else. The start card says how often folders of text will be
read, if the preset trains on one source or mixes `weighted`.

- `{"type": "text", "path": "~/notes", "repeat": 4}` ends the source after 4 readings, and the run once all sources
  have ended: early, with its report and export. The learning rate then has not fallen, since the schedule is that of
  all tokens, so mixing the text with a larger source is better where that is possible: `["fineweb_edu", {...}]`
  with `"mix_strategy": "weighted"` and `"source_weights": [95, 5]`.
- Held-out text is evaluated at an eighth, a quarter and a half of `train.eval_every_tokens` too, and for a text that is
  read several times until then even before, down to about its first reading.
- Once a source is being read again, `checkpoints/lm_best.pth` is the checkpoint with the lowest held-out loss. At the
  end it is compared with the last one on all held-out text. If it is better by more than the standard error of the
  difference, it is what is exported, what `t` talks to, `b` measures and `p` pushes; report and terminal say so.
"""
NAMES = "## Named sources\n\nA source may be one of these names in place of an object.\n"


def reference_text() -> str:
    """Return the text of docs/presets.md: sections, kinds of sources, named sources."""
    parts = ["## Top level\n", _table(ROOT)]
    for key, model in _sections(ROOT):
        parts += [f"## `{key}`\n\n{_summary(model)}\n", _table(model)]
    shared = set.intersection(*(set(model.model_fields) - {"type"} for model in schema.KINDS.values()))
    parts += [SOURCES, _table(schema.PythonSource, only=shared)]
    for kind, model in schema.KINDS.items():
        own = set(model.model_fields) - shared
        parts += [f'### `"type": "{kind}"`\n\n{_summary(model)}\n', _table(model, only=own)]
    parts += [LAYOUTS, CONVERSATIONS, SMALL]
    named = ([f"`{name}`", _reads(source.spec), source.about, source.licence] for name, source in NAMED_SOURCES.items())
    return "\n".join([INTRODUCTION, *parts, NAMES, _rows(["name", "reads", "text", "licence"], named)])


def _sections(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """Yield the path and the model of every object inside of `model`."""
    for key, field in model.model_fields.items():
        if inner := section(field.annotation):
            yield f"{prefix}{key}", inner
            yield from _sections(inner, f"{prefix}{key}.")


def _summary(model: type[BaseModel]) -> str:
    return " ".join((model.__doc__ or "").split())


def _table(model: type[BaseModel], only: set[str] | None = None) -> str:
    fields = {name: field for name, field in model.model_fields.items() if only is None or name in only}
    rows = ([f"`{f.alias or name}`", allowed(f), _default(f), f.description or ""] for name, f in fields.items())
    return _rows(["key", "allowed", "default", "meaning"], rows)


def _rows(header: list[str], rows: Iterable[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def allowed(field: FieldInfo) -> str:
    """Return the values of a field in words, as in an error message, also for lists and null."""
    annotation, parts = field.annotation, get_args(field.annotation)
    longest = next((limit.max_length for limit in field.metadata if hasattr(limit, "max_length")), None)
    if get_origin(annotation) in (Union, UnionType):
        # null first: after the words for a list it would read as one of the items.
        members = sorted(parts, key=lambda part: part is not NoneType)
        return " or ".join("null" if part is NoneType else _member(part, field) for part in members)
    if get_origin(annotation) is list:
        item = "a source's name or object" if parts[0] == SourceEntry else _member(parts[0])
        return f"a list{f' of at most {longest:,}' if longest else ''}, each {item}"
    if get_origin(annotation) is dict:
        return f"an object{f' of at most {longest:,} keys' if longest else ''}, each {_member(parts[1])}"
    if section(annotation):
        return "an object, see below"
    words = allowed_values(field).removeprefix("allowed: ").removesuffix(f". {field.description}")
    words = re.sub(r"\d{5,}", lambda digits: f"{int(digits[0]):,}", words)
    return f"{words} of at most {longest:,} characters" if longest else words


def _member(annotation: Any, union: FieldInfo | None = None) -> str:
    """Return `allowed` for a list's items, or for a union's member, with the union's limits."""
    member = FieldInfo.from_annotation(annotation)
    member.metadata = [*(union.metadata if union else []), *member.metadata]
    return allowed(member)


def _default(field: FieldInfo) -> str:
    """Return the default as JSON; some depend on other keys, and the description says how."""
    if field.is_required() or "; required" in (field.description or ""):
        return "required"
    if "default" in (field.description or ""):
        return "see meaning"
    is_section = section(field.annotation) and field.default is not None
    return "that of each key" if is_section else f"`{json.dumps(field.default)}`"


def _reads(spec: dict[str, Any]) -> str:
    dataset = spec.get("dataset")
    return ", ".join(f"`{part}`" for part in (dataset, spec.get("config")) if part) or f'`"type": "{spec["type"]}"`'


if __name__ == "__main__":
    PATH.write_text(reference_text(), encoding="utf-8")
