"""Finds the columns of a dataset that the fields of a preset mean, by the schemas of its first files."""

import json
from collections.abc import Mapping
from typing import Any

from configs.errors import SourceError
from configs.schema import FIELD_ALIASES, HFSource
from configs.text import clip
from data.sources import cells, conversations
from data.sources.base import in_words
from data.sources.hub_messages import how_to_read_pdfs

COLUMNS_NAMED = 20  # in a message


def find_columns(spec: HFSource, files: dict[str, Any], notices: list[str]) -> dict[str, str]:
    """Map fields to columns of any file, through FIELD_ALIASES where a name is missing.

    `files`: the Arrow schema of each, by name. `notices` receives what is not as the preset has
    it. Raises SourceError for a column that no file has, or that holds no text.
    """
    columns, schemas = {}, list(files.values())
    there = list(dict.fromkeys(name for schema in schemas for name in schema.names))
    may_hold, columns_with = cells.may_hold_text, cells.text_columns
    what, keys = "text", ""
    if spec.messages:
        may_hold, columns_with = conversations.may_hold_turns, conversations.turn_columns
        what, keys = "lists of turns", ", each with role or from, and with content, value or text"
    if isinstance(spec.messages, list):
        may_hold, columns_with = conversations.may_hold_exchanges, conversations.exchange_columns
        what = "text or lists of turns"
    for field in spec.columns:
        kinds: list[Any] = []
        for column in (field, *FIELD_ALIASES.get(field, ())):
            kinds = [kind for schema in schemas if (kind := cells.type_of(column, schema)) is not None]
            if kinds or not schemas:
                break
        if schemas and not any(map(may_hold, kinds)):
            texts = list(dict.fromkeys(name for schema in schemas for name in columns_with(schema)))
            if kinds:
                raise SourceError(
                    f"source {spec.label}: {column!r} of {spec.dataset} holds {clip(str(kinds[0]), 80)}, "
                    f"which is not {what}{keys}; name a column that holds {what}: {listed(texts) or 'there is none'}"
                )
            others = (
                "" if texts == there else f" ({what} {'is' if what == 'text' else 'are'} in {listed(texts) or 'none'})"
            )
            marks = [mark for mark in ";\t|" if len(there) == 1 and field in there[0].split(mark) != there]
            advice = f'write "delimiter": {json.dumps(marks[0])}' if marks else "name one of them in the preset"
            if "__key__" in there:
                advice = "these are the suffixes of the files in tar archives: name one, or unpack the archives"
            elif there == ["pdf"]:
                advice = how_to_read_pdfs(spec)
            raise SourceError(
                f"source {spec.label}: {spec.dataset} has no column {field!r}; "
                f"its columns are {listed(there)}{others}; {advice}"
            )
        if column != field:
            notices.append(f"{spec.label}: field {field!r} is not in {spec.dataset}; using {column!r}")
        for name, schema in files.items():
            if missing := lacks(column, schema):
                notices.append(f"{spec.label}: {name} {missing}")
        columns[field] = column
    return columns


def lacks(column: str, schema: Any) -> str:
    """Return what a file, or its beginning, with this Arrow schema lacks of `column`, or ""."""
    if (kind := cells.type_of(column, schema)) is None:
        return f"has no column {column!r}"
    return f"begins with nothing but nulls in {column!r}" if str(kind) == "null" else ""


def no_text(
    spec: HFSource, columns: dict[str, str], files: dict[str, Any], where: str, skipped: Mapping[str, int]
) -> str:
    """Return the message for columns that hold no text, or no conversation, in any row looked at (`where`)."""
    kinds = {
        column: next((str(kind) for schema in files.values() if (kind := cells.type_of(column, schema))), "not there")
        for column in columns.values()
    }
    named = " and ".join(f"{column!r} ({clip(kind, 80)})" for column, kind in kinds.items())
    if spec.messages:
        return (
            f"source {spec.label}: there is no conversation to learn from in {named} of {spec.dataset}, in {where} "
            f"({in_words(skipped)}); name in messages a column with lists of turns, or those of a question and its answer"
        )
    texts = dict.fromkeys(name for schema in files.values() for name in cells.text_columns(schema) if name not in kinds)
    advice = f"name a column that holds text: {listed(list(texts))}" if texts else "no other column can hold text"
    return f"source {spec.label}: there is no text in {named} of {spec.dataset}, in {where}; {advice}"


def listed(names: list[str]) -> str:
    more = f" and {len(names) - COLUMNS_NAMED} more" if len(names) > COLUMNS_NAMED else ""
    return ", ".join(clip(name, 80) for name in names[:COLUMNS_NAMED]) + more
