"""What is said reaches whoever reads it whole: in a terminal, and in a file."""

import os

from progress import tell

MESSAGE = "the preset cannot start:\n    its folder \x1b[2J/home/somebody/with/a/long/name does not exist"


def test_a_terminal_gets_lines_that_end_between_words(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    reader, writer = os.openpty()
    with open(writer, "w") as terminal:
        tell(MESSAGE, terminal)
        terminal.flush()
        shown = os.read(reader, 1_000).decode().splitlines()
    os.close(reader)
    assert shown == [
        "the preset cannot start:",
        "    its folder",
        "    [2J/home/somebody/with/a/long/name",
        "    does not exist",
    ]


def test_a_file_gets_lines_as_they_are(tmp_path):
    with (tmp_path / "log").open("w") as log:
        tell(MESSAGE, log)
    assert (tmp_path / "log").read_text() == MESSAGE.replace("\x1b", "") + "\n"
