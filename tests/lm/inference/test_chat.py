"""The terminal loop: characters arrive whole, settings are checked, Ctrl-C stops an answer and nothing else."""

import re

import numpy as np
import pytest
import torch

from configs.schema import ModelConfig
from lm.inference import chat as talk_module
from lm.inference.chat import talk
from lm.inference.decoder import Decoder
from lm.inference.detokenize import text_pieces
from lm.inference.memory import Gate, Recall
from lm.inference.settings import MAX_NEW_TOKENS, change_setting
from lm.model import Transformer


def decode_bytes(tokens):
    return bytes(tokens).decode("utf-8", errors="replace")


def converse(lines, monkeypatch, generate=None, seeds=None, conversation=None, recalls=None, **how):
    """Talk with these inputs (exceptions are raised); everything written, and the tokens and settings that generation
    was called with. `seeds` gets the seed of each answer."""
    written, calls, seeds = [], [], [] if seeds is None else seeds
    recalls = [] if recalls is None else recalls
    inputs = iter(lines)

    def ask(_prompt):
        line = next(inputs, EOFError())
        if isinstance(line, BaseException):
            raise line
        return line

    def recorded(decoder, tokens, limit, *, generator, stop_tokens, drafting, neighbours, recall, **settings):
        calls.append((tokens, settings))
        seeds.append(generator.initial_seed())
        recalls.append(recall)
        yield from (generate or (lambda: iter(b"fine")))()

    monkeypatch.setattr(talk_module, "generate", recorded)
    how |= {"conversation": conversation, "ask": ask, "write": written.append}
    talk(None, lambda text: [0, *text.encode()], decode_bytes, **how)
    return "".join(written), calls


def texts(tokens: bytes) -> list[str]:
    return [text for _, text in text_pieces(tokens, decode_bytes)]


@pytest.mark.parametrize("text", ["plain", "naïve 漢字 😀!", "😀"])
def test_a_character_is_shown_when_all_its_bytes_are_there(text):
    pieces = texts(text.encode())
    assert "".join(pieces) == text
    assert "\ufffd" not in "".join(pieces)
    assert texts(text.encode()[:-1] if text == "😀" else b"") in ([], ["\ufffd"])


def test_the_time_of_a_token_does_not_grow_with_the_text():
    text, lengths = "naïve 漢字 😀! " * 40, []

    def decode(tokens: list[int]) -> str:
        lengths.append(len(tokens))
        return decode_bytes(tokens)

    pieces = list(text_pieces(text.encode(), decode))
    assert "".join(piece for _, piece in pieces) == text
    assert pieces[-1][0] == len(text.encode())
    assert max(lengths) < 50


def test_a_row_of_bytes_that_is_a_text_of_its_own_is_never_cut_within_a_character():
    """A ByteFallback decoder makes U+FFFD of all single bytes in a row if they are no text."""

    def decode(tokens: list[int]) -> str:
        try:
            return bytes(tokens).decode()
        except UnicodeDecodeError:
            return "\ufffd" * len(tokens)

    text, lengths = "သင်္ဘောသဘေ" * 30, []
    pieces = text_pieces(text.encode(), lambda tokens: lengths.append(len(tokens)) or decode(tokens))
    assert "".join(piece for _, piece in pieces) == text
    assert max(lengths) < 100
    endless = [
        piece for _, piece in text_pieces(b"\xff" * 1000, lambda tokens: lengths.append(len(tokens)) or decode(tokens))
    ]
    assert set("".join(endless)) == {"\ufffd"}


def test_bytes_that_never_become_a_character_do_not_stall_the_stream():
    assert "".join(texts(b"a\xff\xffb")) == "a\ufffd\ufffdb"


def test_settings_reach_generation_and_wrong_ones_are_explained(monkeypatch):
    text, calls = converse(["/temperature 0.5", "/top_p 7", "/topp 1", "hi", ""], monkeypatch)
    assert calls == [([0, *b"hi"], {"temperature": 0.5, "top_p": 0.95, "block_ngram": 0})]
    assert "0 to 1" in text
    assert "/top_p" in text
    assert "fine" in text
    assert "4 tokens" in text


def test_a_text_may_have_several_lines(monkeypatch):
    _, calls = converse(
        ["def f(x):\\", "    if x:\\", "        return \t", "/* pasted */\nint x;", "", "// one", "  x  "], monkeypatch
    )
    assert [bytes(tokens[1:]) for tokens, _ in calls] == [
        b"def f(x):\n    if x:\n        return",
        b"/* pasted */\nint x;",
        b"// one",
        b"  x",
    ]


def test_what_is_typed_of_a_text_when_ctrl_c_or_the_end_comes_is_dropped(monkeypatch):
    text, calls = converse(["one\\", KeyboardInterrupt(), "two\\"], monkeypatch)
    assert calls == []
    assert "(/quit leaves)" in text


def test_again_continues_the_last_text_with_the_settings_of_now(monkeypatch):
    text, calls = converse(["/again", "hi", "/repeat 3", "/again", "/again now"], monkeypatch)
    assert "There is no text yet to continue again." in text
    assert [(tokens, settings["block_ngram"]) for tokens, settings in calls] == [([0, *b"hi"], 0), ([0, *b"hi"], 3)]
    assert "did you mean /again?" in text


