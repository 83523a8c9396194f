"""Finds every problem in the text of a preset at once and describes it in words.

`read_text` and `read_json` are stricter than `json.loads`: no duplicate keys, no NaN, no number
too large for a float, no characters that cannot be printed or opened. `explain` turns pydantic's
errors into the same kind of `Problem`. Whatever the preset holds, the message is short, is ready
at once and has no control characters. This module names no setting; it reads the models that it is
given. It never opens anything but the one preset file.
"""

import difflib
import errno
import json
import math
import re
import stat
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from configs.errors import PresetError
from configs.text import clip, counted

MAX_BYTES = 100_000  # of a preset file
MAX_CHARACTERS = 1_000_000  # of its text; written-out defaults can make it several times as long
MAX_DEPTH = 10  # nested objects and lists around a value; a preset has five
LONGEST_MESSAGE = 2_000  # characters
MAX_EXPLAINED = 100  # problems put into words, far more than fit into a message
SHOWN_CHARS = 80
JSON_HINTS = (  # what is written in place of JSON, after the parser's own message
    (r"Invalid \\", r"write \\ for each \ of text; in a path, / does as well"),
    (r".*\n(#|//|/\*)", "remove it: JSON has no comments"),
    (r".*\n['“”„‘’«]", 'write text in straight double quotes: "'),
    (r".*\n(True|False|None)\b", "write true, false and null in lower case"),
)


class Problem(NamedTuple):
    where: str  # path in the JSON: data.sources[1].text_field; "" for the whole file
    what: str  # the value found and what is wrong with it
    hint: str = ""  # what is allowed, or the nearest valid spelling


def preset_error(origin: str | Path, problems: list[Problem], hidden: int = 0) -> PresetError:
    """Return an error with the problems that fit into LONGEST_MESSAGE; it counts the others.

    `hidden`: the number of those that are not in `problems`.
    """
    origin, num_problems = clip(str(origin), 300), len(problems) + hidden
    message, listed = "", 0
    for problem in problems:
        where = f" {clip(problem.where, 200)}" if problem.where else ""
        hint = f"\n    {clip(problem.hint, 400)}" if problem.hint else ""
        block = f"{origin}:{where} {clip(problem.what, 200)}{hint}\n"
        if len(message) + len(block) > LONGEST_MESSAGE - 50:
            break
        message, listed = message + block, listed + 1
    if listed < num_problems:
        message += f"... and {counted(num_problems - listed, 'problem')} more"
    return PresetError(message.rstrip("\n"))


