"""Conversations out of the cells of a dataset: lists of turns in the forms that datasets have, or a question with
its answer.

A turn is {"role": "user", "content": "..."} or {"from": "human", "value": "..."}, a list of them a list of objects,
an object of lists, or either as JSON. Question and answer may be such lists too. What cannot be learnt from is
skipped, with its reason.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import pyarrow as pa
from pyarrow import types

from data.sources import cells
from data.sources.base import BETWEEN_TURNS, PIECE_CHARACTERS, Document, Turn

ROLE_KEYS, TEXT_KEYS = ("role", "from"), ("content", "value", "text")
ROLES: dict[str, Any] = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "model", "bot", "bing", "bard"), "assistant"),
}
OF_TOOLS = (
    "tool",
    "function",
    "observation",
    "ipython",
    "function_call",
    "function_response",
    "tool_call",
    "tool_response",
)
CALLS = ("tool_calls", "function_call")  # keys of a turn
LONG_EXCHANGE = f"exchange of more than {PIECE_CHARACTERS:,} characters"


class NoConversation(ValueError):
    """A row without a usable conversation. The text is the reason, one of a few, under which it is counted.

    `detail`: what the user should know of it, or "".
    """

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason)
        self.detail = detail


def may_hold_turns(kind: pa.DataType) -> bool:
    """Return whether cells of a type may be lists of turns."""
    if isinstance(kind, pa.JsonType) or types.is_null(kind) or types.is_string(kind) or types.is_large_string(kind):
        return True
    turn = kind.value_type if cells.is_list(kind) else kind
    if isinstance(turn, pa.JsonType):
        return True
    names = {field.name for field in turn} if types.is_struct(turn) else set()
    return bool(names & set(ROLE_KEYS) and names & set(TEXT_KEYS))


def turn_columns(schema: pa.Schema) -> list[str]:
    """Return the columns that hold lists of turns."""
    return [field.name for field in schema if types.is_nested(field.type) and may_hold_turns(field.type)]


def may_hold_exchanges(kind: pa.DataType) -> bool:
    """Return whether cells of a type may be questions or answers: texts or lists of turns."""
    return cells.may_hold_text(kind) or may_hold_turns(kind)


def exchange_columns(schema: pa.Schema) -> list[str]:
    """Return the columns that hold lists of turns or texts, without the texts inside of such lists."""
    lists = turn_columns(schema)
    return lists + [name for name in cells.text_columns(schema) if name.split(".")[0] not in lists]


def turns_of(cell: Any) -> tuple[Turn, ...]:
    """Return the turns of a cell up to the last answer, without a system prompt that says nothing.

    Raises NoConversation.
    """
    given = _listed(cell)
    if not given:
        raise NoConversation("without a conversation")
    turns = [turn for turn in map(_turn, given) if turn.text or turn.role != "system"]
    while turns and turns[-1].role != "assistant":
        turns.pop()
    if not turns:
        raise NoConversation("without an assistant's turn")
    if not all(turn.text for turn in turns):
        raise NoConversation("with an empty turn")
    return tuple(turns)


def _listed(cell: Any) -> list[Any]:
    """Return the items of a cell in any of the forms of a list of turns; [] if it has none of them."""
    if isinstance(cell, str):
        with suppress(ValueError, RecursionError):
            cell = json.loads(cell)
    if isinstance(cell, dict) and cell and all(isinstance(values, list) for values in cell.values()):
        cell = [dict(zip(cell, values, strict=False)) for values in zip(*cell.values(), strict=False)]
    return cell if isinstance(cell, list) else []


def _joined(row: Sequence[Any]) -> list[Any]:
    """Return the turns of all cells of a row, if all hold lists of turns, and [] if they hold texts: a text beside a
    list in JSON may well be about one. Raises NoConversation."""
    held = [cell for cell in row if cell]
    lists = [given if all(map(_is_turn, given)) else [] for given in map(_listed, held)]
    if all(lists):
        return [turn for each in lists for turn in each]
    if any(given and not isinstance(cell, str) for cell, given in zip(held, lists, strict=True)):
        raise NoConversation("with turns in one column and text in another")
    return []


def _is_turn(item: Any) -> bool:
    return isinstance(item, dict) and not {*ROLE_KEYS}.isdisjoint(item)


def _turn(given: Any) -> Turn:
    if not isinstance(given, dict):
        raise NoConversation("without a conversation")
    role = next((given[key] for key in ROLE_KEYS if given.get(key) is not None), None)
    if any(given.get(key) for key in CALLS) or role in OF_TOOLS:
        raise NoConversation("with calls of tools")
    if role is None:
        raise NoConversation(
            "with turns that have no role",
            f"skipping turns without role or from; their keys are {', '.join(map(str, given))}",
        )
    if not isinstance(role, str) or role.lower() not in ROLES:
        raise NoConversation(
            "with a role that is not known",
            f"skipping conversations with the role {role!r}; known are {', '.join(ROLES)}",
        )
    content = next((given[key] for key in TEXT_KEYS if given.get(key) is not None), "")
    if isinstance(content, list):  # parts, of which some may be pictures
        if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
            raise NoConversation("with a turn that is not text")
        content = "\n".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise NoConversation("with a turn that is not text")
    return Turn(ROLES[role.lower()], content.strip())


def documents_of(row: Sequence[Any], *, in_columns: bool) -> Iterator[Document | None]:
    """Yield the conversation of a row in `pieces`: its only cell is a list of turns or, `in_columns`, its cells are
    a question and its answer, or lists of turns that follow each other. Raises NoConversation."""
    if in_columns and (turns := _joined(row)):
        documents = list(pieces(turns_of(turns)))
    elif in_columns:
        texts = tuple(cells.cell_text(cell) or "" for cell in row)
        documents = list(pieces(exchange(texts), texts))
    else:
        [cell] = row
        documents = list(pieces(turns_of(cell)))
    if not any(documents):
        raise NoConversation(f"with turns of more than {PIECE_CHARACTERS:,} characters")
    yield from documents


def exchange(texts: Sequence[str]) -> tuple[Turn, ...]:
    """Return a question, the texts before the last that are not empty, and its answer. Raises NoConversation."""
    *question, answer = (text.strip() for text in texts)
    if not answer:
        raise NoConversation("without an answer")
    if not any(question):
        raise NoConversation("without a question")
    return Turn("user", "\n\n".join(text for text in question if text)), Turn("assistant", answer)


def pieces(turns: Sequence[Turn], cells_of: tuple[str, ...] = ()) -> Iterator[Document | None]:
    """Yield documents of at most PIECE_CHARACTERS: whole exchanges, each piece with the system prompt.

    An exchange that is longer is left out (None), and the conversation cut there: its answer would be to a question
    that the model no longer sees. `cells_of`: those of the documents; default: the first question.
    """
    system = tuple(turns[:1]) if turns[0].role == "system" else ()
    cells_of = cells_of or (next((turn.text for turn in turns if turn.role == "user"), ""),)
    room = PIECE_CHARACTERS - _length(system)
    piece, length = list[Turn](), 0
    for exchange in _exchanges(turns[len(system) :]):
        more = _length(exchange)
        if piece and length + more > room:
            yield _document((*system, *piece), cells_of)
            piece, length = [], 0
        if more > room:
            yield None
        else:
            piece += exchange
            length += more
    if piece:
        yield _document((*system, *piece), cells_of)


def _exchanges(turns: Sequence[Turn]) -> Iterator[list[Turn]]:
    """Yield the turns up to each answer, or to the last of several in a row."""
    exchange: list[Turn] = []
    for turn in turns:
        if exchange and exchange[-1].role == "assistant" != turn.role:
            yield exchange
            exchange = []
        exchange.append(turn)
    yield exchange


def _length(turns: Sequence[Turn]) -> int:
    return sum(len(turn.text) for turn in turns)


def _document(turns: tuple[Turn, ...], cells_of: tuple[str, ...]) -> Document:
    return Document(BETWEEN_TURNS.join(turn.text for turn in turns), None, cells_of, turns)