def test_every_answer_says_its_seed_which_is_another_each_time(monkeypatch):
    seeds = []
    text, _ = converse(["/seed 7", "hi", "/again", "/seed 7", "hi", "/seed"], monkeypatch, seeds=seeds)
    assert seeds == [7, 8, 7]
    assert re.findall(r"seed (\d+)\]", text) == ["7", "8", "7"]
    assert "seed = 8\n" in text


def test_recall_is_fitted_once_and_only_when_asked_for(monkeypatch):
    fitted, recalls = Recall(Gate(np.zeros((1, 8)))), []
    found = [(None, "does not help"), (fitted, "2.0 without, 1.0 with it"), (None, "fitted once more")]
    lines = ["hi", "/recall 1", "hi", "/recall 1", "hi", "/recall 0", "hi", "/recall 1", "hi"]
    text, _ = converse(lines, monkeypatch, recalls=recalls, load_recall=lambda: found.pop(0))
    assert recalls == [None, None, fitted, None, fitted]
    assert "does not help\n" in text
    assert "1.0 with it\n" in text
    assert "once more" not in text

    def stopped():
        raise KeyboardInterrupt

    text, calls = converse(["/recall 1", "hi"], monkeypatch, load_recall=stopped)
    assert "recall = 0\n" in text
    assert len(calls) == 1


def test_quit_leaves_and_help_says_how(monkeypatch):
    text, calls = converse(["/help", "/quit", "not read any more"], monkeypatch)
    assert text.count("Ctrl-C stops") == 2  # at the beginning, and when asked
    assert "temperature = 0.8, top_p = 0.95, repeat = 0, length = 400, recall = 0, seed = " in text
    assert calls == []


def test_a_misspelt_setting_is_told_the_nearest_and_one_without_a_value_its_own():
    settings = {"temperature": 0.8}
    assert change_setting("/agai", settings, ["again"]) == "Unknown setting; did you mean /again?"
    assert change_setting("/temp 1", settings) == "Unknown setting; did you mean /temperature?"
    assert change_setting("/tempratur 1", settings) == "Unknown setting; did you mean /temperature?"
    assert "there are /temperature, /top_p, /repeat, /length, /recall, /seed, /quit" in change_setting(
        "/x", settings, ["quit"]
    )
    assert change_setting("/temperature", settings) == "temperature = 0.8"


def test_the_length_is_a_whole_number():
    settings = {"length": 400}
    for wrong in ("100.5", "0", "-1", "many", "2000000"):
        assert "/length takes a whole number from 1 to 1,000,000" in change_setting(f"/length {wrong}", settings)
    assert change_setting("/length 100", settings) == "length = 100"
    assert settings == {"length": 100}


def test_a_setting_that_is_no_number_changes_nothing():
    settings = {"temperature": 0.8}
    for command in ("/temperature warm", "/temperature nan", "/temperature -1"):
        assert "number from 0" in change_setting(command, settings)
    assert settings == {"temperature": 0.8}


def test_ctrl_c_stops_the_answer_and_the_next_prompt_is_asked(monkeypatch):
    answers = iter([True, False])

    def generate():
        yield from b"begun"
        if next(answers):
            raise KeyboardInterrupt
        yield from b" and ended\x1b[2J"

    text, calls = converse(["one", KeyboardInterrupt(), "two"], monkeypatch, generate)
    assert len(calls) == 2
    assert "[stopped]" in text
    assert "begun and ended[2J" in text  # control characters do not reach the terminal


def test_bytes_that_are_no_text_end_nothing(monkeypatch):
    text, calls = converse([UnicodeDecodeError("utf-8", b"\xe9", 0, 1, "invalid"), "hi"], monkeypatch)
    assert "That is not UTF-8 text." in text
    assert len(calls) == 1


class Zeros:
    """Drafts a byte, any, each time."""

    tokens_N = torch.arange(256)

    def begin(self, hidden_D, tokens):
        return 1

    def step(self, token):
        return torch.zeros(256)


def test_a_seed_gives_the_same_text_of_a_real_model():
    config = ModelConfig(hidden_size=16, num_layers=1, num_heads=1, seq_length=32, mlp_size=16)
    lines, written = iter(["/length 20", "/seed 7", "hello", "/again", "/seed 7", "/again"]), []
    talk(
        Decoder(Transformer(config, 256)),
        lambda text: list(text.encode()),
        lambda tokens: " ".join(map(str, tokens)),
        ask=lambda _: next(lines, "/quit"),
        write=written.append,
    )
    first, other, same = re.findall(r"(?m)^([\d ]+)\n\[20 tokens", "".join(written))
    assert first == same
    assert first != other


def test_talking_to_a_real_model():
    config = ModelConfig(hidden_size=16, num_layers=1, num_heads=1, seq_length=32, mlp_size=16)
    lines, written = iter(["hello", "/quit"]), []
    talk(
        Decoder(Transformer(config, 256)),
        lambda text: list(text.encode()),
        decode_bytes,
        drafter=Zeros(),
        ask=lambda _: next(lines),
        write=written.append,
    )
    last_line = "".join(written).splitlines()[-1]
    assert re.fullmatch(rf"\[{MAX_NEW_TOKENS} tokens, \d+ tokens/s, \d+% of drafts kept, seed \d+\]", last_line)
