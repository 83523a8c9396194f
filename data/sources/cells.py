"""Cells of Arrow tables as text, and documents made of several of them.

Text is strings, UTF-8 bytes, numbers, decimals, dates and times, and lists of them line by line,
but not lists of numbers, which are token ids or vectors. A name with dots is the column of that
name or, if there is none, a field inside of a column: `meta.text`, or `answers.text` in a list.
Nothing is cast to a common type, so files whose types differ are read alike.
"""

import json
import re
from collections.abc import Callable, Iterator
from datetime import date, datetime, time
from decimal import Decimal
from string import Formatter
from typing import Any

import pyarrow as pa
from pyarrow import types

from data.sources.base import Document

NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")
NUMBERS = re.compile(rf"\[?\s*{NUMBER.pattern}(?:[\s,;]+{NUMBER.pattern})*\s*\]?")  # and nothing else
FEW_NUMBERS = 8  # in a cell, on average; fewer may be dates, sizes, or scores


def locate(name: str, columns: list[str]) -> tuple[str, list[str]] | None:
    """Return the column that `name` is in, and the fields to follow inside of it, if it is there."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        if (column := ".".join(parts[:end])) in columns:
            return column, parts[end:]
    return None


def type_of(name: str, schema: pa.Schema) -> pa.DataType | None:
    """Return the type of the cells that `name` stands for; None if there are none.

    It is null if nothing is known of it, and JSON if it may be anything.
    """
    if (found := locate(name, schema.names)) is None or schema.get_field_index(found[0]) < 0:
        return None
    kind, in_list = schema.field(found[0]).type, False
    for key in found[1]:
        while is_list(kind):
            kind, in_list = kind.value_type, True
        if types.is_null(kind) or isinstance(kind, pa.JsonType):
            return kind
        if not types.is_struct(kind) or kind.get_field_index(key) < 0:
            return None
        kind = kind.field(key).type
    return pa.list_(kind) if in_list else kind


def may_hold_text(kind: pa.DataType) -> bool:
    if is_list(kind):
        return not is_number(kind.value_type) and may_hold_text(kind.value_type)
    return not (types.is_nested(kind) or types.is_duration(kind))


def text_columns(schema: pa.Schema) -> list[str]:
    """Return the names under which text can be read, fields inside of columns included."""

    def names(name: str, kind: pa.DataType) -> Iterator[str]:
        while is_list(kind) and not may_hold_text(kind):
            kind = kind.value_type
        if types.is_struct(kind):
            for field in kind:
                yield from names(f"{name}.{field.name}", field.type)
        elif may_hold_text(kind) and not is_number(kind) and not types.is_null(kind):
            yield name

    return [name for field in schema for name in names(field.name, field.type)]


def read_cells(table: pa.Table, name: str) -> list[Any]:
    """Return the cells of `name`, one a row, as Python values; None where there is none."""
    if (found := locate(name, table.column_names)) is None:
        return [None] * len(table)
    column, path = found
    return [follow(cell, path) for cell in to_python(table[column])]


def to_python(column: pa.ChunkedArray) -> list[Any]:
    """Return the values of a column, with U+FFFD for bytes in strings that are not UTF-8, and text for dates that
    Python has not."""
    try:
        values = column.to_pylist()
    except UnicodeDecodeError:
        values = [with_replacements(cell) for cell in column.cast(with_leaves(column.type, as_bytes)).to_pylist()]
    except (OverflowError, ValueError):  # beyond the year 9999
        values = [cell_of_dates(column.slice(row, 1)) for row in range(len(column))]
    if "arrow.json" in str(column.type) or "float" in str(column.type):
        return [as_written(cell, column.type) for cell in values]
    return values


def cell_of_dates(column: pa.ChunkedArray) -> Any:
    """Return the value of a column of one row."""
    try:
        return column[0].as_py()
    except (OverflowError, ValueError):
        return column.cast(with_leaves(column.type, as_text))[0].as_py()


def as_written(cell: Any, kind: pa.DataType) -> Any:
    """Return a cell with values for the JSON in it, which is how the library keeps values of several types, and with
    0.1 for what is nearest to it among numbers of 32 or 16 bits."""
    if cell is None:
        return None
    if isinstance(kind, pa.JsonType):
        try:
            return json.loads(cell)
        except RecursionError:
            return None
    if types.is_float32(kind) or types.is_float16(kind):
        return float(str(kind.to_pandas_dtype()(cell)))
    if is_list(kind):
        return [as_written(item, kind.value_type) for item in cell]
    if types.is_struct(kind):
        return {field.name: as_written(cell[field.name], field.type) for field in kind}
    return cell


def follow(cell: Any, path: list[str]) -> Any:
    for i, key in enumerate(path):
        if isinstance(cell, list):
            return [follow(item, path[i:]) for item in cell]
        cell = cell.get(key) if isinstance(cell, dict) else None
    return cell


def cell_text(cell: Any) -> str | None:
    """Return a cell as text; None if it holds none, or lists in lists without end."""
    try:
        return _text_of(cell)
    except RecursionError:
        return None


def _text_of(cell: Any) -> str | None:
    """Return what `cell_text` does. A time of midnight is left out of a date, and ".0" of a
    number: whole numbers become fractions where one of their column is one, or is missing."""
    match cell:
        case str():
            return cell
        case bytes():
            try:
                return cell.decode()
            except UnicodeDecodeError:
                return None
        case Decimal():
            return f"{cell:f}"
        case bool() | int():
            return str(cell)
        case float():
            if cell != cell:  # NaN is how pandas writes "nothing"
                return None
            return str(int(cell)) if abs(cell) < 2**53 and cell == int(cell) else str(cell)
        case datetime():
            return str(cell).removesuffix(" 00:00:00")
        case date() | time():
            return str(cell)
        case list():
            items = [item for item in cell if item is not None]
            texts = [None if is_plain_number(item) else _text_of(item) for item in items]
            return "\n".join(text for text in texts if text is not None) if texts and None not in texts else None
    return None


def are_numbers(texts: list[str]) -> bool:
    """Return whether all texts are nothing but numbers, and many: token ids, or vectors."""
    if not texts or not all(NUMBERS.fullmatch(text.strip()) for text in texts):
        return False
    return sum(len(NUMBER.findall(text)) for text in texts) >= FEW_NUMBERS * len(texts)


def render(form: str, cells: dict[str, str], answer: str | None) -> Document:
    """Return `form` with cells[name] for {name}; answer_start is where `answer` is inserted.

    What is between {#name} and {/name} is left out if cells[name] is blank. `str.format` is never
    used: preset text could reach attributes or fill memory. The schema allows bare names only.
    """
    text, answer_start = "", None
    left_out = [False]  # of the sections around this place
    for literal, name, _, _ in Formatter().parse(form):
        if not left_out[-1]:
            text += literal
        if name is None:
            continue
        if name not in cells and name.startswith("#"):
            left_out.append(left_out[-1] or not cells[name[1:]].strip())
        elif name not in cells:
            left_out.pop()
        elif not left_out[-1]:
            if name == answer:
                answer_start = len(text)
            text += cells[name]
    return Document(text, answer_start, tuple(cells.values()) if len(cells) > 1 else ())


def is_list(kind: pa.DataType) -> bool:
    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)


def is_number(kind: pa.DataType) -> bool:
    return types.is_integer(kind) or types.is_floating(kind)


def is_plain_number(cell: Any) -> bool:
    return isinstance(cell, int | float) and not isinstance(cell, bool)


def with_leaves(kind: pa.DataType, change: Callable[[pa.DataType], pa.DataType]) -> pa.DataType:
    """Return the type with change(leaf) for every type in it that is not nested."""
    if types.is_list(kind):
        return pa.list_(with_leaves(kind.value_type, change))
    if types.is_large_list(kind):
        return pa.large_list(with_leaves(kind.value_type, change))
    if types.is_fixed_size_list(kind):
        return pa.list_(with_leaves(kind.value_type, change), kind.list_size)
    if types.is_struct(kind):
        return pa.struct([(field.name, with_leaves(field.type, change)) for field in kind])
    return change(kind)


def as_bytes(kind: pa.DataType) -> pa.DataType:
    """Return bytes for strings."""
    if types.is_large_string(kind):
        return pa.large_binary()
    return pa.binary() if types.is_string(kind) else kind


def as_text(kind: pa.DataType) -> pa.DataType:
    """Return strings for dates and times."""
    return pa.string() if types.is_temporal(kind) else kind


def with_replacements(cell: Any) -> Any:
    match cell:
        case bytes():
            return cell.decode("utf-8", "replace")
        case list():
            return [with_replacements(item) for item in cell]
        case dict():
            return {key: with_replacements(item) for key, item in cell.items()}
    return cell
