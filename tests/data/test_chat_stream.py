"""A stream with conversations: what is learnt of it, what is held out, and what is made again."""

import itertools
import json
import random

import numpy as np
import pytest

from configs.errors import UserError
from data import tokenizer as bpe
from data.chat_template import CHATML, OWN, ChatTemplate, Turn
from data.heldout_choice import reason_to_skip
from data.journal import JournalReader, read_header
from data.packing import chain_digest, row_dtype
from data.prepare import given_tokenizer
from data.sources.base import Document
from tests.data.small_stream import T, check_that_kills_leave_no_trace, folder, make_preset

NUM_ROWS = 1200
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


@pytest.fixture(scope="module")
def talks(tmp_path_factory):
    """A file of 700 conversations, of which two each begin alike, and some cannot be learnt from."""
    rng, path = random.Random(3), tmp_path_factory.mktemp("talks") / "talks.jsonl"
    with path.open("w") as file:
        for number in range(700):
            turns = [{"role": "system", "content": "Count."}] * (number % 3 == 0)
            for place in range(rng.randrange(1, 5)):
                asked = f"Question {number // 2}?" if place == 0 else f"What follows {rng.choice(WORDS)}?"
                said = " ".join(rng.choices(WORDS, k=rng.randrange(1, 20)))
                turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
            file.write(json.dumps({"messages": turns[:-1] if number % 50 == 0 else turns}) + "\n")
        file.write(json.dumps({"messages": [{"role": "tool", "content": "7"}]}) + "\n")
    return {"type": "hf", "dataset": "json", "data_files": str(path), "messages": "messages", "label": "talks"}


def chat_preset(talks):
    return make_preset(sources=[talks, folder("json")], weights=(2, 1))


def rows_of(checkpoints, num_rows):
    return JournalReader(checkpoints / "stream", row_dtype(T, 512, loss_mask=True)).rows(0, num_rows)


def documents(rows):
    """(tokens, loss_mask, source) of each whole document."""
    flat = {name: np.append(rows[name][:, :-1].ravel(), rows[name][-1, -1]) for name in rows.dtype.names}
    ends = np.flatnonzero(flat["tokens"] == 0)
    assert flat["loss_mask"][ends].all()
    for a, b in itertools.pairwise(ends):
        yield flat["tokens"][a + 1 : b], flat["loss_mask"][a + 1 : b], int(flat["source"][a])


@pytest.mark.slow
def test_of_conversations_the_answers_are_learnt_of_text_everything_and_a_resumed_stream_is_the_same(
    tmp_path, started, talks
):
    whole = started(chat_preset(talks), tmp_path / "whole", NUM_ROWS * T)
    info = whole.begin()
    rows = whole.rows(0, NUM_ROWS)
    written = rows_of(tmp_path / "whole", NUM_ROWS)
    tokenizer = bpe.load(info.tokenizer_path)
    assert [tokenizer.id_to_token(number) for number in range(5)] == [bpe.END_OF_TEXT, *bpe.MARKERS]
    assert all(len(tokenizer.encode(" " + word).ids) == 1 for word in WORDS)  # it has been trained on what they say
    template = ChatTemplate(OWN, tokenizer)
    seen = {0: 0, 1: 0}
    questions = set()
    for tokens, loss_mask, source in documents(written):
        seen[source] += 1
        text = tokenizer.decode(tokens.tolist(), skip_special_tokens=False)
        if source == 1:
            assert loss_mask.all()
            continue
        parts = [part.split("|>", 1) for part in text.removesuffix("<|end|>").split("<|end|>")]
        turns = [Turn(role.removeprefix("<|"), said) for role, said in parts]
        questions.add(next(turn.text for turn in turns if turn.role == "user"))
        expected = template.encode(turns)
        np.testing.assert_array_equal(expected[0], tokens)
        np.testing.assert_array_equal(expected[1], loss_mask)
    assert min(seen.values()) > 5
    # What training reads are these rows, in another order.
    np.testing.assert_array_equal(sorted(rows.loss_mask.sum(1)), sorted(written["loss_mask"].sum(1)))
    assert rows.loss_mask.dtype == np.bool_

    # Held out: whole conversations, whose answers count, and nothing that begins like one is trained on.
    talks_held, text_held = whole.held_out.sources
    num_counted = talks_held.valid.sum() - len(talks_held.starts)  # the end of each document counts too
    assert talks_held.answer.sum() == num_counted > 0
    assert (talks_held.answer <= talks_held.valid).all()
    assert not text_held.answer.any()
    assert (text_held.valid.ravel()[: text_held.num_tokens]).all()
    for number in range(len(talks_held.starts)):
        tokens, before_answer = talks_held.document(number)
        text = tokenizer.decode(tokens, skip_special_tokens=False)
        assert text.split("<|user|>")[1].split("<|end|>")[0] not in questions
        assert tokenizer.decode(tokens[:before_answer], skip_special_tokens=False).endswith("<|assistant|>")

    # A stream that ended anywhere continues with the very same rows, also if its template was lost meanwhile.
    begun = started(chat_preset(talks), tmp_path / "parts", NUM_ROWS * T)
    begun.begin()
    first = begun.rows(0, 70)
    begun.close()
    path = tmp_path / "parts" / "chat_template.jinja"
    assert path.read_text() == OWN == read_header(tmp_path / "parts" / "stream")["chat_template"]
    path.write_text("{# changed #}")
    said = []
    again = started(chat_preset(talks), tmp_path / "parts", NUM_ROWS * T, start_row=70)
    again.begin(on_status=said.append)
    rest = again.rows(70, NUM_ROWS - 70)
    assert any("Made again: chat_template.jinja" in message for message in said)
    assert path.read_text() == OWN
    for before, after, expected in zip(first, rest, rows, strict=True):
        np.testing.assert_array_equal(np.concatenate([before, after]), expected)
    assert rows_of(tmp_path / "parts", NUM_ROWS).tobytes() == written.tobytes()
    skipped = again.progress(NUM_ROWS)[0]["skipped"]
    assert skipped["with calls of tools"] == 1
    assert skipped["held out"] > 0


