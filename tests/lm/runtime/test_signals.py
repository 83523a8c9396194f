"""Every signal that means to stop, in every phase of the program: out within 10 seconds with exit code 0, nobody left behind,
and the run that went through all of it ends where an uninterrupted one does, to the last bit.

Real processes, real signals: Ctrl-C reaches the whole process group, compilers included, as a terminal sends it. Phases
are told apart by what the program prints and writes; the instant within a phase is random. FULL_COUNTS=1: more of them.
"""

import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from itertools import cycle
from pathlib import Path

import pytest

from lm.checkpoint.store import inspect
from lm.runtime.signals import SIGNALS, StopRequest
from tests.constants import FULL_COUNTS
from tests.cpu_clock import slowness
from tests.hub import no_fault, parquet
from tests.program import ALL_HEADS, BUDGET, ROOT, Program, fingerprint

SECONDS = 10
PERIOD = 6_000  # tokens; then the program saves, evaluates and samples, one after the other
INTERVALS = ("save_every_tokens", "eval_every_tokens", "sample_every_tokens")
NOTHING_IS_DUE = dict.fromkeys(INTERVALS, 10**9)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in /proc")]


class Started:
    """A program at work; `said` is all it has printed so far."""

    def __init__(self, program: Program, answers: str | None = None, **how):
        self.program, self.said = program, ""
        program.environment["PROGRAM"] = str(program.folder)
        self.process = program.start(answers, **how)
        del program.environment["PROGRAM"]
        pipes = (self.process.stdout, self.process.stderr)
        self._readers = [threading.Thread(target=self._read, args=(pipe,), daemon=True) for pipe in pipes]
        for reader in self._readers:
            reader.start()

    def _read(self, pipe) -> None:
        for line in pipe:
            self.said += line

    def wait_for(self, there: str | Callable[[], bool]) -> None:
        """Until the words are said or the callable says so."""
        deadline = time.monotonic() + 300
        while not (there() if callable(there) else there in self.said):
            assert self.process.poll() is None, f"over before {there}:\n{self.said}"
            assert time.monotonic() < deadline, f"{there} did not come:\n{self.said}"
            time.sleep(0.002)

    def stop(self, number: int, *, code: int = 0) -> float:
        """Sends the signal; the seconds until the program and all it started are gone."""
        began = time.monotonic()
        if number == signal.SIGINT:
            os.killpg(self.process.pid, number)
        else:
            self.process.send_signal(number)
        ended = self.process.wait(60)
        limit = SECONDS * slowness()
        while (left := running(self.program)) and time.monotonic() < began + limit:
            time.sleep(0.01)
        seconds = time.monotonic() - began
        for reader in self._readers:
            reader.join(10)
        assert ended == code, f"exit code {ended}:\n{self.said}"
        assert not left, f"left behind: {left}"
        assert seconds < limit, f"{seconds:.1f} s:\n{self.said}"
        return seconds

    def listens(self) -> bool:
        """Whether it has handlers for the signals; before it has run its first lines nobody could."""
        caught = Path(f"/proc/{self.process.pid}/status").read_text().partition("SigCgt:")[2].split()[0]
        return all(int(caught, 16) >> (number - 1) & 1 for number in SIGNALS)


