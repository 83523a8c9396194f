"""Whatever stdin is, alone and under torchrun: the program asks whom it can ask, takes what it can get, and ends.

A case may take 10 s longer than the plainest one did: importing torch on a busy machine takes as long as it takes.
"""

import os
import pty
import re
import select
import signal
import sys
import time
from pathlib import Path

import pytest

from lm.checkpoint.store import inspect
from tests.program import Ended, Program

pytestmark = pytest.mark.slow
BUDGET = 1_000
LONGEST_HANG = 10  # seconds
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
LAUNCHERS = {"python": (sys.executable,), "torchrun": TORCHRUN}


@pytest.fixture(scope="module")
def plain(text, tmp_path_factory) -> dict[str, tuple[Program, Ended, float]]:
    """By launcher: a program that was told by a pipe to train its second preset, how that ended, and its seconds."""
    programs = {}
    for name, launcher in LAUNCHERS.items():
        program = make(tmp_path_factory.mktemp(name), text)
        began = time.monotonic()
        ended = program.run("1\n", launcher=launcher, warm=False)  # as the starts that are compared with it
        programs[name] = (program, ended, time.monotonic() - began)
    yield programs
    for program, *_ in programs.values():
        program.close()


def make(folder: Path, text: Path) -> Program:
    program = Program(folder, text, token_budget=BUDGET)
    program.add("00_first", name="first", train={"eval_tokens": 500})
    program.add("01_second", name="second", train={"eval_tokens": 500})
    return program


@pytest.fixture(params=LAUNCHERS)
def launched(request, plain, text, tmp_path):
    """(a program that has trained nothing, how to launch it); it ends about as soon as the plain one."""
    program = make(tmp_path / "program", text)
    began = time.monotonic()
    yield program, LAUNCHERS[request.param]
    seconds, usual = time.monotonic() - began, plain[request.param][2]
    print(f"{seconds:.1f} s; from a pipe {usual:.1f} s")
    program.close()
    assert seconds < 2 * usual + LONGEST_HANG


def check_trained(program: Program, result: Ended, name: str) -> None:
    assert result.code == 0, result.out + result.err
    assert "Traceback" not in result.out + result.err
    assert result.out.count(f"Done: {BUDGET:,} tokens") == 1
    assert result.out.count("Small language models") == 1  # only the first process asks
    assert inspect(program.checkpoints).name == name


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_pipe_with_an_answer(launcher, plain):
    program, result, seconds = plain[launcher]
    print(f"\n{seconds:.1f} s")
    check_trained(program, result, "second")
    assert "no input" not in result.out
    assert "1.0k of 1.0k tokens" in result.err
    assert not re.search(r"[\r\x1b]", result.out + result.err), "a log moves no cursor"


def test_a_pipe_that_is_too_short(launched):
    """A name that does not exist, then the end: nobody can be asked again, and Enter was not pressed."""
    program, launcher = launched
    result = program.run("secnd\n", launcher=launcher)
    said, launcher_says = result.err, ""
    if launcher is TORCHRUN:  # of a process that ends with 2 it makes a traceback of its own, and a 1
        said, _, launcher_says = result.err.partition("Traceback")
        assert "ChildFailedError" in launcher_says
        assert 'main.py", line' not in launcher_says
    assert result.code == (1 if launcher is TORCHRUN else 2)
    assert "Traceback" not in result.out + said
    assert (said + launcher_says).count("there is no 'secnd'; the nearest is 'second'") == 1
    assert not program.written()


def test_closed(launched):
    program, launcher = launched
    result = program.run(launcher=("/bin/sh", "-c", 'exec "$@" <&-', "sh", *launcher))
    check_trained(program, result, "first")
    assert "no input: using the default, as with Enter" in result.out


def test_terminal(launched):
    """Who mistypes is asked again; then a preset by number, to the end."""
    program, launcher = launched
    result = in_terminal(program, launcher, ["secnd\n", "1\n"])
    check_trained(program, result, "second")
    assert "there is no 'secnd'; the nearest is 'second'" in result.out
    assert result.out.count("Enter: start 00_first") == 2


def test_a_terminal_whose_output_goes_to_a_file(plain):
    """The question is where the answer is typed, and not in the file."""
    program, *_ = plain["python"]
    shell = ("/bin/sh", "-c", 'exec "$@" > log.txt', "sh", sys.executable)
    result = in_terminal(program, shell, ["q\n"])
    assert result.code == 0
    assert "Small language models" in result.out
    assert (program.elsewhere / "log.txt").read_text() == ""


@pytest.mark.parametrize(("typed", "says"), [("\x04", "no input"), ("\x03", "Stopped.")])
def test_control_characters_in_a_terminal(typed, says, plain):
    """Ctrl-D is Enter, which for a finished run is to leave; Ctrl-C leaves."""
    program, *_ = plain["python"]
    result = in_terminal(program, LAUNCHERS["python"], [typed])
    assert result.code == 0, result.out
    assert says in result.out
    assert "Traceback" not in result.out


def test_ctrl_c_ends_an_answer_and_not_the_talk(plain):
    """Typed the moment a prompt appears, many times: none comes at an instant at which nobody hears it."""
    program, *_ = plain["python"]
    result = in_terminal(program, LAUNCHERS["python"], ["t\n", *["\x03"] * 50, "/quit\n"])
    assert result.code == 0, result.out
    assert result.out.count("(/quit leaves)") == 50


def test_a_line_without_end(plain):
    program, *_ = plain["python"]
    result = program.run("x" * 10_000_000)
    assert result.code == 2
    assert len(result.err) < 1_000


def in_terminal(program: Program, launcher: tuple[str, ...], answers: list[str]) -> Ended:
    """Typed at the prompts of a terminal of its own; what was said on it is `out`, without the terminal's \\r."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(program.elsewhere)
        os.execvpe(launcher[0], [*launcher, str(program.folder / "main.py")], {**os.environ, **program.environment})
    said, waiting, deadline = b"", list(answers), time.monotonic() + 300
    try:
        while time.monotonic() < deadline:
            if select.select([terminal], [], [], 1)[0]:
                try:
                    more = os.read(terminal, 65536)
                except OSError:  # Linux's end of a terminal
                    more = b""
                if not more:
                    break
                said += more
            if waiting and len(re.findall(rb"\n> ", said)) > len(answers) - len(waiting):
                os.write(terminal, waiting.pop(0).encode())
    finally:
        os.close(terminal)
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
    return Ended(os.waitstatus_to_exitcode(status), said.decode(errors="replace").replace("\r", ""), "")
