"""Everything that can be wrong with a preset's text, found at once and said in words.

`read_text` and `read_json` are stricter than `json.loads`: no duplicate keys, no NaN, no number too large for a float,
no characters that could not be printed or opened. `explain` turns pydantic's errors into the same kind of `Problem`.
This file knows no knob by name; it asks the models it is given. It never opens anything but the one preset file.
"""

import difflib
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

MAX_BYTES = 1_000_000
MAX_LISTED = 100
SHOWN_CHARS = 80


class UserError(ValueError):
    """Something the user must change. `main` prints the message without a traceback and exits with `exit_code`."""

    exit_code = 2


class PresetError(UserError):
    """A preset that cannot be used; the message lists every problem, one block each."""


class Problem(NamedTuple):
    where: str  # path inside the JSON: data.sources[1].text_field; "" for the file as a whole
    what: str  # what was found there and what is wrong with it
    hint: str = ""  # what is allowed, or the nearest valid spelling


def preset_error(origin: str, problems: list[Problem]) -> PresetError:
    blocks = []
    for problem in problems[:MAX_LISTED]:
        where = f" {problem.where}" if problem.where else ""
        blocks.append(f"{origin}:{where} {problem.what}" + (f"\n    {problem.hint}" if problem.hint else ""))
    if len(problems) > MAX_LISTED:
        blocks.append(f"... and {len(problems) - MAX_LISTED} problems more")
    return PresetError("\n".join(blocks))


def read_text(path: Path | str) -> str:
    """The text of a preset file (UTF-8, with or without a byte order mark). Raises PresetError."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise PresetError(f"{path}: there is no such file") from None
    except IsADirectoryError:
        raise PresetError(f"{path}: this is a folder\n    give the path of one preset, a .json file") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise PresetError(f"{str(path)!r}: cannot be read: {reason}") from None
    if len(content) > MAX_BYTES:
        raise PresetError(f"{path}: larger than {MAX_BYTES:,} bytes\n    a preset is a short JSON file")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PresetError(f"{path}: not UTF-8 text at byte {error.start}\n    save the file as UTF-8") from None


class _Object(dict):
    """A JSON object that remembers which of its keys were written more than once."""

    repeated: list[str]


def _object(pairs: list[tuple[str, Any]]) -> _Object:
    result = _Object(pairs)
    result.repeated = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
    return result


def read_json(text: str, origin: str) -> tuple[dict[str, Any], list[Problem]]:
    """The JSON object in `text`, and what is wrong with it as JSON. Raises PresetError if there is no object at all."""
    if len(text) > MAX_BYTES:
        raise PresetError(f"{origin}: larger than {MAX_BYTES:,} characters\n    a preset is a short JSON file")
    try:
        value = json.loads(text, object_pairs_hook=_object)
        problems = list(_json_problems(value, ""))
    except json.JSONDecodeError as error:
        raise PresetError(f"{origin}: line {error.lineno}, column {error.colno}: not JSON: {error.msg}") from None
    except RecursionError:
        raise PresetError(f"{origin}: nested too deeply\n    a preset is four levels deep") from None
    except ValueError as error:  # a whole number of thousands of digits
        raise PresetError(f"{origin}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise PresetError(
            f'{origin}: {_show(value)} is not an object\n    a preset looks like {{"name": ..., "model": ...}}'
        )
    return value, problems


def _json_problems(value: Any, where: str) -> Iterator[Problem]:
    if isinstance(value, _Object):
        for key in value.repeated:
            yield Problem(_join(where, key), "is given more than once", "keep one of them")
        for key, item in value.items():
            if not _printable(key):
                yield Problem(_join(where, key), "has a character that is not allowed in a name")
            yield from _json_problems(item, _join(where, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _json_problems(item, f"{where}[{index}]")
    elif isinstance(value, float) and not math.isfinite(value):
        yield Problem(where, f"= {_show(value)}", "numbers must be finite (at most 1.8e308)")
    elif isinstance(value, str) and not _printable(value):
        yield Problem(where, f"= {_show(value)}", "text without NUL characters and lone surrogates")


def _printable(text: str) -> bool:
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


def explain(error: ValidationError, root: type[BaseModel], kinds: Mapping[str, type[BaseModel]]) -> Iterator[Problem]:
    """One Problem for each of pydantic's errors. `kinds` maps the tags of the source union to their models."""
    for line in error.errors(include_url=False):
        where, model, field = _locate(line["loc"], root, kinds)
        given, kind = f"= {_show(line['input'])}", line["type"]
        if kind == "default_factory_not_called":  # follows from another error, which is listed
            continue
        if kind == "model_type":
            yield Problem(where, given, f"allowed: an object in braces. {field.description}")
        elif kind == "missing":
            yield Problem(where, "is missing", _allowed(field))
        elif kind == "extra_forbidden":
            names = [info.alias or name for name, info in model.model_fields.items()]
            yield Problem(where, f"{given}: unknown key", _nearest(str(line["loc"][-1]), names))
        elif kind == "union_tag_invalid":
            tag = line["ctx"]["tag"]
            yield Problem(f"{where}.type", f"= {_show(tag)}: unknown kind", _nearest(tag, [*kinds]))
        elif kind == "union_tag_not_found":
            hint = (
                f'allowed: a named source such as "wikipedia", or an object whose "type" is one of {", ".join(kinds)}'
            )
            yield Problem(where, given, hint)
        elif kind == "literal_error" and isinstance(line["input"], str):
            choices = _literals(line["ctx"]["expected"])
            yield Problem(where, given, _nearest(line["input"], choices))
        elif kind in ("value_error", "assertion_error"):  # our own rules say what is allowed
            yield Problem(where, given, str(line["ctx"]["error"]))
        else:
            yield Problem(where, given, _allowed(field, line["msg"]))


