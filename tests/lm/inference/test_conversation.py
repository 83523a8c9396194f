"""A conversation: the model sees what was said, in the form of its training, as much of it as fits."""

import pytest

from data import tokenizer as bpe
from data.chat_template import MARKERS, OWN, ChatTemplate
from lm.inference.conversation import Conversation
from tests.lm.inference.test_chat import converse

ALTERNATING = (
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('user and assistant take turns') }}{% endif %}" + OWN.split("%}", 1)[1]
)


@pytest.fixture(scope="module")
def tokenizer():
    """Its tokens are bytes, and the markers."""
    tokenizer = bpe.train([], 300)
    tokenizer.add_special_tokens(list(MARKERS))
    return tokenizer


@pytest.fixture
def conversation(tokenizer):
    return Conversation(ChatTemplate(OWN, tokenizer), 0, window=100)


def shown(tokenizer, calls) -> list[str]:
    return [tokenizer.decode(tokens, skip_special_tokens=False) for tokens, _ in calls]


def test_the_model_sees_the_turns_so_far(conversation, tokenizer, monkeypatch):
    text, calls = converse(["one", "two <|end|>", "/new", "three"], monkeypatch, conversation=conversation)
    first = "<|endoftext|><|user|>one<|end|><|assistant|>"
    second = f"{first}fine<|end|><|user|>two <|end|><|end|><|assistant|>"
    third = "<|endoftext|><|user|>three<|end|><|assistant|>"
    assert shown(tokenizer, calls) == [first, second, third]
    typed = tokenizer.token_to_id("<|end|>")
    assert calls[1][0].count(typed) == 3  # what is typed never becomes a special token
    assert "trained on. It is small and makes things up: check what it says." in text
    assert "A new conversation." in text


def test_a_system_prompt_can_be_set_and_taken_back_at_any_time(conversation, tokenizer, monkeypatch):
    lines = ["/system Be kind.", "one", "/system Rhyme,\\", "always.", "/new", "two", "/system", "three"]
    _, calls = converse(lines, monkeypatch, conversation=conversation)
    kind, rhyming, neither = shown(tokenizer, calls)
    assert kind == "<|endoftext|><|system|>Be kind.<|end|><|user|>one<|end|><|assistant|>"
    assert rhyming == "<|endoftext|><|system|>Rhyme,\nalways.<|end|><|user|>two<|end|><|assistant|>"
    assert neither == "<|endoftext|><|user|>two<|end|><|assistant|>fine<|end|><|user|>three<|end|><|assistant|>"


def test_again_answers_the_same_and_not_the_answer(conversation, tokenizer, monkeypatch):
    seeds = []
    text, calls = converse(["/again", "one", "/again", "two"], monkeypatch, seeds=seeds, conversation=conversation)
    one, again, two = shown(tokenizer, calls)
    assert "There is nothing to answer yet." in text
    assert one == again
    assert two == f"{one}fine<|end|><|user|>two<|end|><|assistant|>"
    assert seeds == [seeds[0], seeds[0] + 1, seeds[0] + 2]


def test_a_new_conversation_has_nothing_to_answer_again(conversation, tokenizer, monkeypatch):
    text, calls = converse(["one", "/new", "/again", "two"], monkeypatch, conversation=conversation)
    assert "There is nothing to answer yet." in text
    assert shown(tokenizer, calls)[1:] == ["<|endoftext|><|user|>two<|end|><|assistant|>"]


def test_a_text_is_continued_by_a_word_and_is_no_turn(conversation, tokenizer, monkeypatch):
    lines = ["one", "/continue Once\\", "upon", "/again", "two", "/continue"]
    text, calls = converse(lines, monkeypatch, conversation=conversation)
    assert calls[1][0] == calls[2][0] == [0, *b"Once\nupon"]
    assert shown(tokenizer, calls[3:]) == [
        "<|endoftext|><|user|>one<|end|><|assistant|>fine<|end|><|user|>two<|end|><|assistant|>"
    ]
    assert "It takes the text to continue" in text


def test_the_oldest_messages_leave_whole_and_the_system_prompt_stays(conversation, tokenizer, monkeypatch):
    """75 of 100 tokens are for what was said: 9 for the system prompt, 3 and 5 for the marks of each pair of turns."""
    lines = ["/system Be brief.", *("abcdefghij" for _ in range(5)), "x" * 100]
    text, calls = converse(lines, monkeypatch, conversation=conversation)
    *seen, last = shown(tokenizer, calls)
    assert [prompt.count("<|user|>") for prompt in seen] == [1, 2, 3, 3, 3]
    assert all(prompt.startswith("<|endoftext|><|system|>Be brief.<|end|><|user|>abc") for prompt in seen)
    assert all(len(tokens) <= 75 for tokens, _ in calls[:-1])
    assert "it no longer sees your first message]" in text
    assert "it no longer sees your first 2 messages]" in text
    assert last.count("<|user|>") == 1
    assert "it no longer sees your first 5 messages; it sees only the end of this: 75 tokens]" in text