def read_text(path: Path | str) -> str:
    """Read a preset file (UTF-8, with or without a byte order mark). Raises PresetError."""
    path = Path(path)
    try:
        if not path.is_dir() and not stat.S_ISREG(path.stat().st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file")  # opening a FIFO would block
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise _unusable(path, "there is no such file") from None
    except IsADirectoryError:
        raise _unusable(path, "this is a folder", "give the path of one preset, a .json file") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise _unusable(path, f"cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(content) > MAX_BYTES:
        raise _unusable(path, f"larger than {MAX_BYTES:,} bytes", "a preset is a short JSON file")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _unusable(path, f"not UTF-8 text at byte {error.start}", "save the file as UTF-8") from None


def _unusable(origin: str | Path, what: str, hint: str = "") -> PresetError:
    return preset_error(origin, [Problem("", what, hint)])


class _Object(dict):
    """A JSON object that records which of its keys occur more than once."""

    repeated: list[str]


def _object(pairs: list[tuple[str, Any]]) -> _Object:
    result = _Object(pairs)
    result.repeated = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
    return result


def read_json(text: str, origin: str) -> tuple[dict[str, Any], list[Problem]]:
    """Return the JSON object in `text` and its problems as JSON.

    Raises PresetError if there is no object at all.
    """
    if len(text) > MAX_CHARACTERS:
        raise _unusable(origin, f"larger than {MAX_CHARACTERS:,} characters", "a preset is a short JSON file")
    try:
        value = json.loads(text, object_pairs_hook=_object)
        problems = list(_json_problems(value, "", 1))
    except json.JSONDecodeError as error:
        before, after = text[: error.pos].rstrip(), text[error.pos :].lstrip(", \n\r\t")
        comma = after[:1] in ("}", "]") and (before.endswith(",") or text[error.pos : error.pos + 1] == ",")
        hint = "remove the comma before it: the last item of a list or object has none" if comma else ""
        hint = hint or next((hint for words, hint in JSON_HINTS if re.match(words, f"{error.msg}\n{after}")), "")
        what = r"a \ is not written so" if error.msg.startswith("Invalid \\") else error.msg
        raise _unusable(origin, f"line {error.lineno}, column {error.colno}: not JSON: {what}", hint) from None
    except RecursionError:
        raise _unusable(origin, "nested too deeply", "a preset is five levels deep") from None
    except ValueError as error:  # an integer of thousands of digits
        raise _unusable(origin, f"not JSON: {error}") from None
    if not isinstance(value, dict):
        hint = 'a preset looks like {"name": ..., "model": ...}'
        raise _unusable(origin, f"{_show(value)} is not an object", hint)
    return value, problems


def _json_problems(value: Any, where: str, depth: int) -> Iterator[Problem]:
    if depth > MAX_DEPTH and isinstance(value, dict | list):
        raise RecursionError  # json.loads allows more depth than the later code has stack for
    if isinstance(value, _Object):
        for key in value.repeated:
            yield Problem(_join(where, key), "is given more than once", "keep one of them")
        for key, item in value.items():
            if not _printable(key):
                yield Problem(_join(where, key), "has a character that is not allowed in a name")
            yield from _json_problems(item, _join(where, key), depth + 1)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _json_problems(item, f"{where}[{index}]", depth + 1)
    elif isinstance(value, float) and not math.isfinite(value):
        yield Problem(where, f"= {_show(value)}", "numbers must be finite (at most 1.8e308)")
    elif isinstance(value, str) and not _printable(value):
        yield Problem(where, f"= {_show(value)}", "text without NUL characters and lone surrogates")


def _printable(text: str) -> bool:
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


def causes(error: ValidationError) -> list[Any]:
    """Return pydantic's errors without those that follow from another, misspelt keys first.

    Such an error is a default that could not be made, or a missing key that is misspelt.
    """
    errors = error.errors(include_url=False)
    missing: dict[tuple, list[str]] = {}
    for line in errors:
        if line["type"] == "missing":
            missing.setdefault(line["loc"][:-1], []).append(str(line["loc"][-1]))
    meant = {  # each misspelt key explains at most one missing key
        (*place, *_close(str(key), missing.get(tuple(place), [])))
        for *place, key in (line["loc"] for line in errors if line["type"] == "extra_forbidden")
    }
    independent = [
        line
        for line in errors
        if line["type"] != "default_factory_not_called" and not (line["type"] == "missing" and line["loc"] in meant)
    ]
    return sorted(independent, key=lambda line: line["type"] != "extra_forbidden")


def explain(lines: list[Any], root: type[BaseModel], kinds: Mapping[str, type[BaseModel]]) -> Iterator[Problem]:
    """Yield one Problem for each of the first MAX_EXPLAINED `causes`.

    `kinds` maps the tags of the source union to their models.
    """
    for line in islice(lines, MAX_EXPLAINED):
        where, model, field = _locate(line["loc"], root, kinds)
        given, kind = f"= {_show(line['input'])}", line["type"]
        if kind == "model_type":
            yield Problem(where, given, f"allowed: an object in braces. {field.description}")
        elif kind == "missing":
            yield Problem(where, "is missing", allowed_values(field))
        elif kind == "extra_forbidden":
            fields = {info.alias or name: info for name, info in model.model_fields.items()}
            key = str(line["loc"][-1])
            close = _close(key, [*fields], most=3)
            # Of several keys that end alike, the first one is meant: learning_rate is matrix_learning_rate.
            close.sort(key=lambda name: [*fields].index(name) if name.endswith(f"_{key}") else len(fields))
            taking = [name for name in close if _takes(fields[name], line["input"])]
            yield Problem(where, f"{given}: unknown key", _nearest(taking or close, [*fields]))
        elif kind == "union_tag_invalid":
            tag = line["ctx"]["tag"]
            yield Problem(f"{where}.type", f"= {_show(tag)}: unknown kind", _nearest(_close(tag, [*kinds]), [*kinds]))
        elif kind == "union_tag_not_found":
            hint = (
                f'allowed: a named source such as "wikipedia", or an object whose "type" is one of {", ".join(kinds)}'
            )
            yield Problem(where, given, hint)
        elif kind == "literal_error" and isinstance(line["input"], str):
            choices = _literals(line["ctx"]["expected"])
            close = _close(line["input"], choices)
            yield Problem(where, f"{given}: there is no such choice", _nearest(close, choices))
        elif kind == "value_error":  # raised by our validators
            yield Problem(where, given, str(line["ctx"]["error"]))
        else:  # a regular expression says less than the description of the field
            rule = "" if kind == "string_pattern_mismatch" else line["msg"]
            if kind == "list_type" and isinstance(line["input"], str | dict):
                rule = f"write [{_show(line['input'])}], a list"
            yield Problem(where, given, allowed_values(field, rule, item=where.endswith("]")))


def _literals(expected: str) -> list[str]:
    """Split pydantic's list of choices: 'a', 'b' or 'c'."""
    return [part.strip("'") for part in expected.replace(" or ", ", ").split(", ")]


def _locate(
    loc: tuple, root: type[BaseModel], kinds: Mapping[str, type[BaseModel]]
) -> tuple[str, type[BaseModel], Any]:
    """Return (path in the JSON, innermost model, innermost field or None) for `loc`."""
    where, model, field = "", root, None
    previous: str | int = ""
    for step in loc:
        if isinstance(step, int):
            where += f"[{step}]"
        elif isinstance(previous, int):  # the tag of a union follows its index and is not in the JSON
            model, field = kinds.get(step, model), None
        elif field and section(field.annotation) is not model:  # a type of a union, and not in the JSON
            pass
        else:
            where = _join(where, step)
            field = next((info for name, info in model.model_fields.items() if step in (name, info.alias)), None)
            model = (section(field.annotation) if field else None) or model
        previous = step
    return where, model, field


def section(annotation: Any) -> type[BaseModel] | None:
    """Return the model whose keys a field of this type holds, also if it may be null."""
    parts = [part for part in get_args(annotation) or (annotation,) if part is not NoneType]
    return parts[0] if len(parts) == 1 and isinstance(parts[0], type) and issubclass(parts[0], BaseModel) else None


def allowed_values(field: FieldInfo | None, otherwise: str = "", *, item: bool = False) -> str:
    """Describe the values of a field: 'allowed: a whole number from 16 to 8192'.

    For a list, those of the whole list or of one `item`.
    """
    if field is None:
        return otherwise
    parts = get_args(field.annotation) or (field.annotation,)
    types = {get_args(part)[0] if get_origin(part) is Annotated else part for part in parts}
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
    elif str in types and (item or get_origin(field.annotation) is not list):
        noun = "text"
    else:
        return f"{otherwise or 'needed'}. {field.description}"
    words = {"ge": "from", "gt": "above", "le": "to", "lt": "below"}
    span = " ".join(f"{words[name]} {bounds[name]}" for name in ("ge", "gt", "le", "lt") if name in bounds)
    if get_origin(field.annotation) is list and not item:
        noun = noun.replace("a ", "a list of ", 1) + "s"
    detail = f" ({otherwise})" if noun == "text" and otherwise else ""
    for factor in (multiple.multiple_of for multiple in field.metadata if hasattr(multiple, "multiple_of")):
        span += f", a multiple of {factor}"
    return f"allowed: {noun}{' ' + span if span else ''}{detail}. {field.description}"


def _nearest(close: list[str], choices: list[str]) -> str:
    return f'did you mean "{close[0]}"?' if close else f"allowed: {', '.join(choices)}"


def _takes(field: FieldInfo, value: Any) -> bool:
    """Return whether a value is of a field's type: "field": "text" means text_field, not fields."""
    try:
        TypeAdapter(field.annotation or Any).validate_python(value, strict=True)
    except ValidationError:
        return False
    return True


def _close(word: str, choices: list[str], *, most: int = 1) -> list[str]:
    return difflib.get_close_matches(word.lower(), choices, n=most, cutoff=0.6)


def _join(where: str, key: str) -> str:
    shown = key if key.replace("$", "_").isidentifier() and key.isascii() and len(key) < SHOWN_CHARS else _show(key)
    return f"{where}.{shown}" if where else shown


def _show(value: Any) -> str:
    """Return a value as short JSON in printable ASCII."""
    if isinstance(value, BaseModel):
        value = value.model_dump()
    shown = json.dumps(value, default=str)
    return shown if len(shown) <= SHOWN_CHARS else shown[: SHOWN_CHARS - 3] + "..."