def running(program: Program) -> list[str]:
    """The commands of this program and of all processes that it has started, directly or not: they have its environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if f"PROGRAM={program.folder}\0".encode() in (path / "environ").read_bytes():
                found.append((path / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return [command for command in found if command]  # a zombie has none


@pytest.fixture
def make(text, tmp_path):
    made = []

    def program(name: str = "program", *, token_budget: int = BUDGET, train=(), **changes) -> Program:
        made.append(Program(tmp_path / name, text, token_budget=token_budget))
        intervals = dict.fromkeys(INTERVALS, PERIOD)
        made[-1].add(
            **{"model": {"seq_length": 64}, "train": {**intervals, "eval_tokens": 100_000, **dict(train)}, **changes}
        )
        return made[-1]

    yield program
    for one in made:
        one.close()


# ---- every phase of one process ---------------------------------------------------------------------------------


def begins(started: Started) -> None:
    started.wait_for(started.listens)


def says(words: str) -> Callable[[Started], None]:
    return lambda started: started.wait_for(words)


def trains(started: Started) -> None:
    begun = started.program.tokens_in_metrics()
    started.wait_for(lambda: started.program.tokens_in_metrics() > begun)


def saves(started: Started) -> None:
    begun = inspect(started.program.checkpoints).tokens_seen
    started.wait_for(lambda: inspect(started.program.checkpoints).tokens_seen > begun)


def ends(started: Started) -> None:
    """The second time all is trained already."""
    started.wait_for("tokens of context")
    started.wait_for(lambda: inspect(started.program.checkpoints).trained)


# Phase: how to wait for it, and the seconds within which the signal then comes.
BEFORE_THE_FIRST_STEP = {
    "start-up, menu": (begins, 0.4),
    "import of torch, opening of sources": (says("no input"), 3.0),
    "dry run": (says("trying one step"), 0.8),
    "preparation of the stream": (says("tokens of context"), 0.5),
}
WITH_IMPORTS = [*BEFORE_THE_FIRST_STEP][:2]
WITH_SOMETHING_TO_SAVE = {
    "training": (trains, 0.3),
    "save, evaluation": (saves, 0.3),
    "sampling": (says("held out: "), 0.2),
}
AT_THE_END = {"final evaluation": (ends, 0.2), "report, export": (ends, 1.0)}


def test_a_run_interrupted_in_every_phase_ends_as_if_nothing_had_been(make):
    budget = 10 * BUDGET if FULL_COUNTS else BUDGET
    whole, program = (make(name, auxiliary=ALL_HEADS, token_budget=budget) for name in ("whole", "stopped"))
    assert whole.run().code == 0
    rng, numbers, slowest = random.Random(4), cycle(SIGNALS), 0.0
    print()
    for phases, times in ((BEFORE_THE_FIRST_STEP, 9), (WITH_SOMETHING_TO_SAVE, 1), (AT_THE_END, 9)):
        for name, (wait, within) in list(phases.items()) * (times if FULL_COUNTS else 1):
            (program.checkpoints / "report.md").unlink(missing_ok=True)  # of a run that was faster than its signal
            started = Started(program, warm=name not in WITH_IMPORTS)
            number, later = next(numbers), rng.uniform(0, within)
            wait(started)
            time.sleep(later)
            seconds = started.stop(number)
            slowest = max(slowest, seconds)
            seen = program.state()["tokens_seen"] if (program.checkpoints / "lm_current.pth").exists() else 0
            print(f"{name}, {later:.2f} s later: {number.name}, out in {seconds:.2f} s, {seen:,} tokens saved")
            assert "Traceback" not in started.said, started.said
            if phases is WITH_SOMETHING_TO_SAVE:
                assert f"Saved at {seen:,} tokens" in started.said
            elif "Done: " not in started.said:
                assert "Stopped" in started.said or f"Saved at {seen:,} tokens" in started.said
            assert (program.checkpoints / "report.md").exists() == ("Done: " in started.said)
    result = program.run()
    assert result.code == 0, result.err
    print(f"slowest: {slowest:.2f} s")
    assert fingerprint(program.state()) == fingerprint(whole.state())
    rows = "stream/rows.bin"
    assert (program.checkpoints / rows).read_bytes() == (whole.checkpoints / rows).read_bytes()
    assert (program.checkpoints / "report.md").exists()


@pytest.mark.parametrize("number", SIGNALS)
def test_while_the_menu_waits_for_an_answer(number, make, tmp_path):
    program = make()
    os.mkfifo(tmp_path / "nobody")
    started = Started(program, launcher=("/bin/sh", "-c", f'exec {sys.executable} "$0" <> {tmp_path / "nobody"}'))
    started.wait_for("Enter: start")
    time.sleep(0.1)
    print(f"\n{number.name} at the menu: out in {started.stop(number):.2f} s")
    assert "\nStopped.\n" in started.said


@pytest.mark.skipif(not FULL_COUNTS, reason="takes minutes, the phases are tested above: FULL_COUNTS=1")
def test_at_random_instants(make):
    whole, program, rng = make("whole"), make("stopped"), random.Random(5)
    assert whole.run().code == 0
    for _ in range(60):
        started, later, number = Started(program, warm=False), rng.uniform(0, 8), rng.choice(SIGNALS)
        started.wait_for(started.listens)
        time.sleep(later)
        seconds = started.stop(number)
        print(f"{later:.2f} s after the start: {number.name}, out in {seconds:.2f} s")
        assert "Traceback" not in started.said, started.said
    assert program.run().code == 0
    assert fingerprint(program.state()) == fingerprint(whole.state())


WHILE_HANDLERS_CHANGE = """
    import os, signal, sys, time
    from lm.runtime.signals import StopRequest, interruptible, leave_on_signals
    sys.setswitchinterval(60)  # no other thread has its turn before this one waits
    leave_on_signals()
    time.sleep(0.1)
    os.kill(os.getpid(), signal.{name})
    with {hears}():
        time.sleep(1)
    print("nobody heard it")