def test_what_a_long_message_had_no_room_for_is_seen_again_after_it(conversation, tokenizer, monkeypatch):
    lines = ["my name is Ann", "/system " + "x" * 60, "and", "/system", "who?"]
    text, calls = converse(lines, monkeypatch, conversation=conversation)
    first, alone, last = shown(tokenizer, calls)
    assert "Ann" not in alone
    assert text.count("no longer sees") == 1
    assert last == f"{first}fine<|end|><|user|>and<|end|><|assistant|>fine<|end|><|user|>who?<|end|><|assistant|>"
    again, calls = converse(["y" * 100, "/again"], monkeypatch, conversation=conversation)
    assert again.count("sees only the end") == 2


def test_a_character_that_an_answer_only_began_is_shown_and_not_kept(conversation, tokenizer, monkeypatch):
    cut = lambda: iter("fine漢".encode()[:-1])  # noqa: E731
    text, calls = converse(["one", "two"], monkeypatch, cut, conversation=conversation)
    assert text.count("\ufffd") == 2
    assert "<|assistant|>fine<|end|>" in shown(tokenizer, calls)[1]


def test_what_follows_a_command_may_stand_in_the_next_line(conversation, tokenizer, monkeypatch):
    lines = ["/system\nBe brief.\nRhyme.", "one", "/continue\nOnce"]
    _, (one, (once, _)) = converse(lines, monkeypatch, conversation=conversation)
    assert shown(tokenizer, [one])[0].startswith("<|endoftext|><|system|>Be brief.\nRhyme.<|end|><|user|>one")
    assert once == [0, *b"Once"]


def test_what_a_template_refuses_is_said_and_nothing_is_kept(tokenizer, monkeypatch):
    conversation = Conversation(ChatTemplate(ALTERNATING, tokenizer), 0, window=100)
    text, calls = converse(["/system Be brief.", "one", "/system", "two"], monkeypatch, conversation=conversation)
    assert "does not allow that: the template refuses such turns: user and assistant take turns." in text
    assert shown(tokenizer, calls) == ["<|endoftext|><|user|>two<|end|><|assistant|>"]


def test_again_after_a_refusal_takes_the_last_question_that_was_answered_and_loses_no_other(tokenizer, monkeypatch):
    conversation = Conversation(ChatTemplate(ALTERNATING, tokenizer), 0, window=100)
    lines = ["one", "two", "/system Be brief.", "three", "/again", "/system", "/again", "four"]
    text, calls = converse(lines, monkeypatch, conversation=conversation)
    assert text.count("does not allow that") == 2
    one, two, again, four = shown(tokenizer, calls)
    assert two == again == f"{one}fine<|end|><|user|>two<|end|><|assistant|>"
    assert four == f"{two}fine<|end|><|user|>four<|end|><|assistant|>"


def test_ctrl_c_while_turns_are_rendered_leaves_the_conversation_as_it_was(conversation, tokenizer, monkeypatch):
    encode, interrupts = conversation.template.encode, iter([False, True, False])

    def interrupted(*arguments, **how):
        if next(interrupts):
            raise KeyboardInterrupt
        return encode(*arguments, **how)

    monkeypatch.setattr(conversation.template, "encode", interrupted)
    text, calls = converse(["one", "two", "three"], monkeypatch, conversation=conversation)
    one, three = shown(tokenizer, calls)
    assert " [stopped]" in text
    assert three == f"{one}fine<|end|><|user|>three<|end|><|assistant|>"


def test_an_answer_that_is_stopped_is_kept_as_far_as_it_came(conversation, tokenizer, monkeypatch):
    def generate():
        yield from b"begun"
        raise KeyboardInterrupt

    _, calls = converse(["one", KeyboardInterrupt(), "two"], monkeypatch, generate, conversation=conversation)
    assert "<|assistant|>begun<|end|><|user|>two" in shown(tokenizer, calls)[1]


def test_an_answer_without_a_word_is_said_to_be_one(conversation, tokenizer, monkeypatch):
    text, calls = converse(["one", "two"], monkeypatch, lambda: iter(b""), conversation=conversation)
    assert text.count("(nothing)\n[0 tokens") == 2
    assert "<|user|>one<|end|><|assistant|><|end|><|user|>two" in shown(tokenizer, calls)[1]


def test_an_empty_line_does_not_end_a_conversation(conversation, monkeypatch):
    text, calls = converse(["one", "", " ", "two", "/quit", "three"], monkeypatch, conversation=conversation)
    assert len(calls) == 2
    assert text.count("(/quit leaves)") == 2


def test_what_is_mistyped_is_told_the_nearest_command(conversation, monkeypatch):
    text, calls = converse(["/sytem x", "/newer", "/temperature"], monkeypatch, conversation=conversation)
    assert calls == []
    assert "did you mean /system?" in text
    assert "did you mean /new?" in text
    assert "temperature = 0.8" in text
