"""Conversations in the forms that datasets have, what of them is skipped, and what is said of a source without any."""

import json
import time

import pyarrow as pa
import pytest

from configs.errors import SourceError
from data.sources import conversations
from data.sources.base import PIECE_CHARACTERS, Turn
from data.sources.conversations import NoConversation, pieces, turns_of
from tests.data.sources.test_layouts import open_data, problem_of
from tests.hub import parquet

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": " Two and two? "},
    {"role": "assistant", "content": "Four."},
    {"role": "user", "content": "Thanks!"},
]
TURNS = (Turn("system", "Be brief."), Turn("user", "Two and two?"), Turn("assistant", "Four."))
SHAREGPT = [
    {"from": "system", "value": "Be brief."},
    {"from": "human", "value": "Two and two?"},
    {"from": "gpt", "value": "Four."},
]


def jsonl(*rows: dict) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def turns(source) -> list[tuple[Turn, ...]]:
    return [document.turns for document, _ in source.documents(0)]


def test_every_form_of_a_conversation_is_read_on_the_hub_and_on_this_disk(hub, tmp_path):
    lists = {"from": ["human", "gpt"], "value": ["Two and two?", "Four."]}
    hub.add("some/parquet", {"train.parquet": parquet(messages=[MESSAGES] * 3)})
    hub.add("some/jsonl", {"train.jsonl": jsonl({"conversations": SHAREGPT, "id": 7})})
    hub.add("some/inside", {"train.jsonl": jsonl({"data": {"turns": MESSAGES}})})
    hub.add("some/lists", {"train.parquet": parquet(conversations=[lists])})
    hub.add("some/json", {"train.parquet": parquet(chat=[json.dumps(MESSAGES)])})
    assert turns(open_data("some/parquet", messages="messages")) == [TURNS] * 3
    assert turns(open_data("some/jsonl", messages="conversations")) == [TURNS]
    assert turns(open_data("some/inside", messages="data.turns")) == [TURNS]
    assert turns(open_data("some/lists", messages="conversations")) == [TURNS[1:]]
    assert turns(open_data("some/json", messages=["chat"])) == [TURNS]
    (tmp_path / "a.jsonl").write_bytes(
        jsonl({"messages": MESSAGES}, {"messages": [{**turn, "name": None} for turn in MESSAGES]})
    )
    assert turns(open_data("json", data_files=str(tmp_path / "a.jsonl"), messages="messages")) == [TURNS] * 2


def test_rows_of_all_forms_in_one_file_are_read_and_text_that_is_not_utf_8_too(hub):
    parts = [{"role": "user", "content": [{"type": "text", "text": "Two and two?"}]}, MESSAGES[2]]
    extra = [{**MESSAGES[1], "extra": {"a": [1]}}, {**MESSAGES[2], "extra": 7}]
    calls = SKIPPED["with calls of tools"][0]
    rows = [{"messages": row} for row in (MESSAGES, parts, extra, calls, None, [], "no turns", {"a": 1})]
    hub.add("some/mixed", {"train.jsonl": jsonl(*rows)})
    source = open_data("some/mixed", messages="messages")
    assert sorted(turns(source)) == sorted([TURNS, TURNS[1:], TURNS[1:]])
    assert source.skipped == {"without a conversation": 4, "with calls of tools": 1}
    roles, texts = pa.array(["user", "assistant"]), pa.array([b"Gr\xfc\xdfe", b"yo"]).view(pa.string())
    talk = pa.ListArray.from_arrays([0, 2], pa.StructArray.from_arrays([roles, texts], ["role", "content"]))
    hub.add("some/bytes", {"train.parquet": parquet(messages=talk)})
    assert turns(open_data("some/bytes", messages="messages")) == [
        (Turn("user", "Gr\ufffd\ufffde"), Turn("assistant", "yo"))
    ]


def test_a_question_and_its_answer_may_be_columns(hub):
    rows = [
        {"instruction": "Add.", "input": "2 2", "meta": {"output": "4"}},
        {"instruction": "Hello", "input": "", "meta": {"output": " Hi! "}},
        {"instruction": "", "input": " ", "meta": {"output": "Nobody asked."}},
        {"instruction": "Silence?", "input": None, "meta": {"output": ""}},
    ]
    hub.add("some/alpaca", {"train.jsonl": jsonl(*rows)})
    source = open_data("some/alpaca", messages=["instruction", "input", "meta.output"])
    assert sorted(turns(source)) == [
        (Turn("user", "Add.\n\n2 2"), Turn("assistant", "4")),
        (Turn("user", "Hello"), Turn("assistant", "Hi!")),
    ]
    assert source.skipped == {"without a question": 1, "without an answer": 1}
    assert source.skipped.total() == 2
    first, *_ = (document for document, _ in source.documents(0))
    assert first.cells in {("Add.", "2 2", "4"), ("Hello", "", " Hi! ")}