"""


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("hears", ["StopRequest", "interruptible"])
def test_just_before_others_hear_it(hears, number):
    script = textwrap.dedent(WHILE_HANDLERS_CHANGE.format(name=number.name, hears=hears))
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "\nStopped.\n")


IN_A_SCRIPT = """
    import os, signal, time
    from lm.runtime.signals import StopRequest
    try:
        with StopRequest():
            os.kill(os.getpid(), signal.{name})
            time.sleep(5)
    except KeyboardInterrupt as error:
        print("caught:", error)
"""


def test_an_interrupt_that_a_notebook_sends_twice_is_one(monkeypatch):
    left = []
    monkeypatch.setattr(os, "_exit", left.append)
    with StopRequest() as stop:
        stop.farewell = None
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        assert stop()
        assert not left
        time.sleep(0.35)
        os.kill(os.getpid(), signal.SIGINT)
        assert left == [128 + signal.SIGINT]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_script_that_trains_is_not_ended(number):
    script = textwrap.dedent(IN_A_SCRIPT.format(name=number.name))
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stdout) == (0, "caught: Stopped before the first step: nothing new to save.\n")


# ---- what takes long --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])  # to all its processes, and to it alone
def test_while_compiling(number, make):
    program = make(train={"per_gpu_batch_size": 2})
    del program.environment["TORCH_COMPILE_DISABLE"]
    program.environment["TORCHINDUCTOR_CACHE_DIR"] = str(program.folder / "compiled")
    started = Started(program)
    started.wait_for(lambda: time.sleep(0.05) or any("cc1plus" in command for command in running(program)[1:]))
    time.sleep(random.Random(number).uniform(0, 2))
    print(f"\n{number.name} while compiling: out in {started.stop(number):.2f} s")
    assert "Traceback" not in started.said, started.said
    assert not program.written()


def test_while_the_network_is_down(make, hub):
    """Silent while the source is opened; then lost for a run that has used up its rows."""
    rows = [f"{i} {'a sentence of the Hub ' * 20}" for i in range(3000)]
    hub.add("tests/sentences", {"data/train.parquet": parquet(100, text=rows)})
    program = make(data={"sources": [{"type": "hf", "dataset": "tests/sentences"}]}, token_budget=3 * 10**5)
    program.environment["HF_ENDPOINT"] = hub.url
    hub.fault = lambda method, path, _: "stall" if "parquet" in path else None
    started = Started(program)
    started.wait_for(lambda: any("parquet" in request for request in hub.requests))
    print(f"\nthe Hub is silent: out in {started.stop(signal.SIGTERM):.2f} s")
    assert not program.written()

    hub.fault = no_fault
    started = Started(program)
    trains(started)
    hub.fault = lambda *_: "drop"
    started.wait_for("retrying")
    print(f"the Hub is gone: out in {started.stop(signal.SIGINT):.2f} s")
    assert f"Saved at {program.state()['tokens_seen']:,} tokens" in started.said


def test_a_long_step_is_given_up_and_done_again(make):
    """Asked in the second of two steps of 96 micro-batches: saved after the first."""
    step = 96 * 4 * 64
    long = NOTHING_IS_DUE | {"per_gpu_batch_size": 4, "accumulation_steps": 96}
    whole, program = (make(name, token_budget=2 * step, train=long) for name in ("whole", "stopped"))
    assert whole.run().code == 0
    started = Started(program)
    trains(started)
    seconds = started.stop(signal.SIGUSR1)
    print(f"\nin a step of {whole.state()['seconds'] / 2:.1f} s: out in {seconds:.2f} s")
    assert program.state()["tokens_seen"] == step
    assert program.run().code == 0
    assert fingerprint(program.state()) == fingerprint(whole.state())


def test_a_second_ctrl_c_leaves_at_once(make):
    """While the first waits for the micro-batch at work to end, which takes seconds."""
    large = NOTHING_IS_DUE | {"per_gpu_batch_size": 1024, "accumulation_steps": 1}
    program = make(train=large, token_budget=100 * 2**16)
    for _ in range(10):  # until there is one at work: between two steps the first ends the program
        started = Started(program)
        trains(started)
        started.process.send_signal(signal.SIGINT)
        started.wait_for("Stopping as soon as it is safe")
        time.sleep(0.35)  # a notebook's click is two signals at once
        started.process.send_signal(signal.SIGINT)
        began = time.monotonic()
        if (code := started.process.wait(60)) != 0:
            break
    seconds = time.monotonic() - began
    print(f"\nout in {seconds:.2f} s")
    assert code == 128 + signal.SIGINT
    assert seconds < slowness()


# ---- more than one process --------------------------------------------------------------------------------------


def test_torchrun_hands_a_warning_on(make):
    """SIGUSR1, which torchrun must be told to hand on; in a step of 48 micro-batches for each of two processes."""
    long = NOTHING_IS_DUE | {"per_gpu_batch_size": 4, "accumulation_steps": 48}
    program = make(train=long, token_budget=2**16)
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    started = Started(program, launcher=(*torchrun, "--signals_to_handle=SIGTERM,SIGINT,SIGUSR1"))
    trains(started)
    time.sleep(0.1)
    seconds = started.stop(signal.SIGUSR1, code=1)  # torchrun's own, which tells of the signal
    seen = program.state()["tokens_seen"]
    print(f"\nout in {seconds:.2f} s, {seen:,} tokens saved")
    assert seen % (2 * 48 * 4 * 64) == 0
    assert 0 < seen < 2**16
    assert started.said.count("Saved at") == 1
    assert 'main.py", line' not in started.said, started.said  # no traceback of ours
    result = program.run()
    assert result.code == 0, result.err
    assert program.state()["tokens_seen"] == 2**16


def test_one_run_in_a_folder_and_a_dead_one_in_nobodys_way(make):
    program = make()
    started = Started(program)
    trains(started)
    os.kill(started.process.pid, signal.SIGSTOP)  # else it might be over before the second comes
    second = program.run()
    assert second.code == 2, second.out + second.err
    assert f"Another run (process {started.process.pid}) is using {program.checkpoints}" in second.err
    assert "Traceback" not in second.err
    os.kill(started.process.pid, signal.SIGKILL)
    third = program.run()
    assert third.code == 0, third.err
    assert program.state()["tokens_seen"] == BUDGET
