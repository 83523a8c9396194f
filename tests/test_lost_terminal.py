"""A terminal that is closed and output that nobody takes: a run is saved, or goes on, and never loses what it trained."""

import os
import pty
import signal
import sys
import time
from contextlib import suppress
from threading import Thread

import pytest

from tests.program import LONG_BUDGET, Program, ended

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="an end of a Linux terminal")]
SECONDS = 300


@pytest.fixture
def program(text, tmp_path):
    program = Program(tmp_path / "program", text, token_budget=LONG_BUDGET)
    program.add(train={"save_every_tokens": 10**9})  # no other save
    yield program
    program.close()


class Terminal:
    """`command` as the leader of a session with a terminal of its own, in which Enter is pressed at the prompt."""

    def __init__(self, program: Program, *command: str):
        self.process, self.master = pty.fork()
        if not self.process:
            os.chdir(program.elsewhere)
            os.execve(command[0], command, {**os.environ, **program.environment})
        self._closed = False
        self._reader = Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        said, asked = b"", False
        with suppress(OSError):
            while not self._closed:
                said += os.read(self.master, 10_000)
                if not asked and b"\n> " in said:
                    asked = True
                    os.write(self.master, b"\n")

    def poll(self) -> int | None:
        return None if os.waitid(os.P_PID, self.process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None else 1

    def close(self) -> int:
        """Close the window; returns the exit code."""
        self._closed = True  # the next output ends the reader: the last file of the terminal may be closed then
        self._reader.join(SECONDS)
        os.close(self.master)
        deadline = time.monotonic() + SECONDS
        while self.poll() is None:
            if time.monotonic() > deadline:
                os.kill(self.process, signal.SIGKILL)
            time.sleep(0.05)
        return os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])


def test_a_closed_terminal_saves_the_run_and_nohup_keeps_it(program):
    terminal = Terminal(program, sys.executable, str(program.folder / "main.py"))
    program.wait_for(3_000, terminal)
    assert terminal.close() == 0
    saved = program.state()["tokens_seen"]
    assert saved == program.tokens_in_metrics()
    assert 3_000 <= saved < LONG_BUDGET

    ignoring = 'trap "" HUP; exec "$0" "$@"'  # as nohup does, but for the output, which then goes nowhere
    terminal = Terminal(program, "/bin/sh", "-c", ignoring, sys.executable, str(program.folder / "main.py"))
    program.wait_for(saved + 2_000, terminal)
    assert terminal.close() == 0
    assert program.state()["tokens_seen"] == LONG_BUDGET
    assert (program.checkpoints / "report.md").exists()


def test_output_that_nobody_reads_is_dropped(program):
    process = program.start()
    while "trying one step" not in process.stdout.readline():
        assert process.poll() is None
    process.stdout.close()  # as `| head` does
    process.stderr.close()
    assert process.wait(SECONDS) == 0
    assert program.state()["tokens_seen"] == LONG_BUDGET
    assert "Done: " in (program.checkpoints / "run.log").read_text()


def test_output_that_was_closed_from_the_start_is_not_written_into_files(program):
    result = ended(program.start(launcher=("/bin/sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable)))
    assert (result.code, result.out, result.err) == (0, "", "")
    assert program.state()["tokens_seen"] == LONG_BUDGET
    assert (program.checkpoints / ".lock").read_text().strip().isdecimal()
