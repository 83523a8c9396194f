"""SIGINT, SIGTERM and SIGUSR1 in every phase of the program: out within 10 seconds with exit code 0, nobody left behind,
and the run that went through all of it ends where an uninterrupted one does, to the last bit.

Real processes, real signals: Ctrl-C reaches the whole process group, compilers included, as a terminal sends it. Phases
are told apart by what the program prints and writes; the instant within a phase is random. FULL_COUNTS=1: more of them.
"""

import os
import random
import signal
import sys
import threading
import time
from itertools import cycle
from pathlib import Path

import pytest

from lm.checkpoint import inspect
from stop import SIGNALS
from tests.program import ALL_HEADS, BUDGET, Program, fingerprint, write_text

FULL = bool(os.environ.get("FULL_COUNTS"))
SECONDS = 10
PERIOD = 6_000  # tokens: then save, evaluate and sample, one after the other
pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in /proc")]


class Started:
    """A program at work: `said` is all it has printed so far."""

    def __init__(self, program: Program, answers: str | None = None, **how):
        self.program, self.said = program, ""
        self.process = program.start(answers, **how)
        self.readers = [
            threading.Thread(target=self._read, args=(pipe,)) for pipe in (self.process.stdout, self.process.stderr)
        ]
        for reader in self.readers:
            reader.start()

    def _read(self, pipe) -> None:
        for line in pipe:
            self.said += line

    def wait_for(self, there, seconds: float = 240) -> None:
        """Until the words `there` are said, or the callable says so, or the program is over."""
        deadline = time.monotonic() + seconds
        while self.process.poll() is None and not (there() if callable(there) else there in self.said):
            assert time.monotonic() < deadline, f"{there} did not come:\n{self.said}"
            time.sleep(0.002)

    def stop(self, number: int, *, code: int = 0) -> float:
        """Sends the signal; the seconds until the program and all it started are gone."""
        began = time.monotonic()
        if number == signal.SIGINT:
            os.killpg(self.process.pid, number)
        else:
            os.kill(self.process.pid, number)
        ended = self.process.wait(60)
        seconds = time.monotonic() - began
        left = running(self.program)
        for reader in self.readers:
            reader.join(10)
        assert ended == code, f"exit code {ended}:\n{self.said}"
        assert "Traceback" not in self.said, self.said
        assert not left, f"left behind: {left}"
        assert seconds < SECONDS, f"{seconds:.1f} s:\n{self.said}"
        return seconds

    def handlers_are_set(self) -> bool:
        caught = Path(f"/proc/{self.process.pid}/status").read_text().partition("SigCgt:")[2].split()[0]
        return all(int(caught, 16) >> (number - 1) & 1 for number in SIGNALS)


def running(program: Program) -> list[str]:
    """The commands of all processes that were started by this program: what it started has its environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if f"PROGRAM={program.folder}\0".encode() in (path / "environ").read_bytes():
                found.append((path / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return [command for command in found if command]  # a zombie has none


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    return write_text(tmp_path_factory.mktemp("text"))


@pytest.fixture
def make(text, tmp_path):
    made = []

    def program(name: str, *, env=(), token_budget: int = BUDGET, **changes) -> Program:
        made.append(Program(tmp_path / name, text, token_budget=token_budget))
        made[-1].environment |= {"PROGRAM": str(made[-1].folder), **dict(env)}
        intervals = dict.fromkeys(("save_every_tokens", "eval_every_tokens", "sample_every_tokens"), PERIOD)
        train = {"eval_tokens": 100_000, **intervals, **changes.pop("train", {})}
        made[-1].add(**{"model": {"seq_length": 64}, "train": train, **changes})
        return made[-1]

    yield program
    for one in made:
        one.close()


# ---- every phase of one process ---------------------------------------------------------------------------------


def until(words: str):
    return lambda started: started.wait_for(words)


def starting(started: Started) -> None:
    started.wait_for(started.handlers_are_set)


def saved(started: Started) -> None:
    """Until the next checkpoint is there: what follows is the evaluation."""
    path = started.program.checkpoints / "lm_current.pth"
    started.wait_for("begin" if False else "tokens of context")
    before = path.stat().st_mtime_ns if path.exists() else 0
    started.wait_for(lambda: path.exists() and path.stat().st_mtime_ns != before)


def training(started: Started) -> None:
    begun = started.program.tokens_in_metrics()
    started.wait_for(lambda: started.program.tokens_in_metrics() > begun)


# Phase: how to wait for it, and the seconds within which the signal then comes.
BEFORE_THE_FIRST_STEP = {
    "start-up, menu": (starting, 0.4),
    "import of torch, opening of sources": (until("taken as Enter"), 3.0),
    "trial step": (until("trying one step"), 0.8),
    "preparation of the stream": (until("tokens of context"), 0.5),
}
WITH_SOMETHING_TO_SAVE = {
    "training": (training, 0.3),
    "save, evaluation": (saved, 0.3),
    "sampling": (until("held out: "), 0.2),
}
AT_THE_END = {
    "final evaluation": (lambda started: started.wait_for(lambda: finished(started.program)), 0.2),
    "report, export": (lambda started: started.wait_for(lambda: finished(started.program)), 2.0),
}


def finished(program: Program) -> bool:
    run = inspect(program.checkpoints)
    return bool(run) and run["finished"]


def test_a_run_interrupted_in_every_phase_ends_as_if_nothing_had_been(make):
    whole, program = make("whole", auxiliary=ALL_HEADS), make("stopped", auxiliary=ALL_HEADS)
    assert whole.run().code == 0
    rng, numbers, slowest = random.Random(4), cycle(SIGNALS), 0.0
    for phases, rounds in ((BEFORE_THE_FIRST_STEP, 9), (WITH_SOMETHING_TO_SAVE, 3), (AT_THE_END, 6)):
        for name, (wait, within) in list(phases.items()) * (rounds if FULL else 1):
            started, number, later = Started(program), next(numbers), rng.uniform(0, within)
            wait(started)
            time.sleep(later)
            if started.process.poll() is not None:  # it was through already
                continue
            seconds = started.stop(number)
            slowest = max(slowest, seconds)
            seen = program.state()["tokens_seen"] if (program.checkpoints / "lm_current.pth").exists() else 0
            print(f"{name}, {later:.2f} s later: {number.name}, out in {seconds:.2f} s, {seen:,} tokens saved")
            if phases is BEFORE_THE_FIRST_STEP:
                assert not program.written() - {"stream", "tokenizer.json", "metrics.jsonl", "samples.md"}
            elif "Saved at" in started.said:
                assert f"Saved at {seen:,} tokens" in started.said
    assert program.run().code == 0
    print(f"slowest: {slowest:.2f} s")
    assert fingerprint(program.state()) == fingerprint(whole.state())
    assert (program.checkpoints / "stream/rows.bin").read_bytes() == (
        whole.checkpoints / "stream/rows.bin"
    ).read_bytes()
    assert (program.checkpoints / "report.md").exists()
