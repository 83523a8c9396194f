"""What is said reaches whoever reads it whole, in a terminal of whatever width and in a file; lines are edited."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable

import pytest

from lm.runtime.terminal import SIZE, size_of, tell
from tests.program import ROOT

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


READS_LINES = """
import signal
from lm.runtime.signals import interruptible, leave_on_signals
from lm.runtime.terminal import read_line
leave_on_signals()
with interruptible():
    while True:
        try:
            print("read", repr(read_line("\\n> ")))
        except KeyboardInterrupt:
            print("\\ninterrupted")
        except EOFError:
            break
"""


def test_piped_bytes_that_are_no_text_cost_their_own_line():
    code = READS_LINES.replace("except KeyboardInterrupt:", "except UnicodeDecodeError:")
    said = subprocess.run(
        [sys.executable, "-c", code],
        input=b"one\r\ncaf\xe9\nna\xc3\xafve\nlast",
        capture_output=True,
        cwd=ROOT,
        timeout=60,
    )
    lines = [line for line in said.stdout.decode().splitlines() if line not in ("", "> ")]
    assert [line.removeprefix("> ") for line in lines] == ["read 'one'", "interrupted", "read 'naïve'", "read 'last'"]


def typed(*keys: bytes | Callable[[int], None], code: str = READS_LINES) -> tuple[list[str], bool]:
    """Type at each prompt of a program in a terminal of its own, or do something to it; what it printed, and whether it
    left the terminal as it was."""
    said, unchanged = session(*keys, code=code)
    return re.findall("(?m)^(?:\\x1b\\[\\?2004l\r*)*((?:read|interrupted).*)\r", said), unchanged


def session(*keys: bytes | Callable[[int], None], code: str = READS_LINES) -> tuple[str, bool]:
    """Everything that was on the terminal while this was typed, and whether it was left as it was."""
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(ROOT)
        os.execve(sys.executable, [sys.executable, "-c", code], os.environ | {"TERM": "xterm", "INPUTRC": ""})
    before, said, waiting = termios.tcgetattr(terminal), b"", list(keys)
    while select.select([terminal], [], [], 60)[0]:
        try:
            said += os.read(terminal, 65_536)
        except OSError:  # Linux's end of a terminal
            break
        if waiting and said.count(b"\n> ") > len(keys) - len(waiting):
            key = waiting.pop(0)
            os.write(terminal, key) if isinstance(key, bytes) else key(process)
    else:
        os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    assert status == 0, said.decode()
    assert b"\n> \x1b[?2004h" in said  # what is pasted first is marked, too
    assert said.rfind(b"\x1b[?2004h") < said.rfind(b"\x1b[?2004l")  # nobody is left who understands marks
    unchanged = termios.tcgetattr(terminal) == before
    os.close(terminal)
    return said.decode(), unchanged


def test_what_is_typed_is_seen():
    """Once while it is typed, and once as what was read."""
    said, unchanged = session(b"hello\r", b"\x04")
    assert said.count("hello") == 2
    assert unchanged


def test_a_line_is_edited_before_it_is_read():
    keys = (b"abd\x1b[Dc\r", b"\x1b[A\x1b[A!\r", "né漢\x7f字\r".encode(), b"\tx\r", b"\x04")
    assert typed(*keys) == (["read 'abcd'", "read 'abcd!'", "read 'né字'", r"read '\tx'"], True)


def test_pasted_text_is_one_line_even_as_the_first_key():
    assert typed(b"\x1b[200~one\rtwo\r\tthree\x1b[201~\r", b"\x04") == ([r"read 'one\ntwo\n\tthree'"], True)


def test_every_ctrl_c_is_noticed():
    assert typed(*[b"\x03"] * 20, b"half\x03", b"\x04") == (["interrupted"] * 21, True)


def test_a_worker_of_torchrun_edits_lines_too():
    """It is in a session of its own, so that the terminal is not its own."""
    code = f"import os, sys\nif os.fork():\n    sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))\nos.setsid()\n{READS_LINES}"
    assert typed(b"abd\x1b[Dc\r", b"\x04", code=code) == (["read 'abcd'"], True)


def test_a_signal_leaves_the_terminal_as_it_was():
    def terminate_later(process: int) -> None:
        time.sleep(0.3)  # until the line is being edited
        os.kill(process, signal.SIGTERM)

    assert typed(b"a\r", terminate_later) == (["read 'a'"], True)


INTERRUPTED = """
import time
from lm.runtime.terminal import outlive_output

outlive_output()
for number in range(5_000):
    try:
        print(number, flush=True)
        while True:
            time.sleep(0.1)  # one that comes just before a sleep is heard after it
    except KeyboardInterrupt:
        pass
"""


def test_what_a_ctrl_c_interrupts_is_written_once():
    """Sent the moment a line is there: the print that wrote it may not have returned."""
    process = subprocess.Popen([sys.executable, "-c", INTERRUPTED], cwd=ROOT, stdout=subprocess.PIPE)
    for number in range(5_000):
        assert int(process.stdout.readline()) == number
        process.send_signal(signal.SIGINT)
    assert (process.stdout.read(), process.wait(60)) == (b"", 0)
    process.stdout.close()