def _literals(expected: str) -> list[str]:
    """pydantic says: 'a', 'b' or 'c'."""
    return [part.strip("'") for part in expected.replace(" or ", ", ").split(", ")]


def _locate(
    loc: tuple, root: type[BaseModel], kinds: Mapping[str, type[BaseModel]]
) -> tuple[str, type[BaseModel], Any]:
    """pydantic's location -> (path as written in the JSON, the innermost model, the innermost field or None)."""
    where, model, field = "", root, None
    previous: str | int = ""
    for step in loc:
        if isinstance(step, int):
            where += f"[{step}]"
        elif isinstance(previous, int):  # the tag of a union follows its index and is not in the JSON
            model, field = kinds.get(step, model), None
        else:
            where = _join(where, step)
            field = next((info for name, info in model.model_fields.items() if step in (name, info.alias)), None)
            if field and isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                model = field.annotation
        previous = step
    return where, model, field


def _allowed(field: FieldInfo | None, otherwise: str = "") -> str:
    """'allowed: a whole number from 16 to 8192', read off the field itself."""
    if field is None:
        return otherwise
    types = set(get_args(field.annotation)) or {field.annotation}
    bounds = {
        name: getattr(item, name) for item in field.metadata for name in ("ge", "gt", "le", "lt") if hasattr(item, name)
    }
    if get_origin(field.annotation) is Literal:
        noun = " or ".join(json.dumps(choice) for choice in get_args(field.annotation))
    elif bool in types:
        noun = "true or false"
    elif int in types:
        noun = "a whole number"
    elif float in types:
        noun = "a number"
    elif str in types and get_origin(field.annotation) is not list:
        noun = "text"
    else:
        return f"{otherwise or 'needed'}. {field.description}"
    words = {"ge": "from", "gt": "above", "le": "to", "lt": "below"}
    span = " ".join(f"{words[name]} {bounds[name]}" for name in ("ge", "gt", "le", "lt") if name in bounds)
    detail = f" ({otherwise})" if noun == "text" and otherwise else ""
    return f"allowed: {noun}{' ' + span if span else ''}{detail}. {field.description}"


def _nearest(word: str, choices: list[str]) -> str:
    close = difflib.get_close_matches(word.lower(), choices, n=1, cutoff=0.6)
    return f'did you mean "{close[0]}"?' if close else f"allowed: {', '.join(choices)}"


def _join(where: str, key: str) -> str:
    shown = key if key.replace("$", "_").isidentifier() and key.isascii() and len(key) < SHOWN_CHARS else _show(key)
    return f"{where}.{shown}" if where else shown


def _show(value: Any) -> str:
    """A value as JSON, in printable ASCII and short."""
    if isinstance(value, BaseModel):
        value = value.model_dump()
    shown = json.dumps(value, default=str)
    return shown if len(shown) <= SHOWN_CHARS else shown[: SHOWN_CHARS - 3] + "..."