@pytest.mark.slow
def test_kills_leave_no_trace_in_a_stream_with_conversations(tmp_path, started, talks):
    check_that_kills_leave_no_trace(
        chat_preset(talks), tmp_path, started, 2000, [0, 50, 700, 1300], [(900, [1.0, 3.0])]
    )


def test_a_run_without_conversations_has_no_template_and_rows_as_ever(tmp_path, started):
    (tmp_path / "chat_template.jinja").write_text("another run's")
    stream = started(make_preset(sources=["json"], weights=None), tmp_path, 100 * T)
    info = stream.begin()
    assert stream.rows(0, 100).loss_mask is None
    assert "chat_template" not in info.header
    assert not (tmp_path / "chat_template.jinja").exists()
    assert bpe.special_tokens(bpe.load(info.tokenizer_path)) == {bpe.END_OF_TEXT: 0}


@pytest.mark.slow
def test_a_tokenizer_that_is_given_brings_its_template_or_has_the_tokens_of_chatml(tmp_path, started, talks):
    path = tmp_path / "given" / "tokenizer.json"
    path.parent.mkdir()
    given = bpe.train([" ".join(WORDS)] * 9, 400)
    given.save(str(path))

    def template() -> str:
        preset = make_preset(sources=[talks], weights=None, tokenizer=str(path))
        return given_tokenizer(preset, tmp_path)[1].source

    with pytest.raises(UserError, match="given has no chat template, which sources of conversations need"):
        template()
    given.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    given.save(str(path))
    assert template() == CHATML
    path.with_name("chat_template.jinja").write_text(CHATML + "{# its own #}")
    assert template() == CHATML + "{# its own #}"
    path.with_name("chat_template.jinja").unlink()
    path.with_name("tokenizer_config.json").write_text(json.dumps({"chat_template": CHATML + "{# its\r\nown #}"}))
    said = []
    for _ in range(2):  # the second time it is not taken for damaged
        stream = started(make_preset(sources=[talks], weights=None, tokenizer=str(path)), tmp_path / "lines", 100 * T)
        assert stream.begin(on_status=said.append).header["chat_template"] == CHATML + "{# its\r\nown #}"
        stream.close()
    assert not any("ade again" in line for line in said)


def test_turns_that_the_template_refuses_are_skipped_with_their_reason():
    class Alternating:
        def refuses(self, turns):
            return "roles must alternate" if turns[0].role == "system" else ""

    system, user = Turn("system", "Be brief."), Turn("user", "Hi")
    assert reason_to_skip(Document("Hi", None, (), (user,)), 1, frozenset(), Alternating()) is None
    reason = reason_to_skip(Document("Be brief.", None, (), (system, user)), 1, frozenset(), Alternating())
    assert reason == "with turns that the chat template refuses"


def test_what_was_learnt_is_part_of_the_digest_of_the_text_trained_on():
    tokens, loss_mask = np.arange(18).reshape(2, 9), np.arange(18).reshape(2, 9) % 3 > 0
    digest = chain_digest("", tokens, 12, loss_mask)
    assert digest != chain_digest("", tokens, 12)
    assert chain_digest(chain_digest("", tokens[:1], 8, loss_mask[:1]), tokens[1:], 4, loss_mask[1:]) == digest
    other = loss_mask.copy()
    other[1, 4] ^= True
    assert chain_digest("", tokens, 12, other) != digest
    other[1] = loss_mask[1]
    other[1, 5] ^= True  # after the last token that was seen
    assert chain_digest("", tokens, 12, other) == digest
