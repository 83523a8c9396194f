"""A run that is killed, stopped or loses its producer ends where an uninterrupted one does, to the last bit.

On a CPU, with every head and adaptive sources on: what is trained, in which order and with which random numbers are
then all functions of the tokens seen.
"""

import json
import os
import signal
import sys
from contextlib import suppress

import pytest

from lm.report.metrics import read_metrics
from tests.program import ADAPTIVE, ALL_HEADS, BUDGET, LONG_BUDGET, Program, check_logs, ended, torchrun, workers_of

pytestmark = pytest.mark.slow


@pytest.fixture
def make(text, tmp_path):
    """Programs with one preset, `strategy` its mixture."""
    made = []

    def program(name: str, strategy: str = "weighted", *, adaptive: bool = True, token_budget: int = BUDGET) -> Program:
        weights = {"source_weights": [1.0, 3.0]} if strategy == "weighted" else {}
        auxiliary = ALL_HEADS | (ADAPTIVE if adaptive else {})
        made.append(Program(tmp_path / name, text, token_budget=token_budget))
        made[-1].add(model={"seq_length": 64}, data={"mix_strategy": strategy, **weights}, auxiliary=auxiliary)
        return made[-1]

    yield program
    for one in made:
        one.close()


def test_a_signal_saves_and_the_next_start_goes_on(make):
    program = make("program", token_budget=LONG_BUDGET)
    process = program.start()
    program.wait_for(5_000, process)
    process.send_signal(signal.SIGINT)
    result = ended(process)
    assert result.code == 0, result.err
    assert "Stopping as soon as it is safe" in result.err
    seen = program.state()["tokens_seen"]
    assert 5_000 <= seen < LONG_BUDGET
    assert f"Saved at {seen:,} tokens" in result.out
    assert read_metrics(program.checkpoints / "metrics.jsonl")[-1]["tokens"] == seen

    result = program.run()
    assert f"Enter: resume tiny at {seen / 1000:.1f}k" in result.out
    assert program.state()["tokens_seen"] == LONG_BUDGET
    check_logs(program, LONG_BUDGET)


def test_two_processes_train_what_one_goes_on_with(make):
    program = make("program", token_budget=LONG_BUDGET)
    process = program.start(launcher=torchrun(2))
    program.wait_for(6_000, process)
    process.send_signal(signal.SIGTERM)
    result = ended(process)
    state = program.state()
    assert state["world_size"] == 2, result.err
    assert state["global_batch_rows"] == 32
    assert 6_000 <= state["tokens_seen"] < LONG_BUDGET
    assert f"Saved at {state['tokens_seen']:,} tokens" in result.out

    path = program.folder / "configs" / "00_tiny.json"
    preset = json.loads(path.read_text())
    preset["train"] |= {
        "per_gpu_batch_size": 4,
        "accumulation_steps": 8,
    }  # what is advised if memory is short: the same step
    path.write_text(json.dumps(preset))
    result = program.run()
    assert result.code == 0, result.err
    state = program.state()
    assert (state["tokens_seen"], state["world_size"], state["global_batch_rows"]) == (LONG_BUDGET, 1, 32)
    check_logs(program, LONG_BUDGET)


@pytest.mark.skipif(sys.platform != "linux", reason="finds the workers in /proc")
def test_any_number_of_processes_sees_the_same_text(make):
    """With fixed weights: adaptive ones follow losses, whose last digits depend on how many processes add them up."""
    whole, killed = make("whole", adaptive=False), make("killed", adaptive=False)
    assert whole.run().code == 0
    for num_processes, tokens in ((1, 3_000), (2, 6_000), (4, 12_000)):
        process = killed.start(**({"launcher": torchrun(num_processes)} if num_processes > 1 else {}))
        killed.wait_for(tokens, process)
        os.killpg(process.pid, signal.SIGKILL)
        for worker in workers_of(killed).values():
            with suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)  # torchrun starts each in a session of its own
        assert ended(process).code == -signal.SIGKILL
    assert killed.run().code == 0
    digests = [program.state()["stream_position"]["text_digest"] for program in (whole, killed)]
    assert digests[0] == digests[1] != ""