def test_a_question_and_its_answer_may_be_lists_of_turns_that_follow_each_other(hub):
    """The form of TRL, in Parquet or as JSON, also beside rows of text."""
    prompt, completion = (
        [*MESSAGES, {"role": "user", "content": "And now?"}],
        [{"role": "assistant", "content": "Bye."}],
    )
    whole = (*TURNS, Turn("user", "Thanks!"), Turn("user", "And now?"), Turn("assistant", "Bye."))
    columns = ["prompt", "completion"]
    hub.add("some/trl", {"train.parquet": parquet(prompt=[prompt] * 2, completion=[completion, None])})
    source = open_data("some/trl", messages=columns)
    assert turns(source) == [whole, TURNS]
    [first, _] = (document for document, _ in source.documents(0))
    assert first.cells == ("Two and two?",)
    about_json = {"prompt": "Write turns as JSON.", "completion": json.dumps(completion)}
    rows = [{"prompt": json.dumps(prompt), "completion": json.dumps(completion)}, about_json]
    hub.add("some/json", {"train.jsonl": jsonl(*rows)})
    texts = tuple(map(Turn, ("user", "assistant"), about_json.values()))
    assert sorted(turns(open_data("some/json", messages=columns))) == sorted([whole, texts])
    rows = [{"prompt": "Hello", "completion": "Hi!"}, {"prompt": prompt, "completion": completion}]
    hub.add("some/mixed", {"train.jsonl": jsonl(*rows, {"prompt": prompt, "completion": "Bye."})})
    source = open_data("some/mixed", messages=columns)
    assert sorted(turns(source)) == sorted([(Turn("user", "Hello"), Turn("assistant", "Hi!")), whole])
    assert source.skipped == {"with turns in one column and text in another": 1}
    hub.add("some/ids", {"train.parquet": parquet(prompt=[prompt], text=["a"], ids=[[1, 2]])})
    assert "name a column that holds text or lists of turns: prompt, text" in problem_of(
        "some/ids", messages=["prompt", "ids"]
    )


SKIPPED = {
    "without a conversation": [None, [], 7, "text", [["user", "hi"]], {"role": "user"}],
    "without an assistant's turn": [MESSAGES[:2], [{"role": "system", "content": " "}], [{"from": "human", "value": "?"}]],
    "with an empty turn": [[{"role": "user", "content": None}, *MESSAGES[2:]], [*MESSAGES[:2], {"role": "assistant"}]],
    "with a role that is not known": [[{"role": "narrator", "content": "x"}], [{"role": 3}]],
    "with turns that have no role": [[{"role": None, "content": "x"}], [{"speaker": "user", "content": "x"}]],
    "with calls of tools": [
        [*MESSAGES[:2], {"role": "assistant", "content": "", "tool_calls": [{"name": "f"}]}],
        [*MESSAGES[:3], {"from": "tool", "value": "7"}, *MESSAGES[1:3]],
    ],
    "with a turn that is not text": [
        [{"role": "user", "content": [{"type": "image"}]}, MESSAGES[2]],
        [{"role": "user", "content": 7}, MESSAGES[2]],
    ],
}  # fmt: skip


@pytest.mark.parametrize("reason", SKIPPED)
def test_what_cannot_be_learnt_from_is_skipped_with_its_reason(reason):
    for cell in SKIPPED[reason]:
        with pytest.raises(NoConversation, match=f"^{reason}$"):
            turns_of(cell)


def test_parts_of_a_text_are_joined_and_turns_behind_the_last_answer_left_out():
    parts = [{"type": "text", "text": "Two"}, {"type": "text", "text": "and two?"}]
    assert turns_of([{"role": "user", "content": parts}, MESSAGES[2], MESSAGES[3], MESSAGES[3]]) == (
        Turn("user", "Two\nand two?"),
        Turn("assistant", "Four."),
    )


