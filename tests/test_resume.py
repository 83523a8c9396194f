"""A run that is killed, stopped or loses its producer ends where an uninterrupted one does, to the last bit.

On a CPU, with every head and adaptive sources on: what is trained, in which order and with which random numbers are
then all functions of the tokens seen.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest

from lm.metrics import read_metrics
from tests.program import (
    ALL_HEADS,
    BUDGET,
    Program,
    check_logs,
    ended,
    fingerprint,
    torchrun,
    workers_of,
    write_text,
)

ADAPTIVE = {"enable_adaptive_sources": True, "adaptive_interval_tokens": 3_000, "adaptive_smoothing": 0.0}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    return write_text(tmp_path_factory.mktemp("text"))


@pytest.fixture
def make(text, tmp_path):
    """Programs with one preset, `strategy` its mixture."""
    made = []

    def program(name: str, strategy: str = "weighted", *, adaptive: bool = True) -> Program:
        weights = {"source_weights": [1.0, 3.0]} if strategy == "weighted" else {}
        auxiliary = ALL_HEADS | (ADAPTIVE if adaptive else {})
        made.append(Program(tmp_path / name, text))
        made[-1].add(model={"seq_length": 64}, data={"mix_strategy": strategy, **weights}, auxiliary=auxiliary)
        return made[-1]

    yield program
    for one in made:
        one.close()


def producer_of(process) -> int | None:
    """The process id of its child, if it has one now."""
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == process.pid:
            return int(status.parent.name)
    return None


@pytest.mark.skipif(sys.platform != "linux", reason="finds the producer in /proc")
@pytest.mark.parametrize("strategy", ["round_robin", "weighted"])
def test_kills_at_any_instant_leave_no_trace(strategy, make):
    whole = make("whole", strategy)
    assert whole.run().code == 0
    state = whole.state()
    assert state["tokens_seen"] == BUDGET
    changes = state["stream_position"]["weight_changes"]
    from_row, weights = changes[0]
    assert weights != pytest.approx([1.0, 3.0] if strategy == "weighted" else [1.0, 1.0], rel=0.01)
    assert from_row * 64 < BUDGET - 5_000  # adapted weights are in force well before the end
    check_logs(whole)

    killed, rng = make("killed", strategy), random.Random(strategy)
    for first, last in ((0, 4_000), (5_000, 16_000)):
        process = killed.start()
        killed.wait_for(rng.randrange(first, last), process)
        time.sleep(rng.uniform(0.0, 0.05))
        os.killpg(process.pid, signal.SIGKILL)
        assert ended(process).code == -signal.SIGKILL
    process = killed.start()
    killed.wait_for(killed.tokens_in_metrics() + 1_000, process)
    os.kill(producer_of(process), signal.SIGKILL)
    result = ended(process)
    assert result.code == 0, result.err
    assert fingerprint(killed.state()) == fingerprint(state)
    rows = "stream/rows.bin"
    assert (killed.checkpoints / rows).read_bytes() == (whole.checkpoints / rows).read_bytes()
    check_logs(killed)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_next_start_goes_on(number, make):
    program = make("program")
    process = program.start()
    program.wait_for(5_000, process)
    process.send_signal(number)
    result = ended(process)
    assert result.code == 0, result.err
    assert "Stopping as soon as it is safe" in result.err
    seen = program.state()["tokens_seen"]
    assert 5_000 <= seen < BUDGET
    assert f"Saved at {seen:,} tokens" in result.out
    assert read_metrics(program.checkpoints / "metrics.jsonl")[-1]["tokens"] == seen

    if number == signal.SIGINT:
        result = program.run()
        assert f"Enter: resume tiny at {seen / 1000:.1f}k" in result.out
        assert program.state()["tokens_seen"] == BUDGET
        check_logs(program)


def test_a_second_signal_leaves_at_once(make):
    program = make("program")
    program.add(model={"seq_length": 64}, train={"accumulation_steps": 4096})  # a step of minutes
    process = program.start()
    while "trying one step" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert "Stopping as soon as it is safe" in process.stderr.readline() + process.stderr.readline()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=5) == 128 + signal.SIGINT
    assert not program.written()


def test_two_processes_train_what_one_goes_on_with(make):
    program = make("program")
    process = program.start(launcher=torchrun(2))
    program.wait_for(6_000, process)
    process.send_signal(signal.SIGTERM)
    result = ended(process)
    state = program.state()
    assert state["world_size"] == 2, result.err
    assert state["global_batch_rows"] == 16
    assert 6_000 <= state["tokens_seen"] < BUDGET
    assert f"Saved at {state['tokens_seen']:,} tokens" in result.out

    result = program.run()
    assert result.code == 0, result.err
    state = program.state()
    assert (state["tokens_seen"], state["world_size"], state["global_batch_rows"]) == (BUDGET, 1, 16)
    check_logs(program)


@pytest.mark.skipif(sys.platform != "linux", reason="finds the workers in /proc")
def test_any_number_of_processes_sees_the_same_text(make):
    """With fixed weights: adaptive ones follow losses, whose last digits depend on how many processes add them up."""
    whole, killed = make("whole", adaptive=False), make("killed", adaptive=False)
    assert whole.run().code == 0
    for num_processes, tokens in ((2, 4_000), (4, 9_000), (1, 14_000)):
        process = killed.start(launcher=torchrun(num_processes))
        killed.wait_for(tokens, process)
        os.killpg(process.pid, signal.SIGKILL)
        for worker in workers_of(killed).values():
            os.kill(worker, signal.SIGKILL)  # torchrun starts each in a session of its own
        assert ended(process).code == -signal.SIGKILL
    assert killed.run(launcher=torchrun(2)).code == 0
    digests = [program.state()["stream_position"]["text_digest"] for program in (whole, killed)]
    assert digests[0] == digests[1] != ""


def test_two_processes_meet_the_budget(make):
    program = make("program")
    result = program.run(launcher=torchrun(2))
    assert result.code == 0, result.err
    assert program.state()["tokens_seen"] == BUDGET
    assert result.out.count("Done: ") == 1
    evaluations = [line for line in read_metrics(program.checkpoints / "metrics.jsonl") if "eval" in line]
    assert result.out.count("held out: ") == len(evaluations)  # said once, not by each
    check_logs(program)
