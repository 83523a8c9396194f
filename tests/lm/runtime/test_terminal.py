"""What is said reaches whoever reads it whole: in a terminal of whatever width, and in a file."""

import fcntl
import os
import struct
import termios

import pytest

from lm.runtime.terminal import SIZE, size_of, tell

pytestmark = pytest.mark.core

MESSAGE = "the preset cannot start:\n    its folder \x1b[2J/home/somebody/with/a/long/name does not exist"


@pytest.fixture
def terminal():
    """(a function that sets its size, the terminal to write to, what it has shown)"""
    reader, writer = os.openpty()

    def resize(columns: int, lines: int) -> None:
        fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    with open(writer, "w", buffering=1) as stream:
        yield resize, stream, lambda: os.read(reader, 1_000).decode().splitlines()
    os.close(reader)


def test_a_terminal_gets_lines_that_end_between_words(terminal):
    resize, stream, shown = terminal
    resize(40, 24)
    tell(MESSAGE, stream)
    assert shown() == [
        "the preset cannot start:",
        "    its folder",
        "    [2J/home/somebody/with/a/long/name",
        "    does not exist",
    ]


def test_a_file_gets_lines_as_they_are(tmp_path):
    with (tmp_path / "log").open("w") as log:
        tell(MESSAGE, log)
        assert size_of(log) == SIZE
    assert (tmp_path / "log").read_text() == MESSAGE.replace("\x1b", "") + "\n"


def test_a_terminal_that_does_not_tell_its_size_has_the_usual_one(terminal):
    resize, stream, _ = terminal
    resize(0, 0)
    assert size_of(stream) == SIZE
    resize(132, 50)
    assert size_of(stream) == (132, 50)
