"""Difficulty for the eye: every piece keeps its text, marks meet their characters, colours only for a person."""

import pytest

from lm.inference.difficulty import LINE, MARKS, coloured, level, marked_lines, pieces_of, shows_colours

pytestmark = pytest.mark.core


def decode(tokens: list[int]) -> str:
    return bytes(tokens).decode("utf-8", "replace")


def test_marks_stand_below_their_characters_and_harder_is_higher():
    pieces = [("easy", 0.0), (" mid", 3.1), ("\n\tunknown", None), (" hard", 9.0)]
    assert marked_lines(pieces).split("\n") == [
        "easy mid",
        MARKS[0] * 4 + MARKS[4] * 4,
        "    unknown hard",
        " " * 11 + MARKS[7] * 5,
    ]
    levels = [level(nats / 10) for nats in range(100)]
    assert levels == sorted(levels)
    assert set(levels) == set(range(8))


def test_a_long_line_is_cut_and_nothing_is_lost():
    lines = marked_lines([("x" * (LINE + 5) + "\n\ny", 2.0)]).split("\n")
    assert [len(line) for line in lines] == [LINE, LINE, 5, 5, 0, 1, 1]
    assert marked_lines([]) == ""


def test_pieces_make_up_the_text_and_a_character_belongs_to_the_token_that_ends_it():
    text = "aé漢\x1bz"
    tokens = list(text.encode())
    pieces = pieces_of(tokens, [float(i) for i in range(len(tokens))], decode)
    assert pieces == [("a", 0.0), ("é", 2.0), ("漢", 5.0), ("", 6.0), ("z", 7.0)]  # and no control characters
    torn = list("é".encode())[:1]
    assert pieces_of(torn, [1.0], decode) == [("\ufffd", 1.0)]


def test_colours_surround_the_text_and_end():
    assert coloured([("a", 0.0), ("b", None), ("c", 9.0)]) == "\x1b[38;5;33ma\x1b[39mb\x1b[38;5;202mc\x1b[39m"


@pytest.mark.parametrize(
    ("terminal", "environment", "shown"),
    [
        (True, {}, True),
        (False, {}, False),
        (True, {"NO_COLOR": "1"}, False),
        (True, {"TERM": "dumb"}, False),
    ],
)
def test_colours_are_for_a_terminal_whose_user_wants_them(monkeypatch, terminal, environment, shown):
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal, raising=False)
    assert shows_colours() is shown
