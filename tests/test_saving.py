"""Saves that fail while the real program trains: it goes on and says so, gives up after three, and nothing is lost.

What stands in the way is a folder that has the name of a checkpoint: no file can be renamed over it.
"""

import signal
from pathlib import Path

import pytest

from lm.checkpoint import load
from tests.program import BUDGET, Program, ended, fingerprint, write_text

pytestmark = pytest.mark.slow


@pytest.fixture
def program(tmp_path):
    program = Program(tmp_path / "program", write_text(tmp_path / "text"))
    add(program, save_every_tokens=1_000)
    yield program
    program.close()


def add(program: Program, *, save_every_tokens: int) -> None:
    seldom = {"eval_every_tokens": 20_000, "sample_every_tokens": 20_000}
    program.add(train={"save_every_tokens": save_every_tokens} | seldom)


def obstruct(program: Program) -> Path:
    """Trains for a while, stops, and puts a folder where the next save needs a name."""
    process = program.start()
    program.wait_for(2_500, process)
    process.send_signal(signal.SIGINT)
    assert ended(process).code == 0
    obstacle = program.checkpoints / "lm_prev2.pth"
    obstacle.unlink()
    obstacle.mkdir()
    return obstacle


def test_three_failed_saves_in_a_row_end_the_run_and_nothing_is_lost(program):
    uninterrupted = Program(program.folder / "whole", program.text)
    uninterrupted.add()
    assert uninterrupted.run().code == 0

    obstacle, stopped_at = obstruct(program), program.state()["tokens_seen"]
    result = program.run()
    assert result.code == 1
    assert "Traceback" not in result.err
    assert "3 saves in a row failed. The last of them: Saving" in result.err
    assert result.out.count("Is a directory") >= 3  # each was said, and training went on
    assert load(program.checkpoints)[0]["tokens_seen"] == stopped_at < program.tokens_in_metrics()

    obstacle.rmdir()
    result = program.run()
    assert result.code == 0, result.err
    assert program.state()["tokens_seen"] == BUDGET
    assert fingerprint(program.state()) == fingerprint(uninterrupted.state())


def test_a_save_that_fails_once_is_said_and_made_up_for(program):
    obstacle = obstruct(program)
    add(program, save_every_tokens=5_000)  # time enough to take it away before the third
    process = program.start()
    while "Saving" not in process.stdout.readline():
        assert process.poll() is None
    obstacle.rmdir()
    result = ended(process)
    assert result.code == 0, result.err
    assert obstacle.is_file()
    assert load(program.checkpoints)[0]["tokens_seen"] == BUDGET