def test_skipped_conversations_are_counted_and_an_unknown_role_is_named_once(hub):
    rows = [MESSAGES, MESSAGES[:2], *[[{"role": "narrator", "content": "x"}, MESSAGES[2]]] * 3]
    hub.add("some/rows", {"train.jsonl": jsonl(*({"messages": row} for row in rows))})
    source = open_data("some/rows", messages="messages")
    assert turns(source) == [TURNS]
    assert source.skipped == {"without an assistant's turn": 1, "with a role that is not known": 3}
    with pytest.raises(NoConversation) as caught:
        turns_of([{"speaker": "A", "utterance": "x"}])
    assert caught.value.detail == "skipping turns without role or from; their keys are speaker, utterance"
    [notice] = source.notices
    assert "skipping conversations with the role 'narrator'; known are system, developer, user" in notice


def test_a_source_without_conversations_says_where_they_are(hub):
    hub.add("some/parquet", {"train.parquet": parquet(prompt=["a"], messages=[MESSAGES], ids=[[1, 2]])})
    assert (
        "has no column 'dialog'; its columns are prompt, messages, ids (lists of turns are in messages); name one"
        in (problem_of("some/parquet", messages="dialog"))
    )
    ids = problem_of("some/parquet", messages="ids")
    assert "'ids' of some/parquet holds list<" in ids
    assert (
        "which is not lists of turns, each with role or from, and with content, value or text; name a column that"
        in ids
    )
    assert "holds lists of turns: messages" in ids
    prompt = problem_of("some/parquet", messages="prompt")
    assert (
        "there is no conversation to learn from in 'prompt' (string) of some/parquet, in all its rows (1 without"
        in prompt
    )
    hub.add("some/tools", {"train.jsonl": jsonl(*[{"messages": SKIPPED["with calls of tools"][0]}] * 2000)})
    assert "in the first 1,000 rows (1,000 with calls of tools)" in problem_of("some/tools", messages="messages")


def test_a_long_conversation_is_cut_between_exchanges_and_each_piece_has_its_system_prompt(monkeypatch):
    monkeypatch.setattr(conversations, "PIECE_CHARACTERS", 60)
    talk = [Turn("user", "question number one"), Turn("assistant", "yes"), Turn("assistant", "or no")]
    talk += [Turn("user", "x" * 61), Turn("assistant", "an answer whose question is too long")]
    talk += [
        Turn("user", f"question {number}") if n % 2 else Turn("assistant", "indeed")
        for number in range(4)
        for n in (1, 0)
    ]
    found = [document and document.turns for document in pieces((TURNS[0], *talk))]
    assert found.pop(1) is None
    assert all(turns[0] == TURNS[0] and turns[-1].role == "assistant" for turns in found)
    assert [turn for turns in found for turn in turns[1:]] == talk[:3] + talk[5:]
    assert len(found) > 2
    assert all(sum(len(turn.text) for turn in turns) <= 60 for turns in found)
    assert {document.cells for document in pieces(talk) if document} == {("question number one",)}
    assert list(pieces([Turn("user", "x" * 61), Turn("assistant", "y")])) == [None]


def test_an_exchange_that_is_too_long_is_counted_and_a_long_row_takes_no_long_time(hub):
    long = [{"role": role, "content": text} for text in ("a", "x" * 20_000, "b") for role in ("user", "assistant")]
    many = [{"role": role, "content": "x"} for _ in range(40_000) for role in ("user", "assistant")]
    hub.add("some/exchanges", {"train.parquet": parquet(messages=[long, many])})
    source = open_data("some/exchanges", messages="messages")
    began = time.process_time()
    assert sum(document.text.count("x") for document, _ in source.documents(0)) == 80_000
    assert time.process_time() - began < 10
    assert source.skipped == {"exchange of more than 16,384 characters": 1}


def test_pieces_of_a_conversation_are_documents_of_their_own_and_resume_between_them(hub):
    long = [{"role": role, "content": f"{n} " + "word " * 1000} for n in range(12) for role in ("user", "assistant")]
    hub.add("some/long", {"train.parquet": parquet(messages=[long, MESSAGES])})
    source = open_data("some/long", messages="messages")
    whole = list(source.documents(0))
    assert len(whole) > 8
    assert all(len(document.text) <= PIECE_CHARACTERS + 100 for document, _ in whole)
    for number in (1, 4):
        assert list(source.documents(0, whole[number][1])) == whole[number + 1 :]
    hub.add(
        "some/longer", {"train.parquet": parquet(messages=[[{"role": "user", "content": "x" * 20_000}, MESSAGES[2]]])}
    )
    with pytest.raises(SourceError, match="1 with turns of more than 16,384 characters"):
        list(open_data("some/longer", messages="messages").documents(0))
