"""Text output, wrapped in a terminal, unchanged in a file, dropped where it is refused; lines of
input, edited in a terminal. Without torch: the menu uses it."""

import io
import os
import select
import sys
from contextlib import AbstractContextManager, nullcontext, redirect_stdout, suppress
from typing import Any, TextIO

from configs.text import printable, wrapped

with suppress(ImportError):  # Windows: what it lacks is said later
    import termios
    import tty

SIZE = os.terminal_size((80, 24))  # assumed if there is no terminal, or if its size is unknown
PASTE_ON, PASTE_OFF = "\x1b[?2004h", "\x1b[?2004l"  # the terminal marks what is pasted

_settings: list[Any] | None = None  # the terminal's own, while a line is edited


class _Output(io.TextIOWrapper):
    """stdout or stderr; it drops what cannot be written.

    Not by a file of ours behind it: a Ctrl-C between its write and its return would have the text
    written twice.
    """

    def write(self, text: str) -> int:
        with suppress(OSError):
            super().write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            super().flush()

    def close(self) -> None:
        with suppress(OSError):
            super().close()


def outlive_output() -> None:
    """Let the program go on when stdout or stderr is gone: a closed terminal, a pipe that nobody
    reads (`| head`), a full disk. To be called first of all, before any file is opened."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="strict")  # in some locales what is no UTF-8 would be read as surrogates
    while (descriptor := os.open(os.devnull, os.O_RDWR)) < 3:
        pass  # one that was closed at the start: a file of ours would get its number, and the output
    os.close(descriptor)
    for name, number, errors in (("stdout", 1, "replace"), ("stderr", 2, "backslashreplace")):
        file = io.BufferedWriter(io.FileIO(number, "w", closefd=False))
        encoding = getattr(getattr(sys, name), "encoding", "utf-8")
        setattr(sys, name, _Output(file, encoding, errors, line_buffering=True))


def say(text: str) -> None:
    """Print a line to stderr in a signal handler or another thread, where `print` may be in the
    middle of a line."""
    with suppress(OSError):
        os.write(2, f"\n{text}\n".encode())


def is_terminal(stream: TextIO | None) -> bool:
    return bool(stream and stream.isatty())


def questions_are_seen() -> AbstractContextManager[object]:
    """Let the user who types an answer see the question on stderr if stdout goes to a file."""
    elsewhere = is_terminal(sys.stdin) and not is_terminal(sys.stdout) and is_terminal(sys.stderr)
    return redirect_stdout(sys.stderr) if elsewhere else nullcontext()


def size_of(stream: TextIO) -> os.terminal_size:
    size = os.get_terminal_size(stream.fileno()) if is_terminal(stream) else SIZE
    return size if all(size) else SIZE


def fitted(text: str, stream: TextIO | None = None) -> str:
    """Return `text` printable, and wrapped between words if `stream` (stdout) is a terminal."""
    stream, text = stream or sys.stdout, printable(text)
    return wrapped(text, size_of(stream).columns) if is_terminal(stream) else text


def tell(text: str, stream: TextIO | None = None) -> None:
    print(fitted(text, stream), file=stream or sys.stdout)


def read_line(prompt: str) -> str:
    """Read a line as `input` does; in a terminal with line editing and history, and what is pasted
    is one line, with line breaks in it.

    Waits for the first key itself: `input` would miss a Ctrl-C that comes just before it waits.
    """
    global _settings
    if not is_terminal(sys.stdin):
        return _piped_line(prompt)
    if not _can_edit():
        print(prompt, end="", flush=True)
        _wait_for_input()
        return input()
    if len(prompt.rpartition("\n")[2]) >= size_of(sys.stdout)[0]:
        prompt = prompt.removesuffix("> ").rstrip() + "\n> "  # readline writes the last line again, from where it wraps
    _settings = termios.tcgetattr(0)
    try:
        tty.setcbreak(0, termios.TCSADRAIN)
        print(prompt + PASTE_ON, end="", flush=True)
        _wait_for_input()
        shows_keys = termios.tcgetattr(0)
        shows_keys[3] |= termios.ECHO  # or readline would hide the line, like a password
        termios.tcsetattr(0, termios.TCSANOW, shows_keys)
        print(end="\r")  # readline writes the prompt again
        return input(prompt.rpartition("\n")[2])
    finally:
        restore_terminal()


def _piped_line(prompt: str) -> str:
    """Read a line that no person types. What cannot be decoded costs its own line: `input` decodes what follows with it."""
    if not isinstance(sys.stdin, io.TextIOWrapper):
        return input(prompt)
    print(prompt, end="", flush=True)
    line = sys.stdin.buffer.readline()
    if not line:
        raise EOFError
    return line.decode(sys.stdin.encoding).rstrip("\r\n")


def restore_terminal() -> None:
    """Undo the changes of line editing to the terminal, unless it is another program's by now.
    There are none except while a line is read."""
    global _settings
    if _settings and not _in_background():
        with suppress(OSError, termios.error):  # a terminal that was closed
            termios.tcsetattr(0, termios.TCSANOW, _settings)
            os.write(1, PASTE_OFF.encode())
    _settings = None


def _in_background() -> bool:
    try:
        return os.tcgetpgrp(0) != os.getpgrp()
    except OSError:  # torchrun starts each worker in a session of its own, without job control
        return False


def _can_edit() -> bool:
    """Return whether `input` edits lines with GNU readline: both streams must be the terminal.

    Other libraries of that name, as on macOS, do not mark what is pasted.
    """
    try:
        import readline
    except ImportError:
        return False
    readline.parse_and_bind("set enable-bracketed-paste on")
    ours = sys.stdin.fileno() == 0 and sys.stdout.fileno() == 1 and os.isatty(1)
    return ours and "libedit" not in (readline.__doc__ or "")


def _wait_for_input() -> None:
    while not select.select([sys.stdin], [], [], 0.1)[0]:
        pass
