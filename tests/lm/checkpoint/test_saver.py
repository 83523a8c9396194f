"""Saving in the background: the state of one moment, whole, one after the other."""

import shutil
import threading
import time
from threading import Event

import pytest
import torch

from configs.errors import CheckpointError, SavingFailed
from lm.checkpoint import store
from lm.checkpoint.file import Snapshot
from lm.checkpoint.saver import MAX_FAILURES, Saver
from lm.checkpoint.store import ALIAS, CURRENT
from tests.lm.checkpoint.small_checkpoint import generations, make_state, tokens_in

LARGE = 3_000  # squared: 36 MB, some hundredths of a second on any disk


def test_training_goes_on_and_what_is_saved_is_the_moment_of_asking(tmp_path, monkeypatch):
    monkeypatch.setattr("lm.checkpoint.saver.REST", 1_000)
    saver, stepped, write = Saver(tmp_path), Event(), store.write
    monkeypatch.setattr(store, "write", lambda *what: stepped.wait(600) and write(*what))
    state = make_state(1)
    saver.save(state)
    assert saver.writing
    assert not saver.is_ready()
    state["model"]["weight"].fill_(2)  # the next step
    stepped.set()
    saver.wait()
    assert tokens_in(tmp_path / CURRENT) == 1
    assert not saver.is_ready()  # yet: the disk rests
    later = time.monotonic() + 60 * 1_000
    monkeypatch.setattr("lm.checkpoint.saver.time.monotonic", lambda: later)
    assert saver.is_ready()


def test_a_save_waits_for_the_one_before(tmp_path):
    saver = Saver(tmp_path)
    for tokens in (1, 2, 3):
        saver.save(make_state(tokens, size=LARGE))
    saver.wait()
    assert generations(tmp_path) == [3, 2, 1]


def test_the_last_save_is_tried_again_and_its_failure_raised(tmp_path, monkeypatch):
    saver, obstacle, waits = Saver(tmp_path), tmp_path / ALIAS, []
    obstacle.mkdir()
    main, sleep = threading.current_thread(), time.sleep  # threads of other tests may still be there
    monkeypatch.setattr(time, "sleep", lambda s: waits.append(s) if threading.current_thread() is main else sleep(s))
    with pytest.raises(CheckpointError, match="directory"):
        saver.save_last(make_state(1))
    assert len(waits) == MAX_FAILURES - 1
    monkeypatch.setattr("lm.checkpoint.saver.time.sleep", lambda _: shutil.rmtree(obstacle, ignore_errors=True))
    saver.save_last(make_state(2))
    assert tokens_in(tmp_path / CURRENT) == 2
    assert not saver.has_failed


def test_the_logs_are_on_the_disk_before_the_checkpoint_that_counts_on_them(tmp_path):
    saver = Saver(tmp_path, lambda: order.append((tmp_path / CURRENT).exists()))
    order: list[bool] = []
    saver.save_last(make_state(1))
    assert order == [False]


def test_a_defect_in_the_thread_is_raised_to_the_program(tmp_path, monkeypatch):
    def defective(*_):
        raise ZeroDivisionError

    monkeypatch.setattr("lm.checkpoint.store.write", defective)
    saver = Saver(tmp_path)
    with pytest.raises(ZeroDivisionError):
        saver.save_last(make_state(1))


def test_a_defect_that_was_raised_is_no_defect_of_the_next_save(tmp_path, monkeypatch):
    """A moment without memory: the last steps are saved, and this is what is said."""
    write, calls = store.write, []

    def short_of_memory_once(*arguments):
        calls.append(arguments)
        if len(calls) == 1:
            raise MemoryError
        write(*arguments)

    monkeypatch.setattr("lm.checkpoint.store.write", short_of_memory_once)
    saver = Saver(tmp_path)
    saver.save(make_state(1))
    saver.wait()
    assert saver.has_failed
    with pytest.raises(MemoryError):
        saver.check()
    saver.save_last(make_state(2))
    assert not saver.has_failed
    assert (tmp_path / CURRENT).exists()


def test_failures_are_logged_and_the_third_in_a_row_is_raised(tmp_path, monkeypatch):
    saver, said = Saver(tmp_path), []
    monkeypatch.setattr("lm.checkpoint.saver.log.error", lambda form, error: said.append(error))
    obstacle = tmp_path / CURRENT
    obstacle.mkdir()
    for number in range(1, MAX_FAILURES + 1):
        saver.check()
        saver.save(make_state(number))
        saver.wait()
        assert len(said) == number
    with pytest.raises(SavingFailed, match=r"3 saves in a row failed\. The last of them: Saving"):
        saver.check()
    obstacle.rmdir()
    saver.save(make_state(4))
    saver.wait()
    saver.check()  # forgotten
    assert tokens_in(tmp_path / CURRENT) == 4


def test_a_gpu_that_has_failed_is_not_asked_about_copies_of_a_run_on_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: pytest.fail("asks the GPU"))
    assert Snapshot(make_state(1)).contents()["tokens_seen"] == 1
