"""Writes docs/presets.md, the reference of every key that a preset may hold, from the schema.

`python -m configs.reference` rewrites it; tests/configs/test_reference.py fails if it is outdated.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from configs import schema
from configs.catalog import NAMED_SOURCES
from configs.validation import allowed_values

PATH = Path(__file__).parents[1] / "docs" / "presets.md"
ROOT = schema.Preset
INTRODUCTION = """\
# Presets

This is the reference of every key in a preset. It is generated from `configs/schema.py` by
`python -m configs.reference`; do not edit it.

A preset is one JSON object. Keys that have a default may be omitted, unknown keys are errors, and `null` is
accepted only where it is listed. [The README](../README.md#your-own-data) shows a complete preset.
"""
SOURCES = "## Source objects\n\n`type` selects the kind of a source. Every kind has also these keys:\n"
NAMES = "## Named sources\n\nA source may be one of these names in place of an object.\n"


def reference_text() -> str:
    """Return the text of docs/presets.md: sections, kinds of sources, named sources."""
    parts = ["## Top level\n", _table(ROOT)]
    for key, field in ROOT.model_fields.items():
        if section := _section(field.annotation):
            parts += [f"## `{key}`\n\n{_summary(section)}\n", _table(section)]
    shared = set.intersection(*(set(model.model_fields) - {"type"} for model in schema.KINDS.values()))
    parts += [SOURCES, _table(schema.PythonSource, only=shared)]
    for kind, model in schema.KINDS.items():
        own = set(model.model_fields) - shared
        parts += [f'### `"type": "{kind}"`\n\n{_summary(model)}\n', _table(model, only=own)]
    named = ([f"`{name}`", _reads(source.spec), source.about, source.licence] for name, source in NAMED_SOURCES.items())
    return "\n".join([INTRODUCTION, *parts, NAMES, _rows(["name", "reads", "text", "licence"], named)])


def _section(annotation: Any) -> type[BaseModel] | None:
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


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
        item = "a source's name or object" if parts[0] == schema.SourceEntry else _member(parts[0])
        return f"a list{f' of at most {longest:,}' if longest else ''}, each {item}"
    if _section(annotation):
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
    return "that of each key" if _section(field.annotation) else f"`{json.dumps(field.default)}`"


def _reads(spec: dict[str, Any]) -> str:
    dataset = spec.get("dataset")
    return ", ".join(f"`{part}`" for part in (dataset, spec.get("config")) if part) or f'`"type": "{spec["type"]}"`'


if __name__ == "__main__":
    PATH.write_text(reference_text(), encoding="utf-8")
