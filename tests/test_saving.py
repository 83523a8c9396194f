"""Saves that fail while the real program trains: it goes on and says so, gives up after three, and nothing is lost.
Nor is it when the stream cannot be written any more, or its process will not live.

What stands in the way of a save is a folder that has the name of a checkpoint: no file can be renamed over it. A limit
on the size of its files is to the data process what a full disk is.
"""

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from lm.checkpoint.store import load
from tests.program import BUDGET, Program, ended, fingerprint, producer_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def uninterrupted(text, tmp_path_factory):
    program = Program(tmp_path_factory.mktemp("uninterrupted"), text)
    program.add()
    assert program.run().code == 0
    return program


@pytest.fixture
def program(text, tmp_path):
    program = Program(tmp_path / "program", text)
    program.change("lm/checkpoint/saver.py", "REST = 5", "REST = 0")  # a slow disk has as many saves
    add(program, save_every_tokens=1_000)
    yield program
    program.close()


def add(program: Program, *, save_every_tokens: int) -> None:
    seldom = {"eval_every_tokens": 20_000, "sample_every_tokens": 20_000}
    program.add(train={"save_every_tokens": save_every_tokens} | seldom)


def obstruct(program: Program) -> Path:
    """Puts a folder where the next save of a running program needs a name; a start would set it aside."""
    obstacle = program.checkpoints / "lm_prev2.pth"
    while not obstacle.is_dir():
        obstacle.unlink(missing_ok=True)  # a slow disk has seen fewer saves
        with suppress(FileExistsError):  # a save came in between
            obstacle.mkdir()
    return obstacle


def test_three_failed_saves_in_a_row_end_the_run_and_nothing_is_lost(program, uninterrupted):
    process = program.start()
    program.wait_for(2_500, process)
    obstruct(program)
    result = ended(process)
    assert result.code == 1
    assert "Traceback" not in result.err
    assert "3 saves in a row failed. The last of them: Saving" in result.err
    assert result.out.count("Is a directory") >= 3  # each was said, and training went on
    assert load(program.checkpoints)[0]["tokens_seen"] < program.tokens_in_metrics()

    result = program.run()  # sets the folder aside
    assert result.code == 0, result.err
    assert program.state()["tokens_seen"] == BUDGET
    assert fingerprint(program.state()) == fingerprint(uninterrupted.state())


def test_a_save_that_fails_once_is_said_and_made_up_for(program):
    add(program, save_every_tokens=5_000)  # time enough to take it away before the third
    process = program.start()
    program.wait_for(5_500, process)
    obstacle = obstruct(program)
    while "Saving" not in process.stdout.readline():
        assert process.poll() is None
    obstacle.rmdir()
    result = ended(process)
    assert result.code == 0, result.err
    assert obstacle.is_file()
    assert load(program.checkpoints)[0]["tokens_seen"] == BUDGET


@pytest.mark.skipif(sys.platform != "linux", reason="limits the files of another process")
def test_a_disk_that_is_full_under_the_stream_ends_the_run_saved_and_it_goes_on_once_there_is_room(
    program, uninterrupted
):
    import resource  # not on every system

    process = program.start()
    program.wait_for(5_000, process)
    process.send_signal(signal.SIGSTOP)  # with rows left to be written
    resource.prlimit(producer_of(process), resource.RLIMIT_FSIZE, (1, 1))
    process.send_signal(signal.SIGCONT)
    result = ended(process)
    assert result.code == 2, result.err
    assert "Traceback" not in result.err
    assert ".bin: File too large; make room there and start again" in result.err
    trained = program.tokens_in_metrics()
    saved = load(program.checkpoints)[0]["tokens_seen"]
    assert 5_000 <= trained <= saved < BUDGET  # every row that was there is trained on, and nothing of it lost

    result = program.run()
    assert result.code == 0, result.err
    assert fingerprint(program.state()) == fingerprint(uninterrupted.state())


@pytest.mark.skipif(sys.platform != "linux", reason="finds the producer in /proc")
@pytest.mark.parametrize(
    ("defect", "code", "says"),
    [
        ("os.abort()", 1, "ProducerDied: the data process ended 3 times, code -6"),
        (
            "raise MemoryError",
            2,
            "the data process was ended 3 times because there is not enough memory: raise the limit",
        ),
    ],
)
def test_a_data_process_that_dies_again_and_again_ends_the_run_saved(defect, code, says, program):
    process = program.start()
    program.wait_for(5_000, process)
    process.send_signal(signal.SIGSTOP)  # with rows left to be written
    program.change("data/producer.py", 'events.emit("opened")', defect)  # of those started from now on
    os.kill(producer_of(process), signal.SIGKILL)
    process.send_signal(signal.SIGCONT)
    result = ended(process)
    assert result.code == code
    assert says in result.err
    assert ("Traceback" in result.err) == (code == 1)
    assert 5_000 <= program.tokens_in_metrics() <= load(program.checkpoints)[0]["tokens_seen"] < BUDGET
