"""The words of a run: on the terminal of the first rank, with their time in run.log, and never in a run's way."""

import logging
import re

import pytest

from lm.runtime.log import RAW, close_run_log, open_run_log, show_log

pytestmark = pytest.mark.core

log = logging.getLogger("lm.test")


@pytest.fixture(autouse=True)
def closed():
    yield
    close_run_log()


def test_what_is_logged_before_there_is_a_file_is_in_it_too(tmp_path, capsys):
    show_log(True)
    log.info("before %d", 1)
    open_run_log(tmp_path)
    log.info("after\x1b]0;a title\x07")
    log.info("\x1b[31mred\x1b[0m", extra=RAW)
    close_run_log()
    log.info("when it is closed")
    lines = (tmp_path / "run.log").read_text().splitlines()
    assert [line.split(" ", 2)[2] for line in lines] == ["before 1", "after]0;a title", "red"]
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} ", line) for line in lines)
    assert capsys.readouterr().out == "before 1\nafter]0;a title\n\x1b[31mred\x1b[0m\nwhen it is closed\n"


def test_other_ranks_show_nothing(tmp_path, capsys):
    show_log(False)
    log.info("not here")
    assert capsys.readouterr().out == ""


def test_a_log_that_cannot_be_written_ends_nothing(tmp_path, capsys, monkeypatch):
    show_log(True)
    open_run_log(tmp_path / "gone")
    assert "run.log cannot be written" in capsys.readouterr().out

    def broken(text: str) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("lm.runtime.log.tqdm.write", broken)
    log.info("to nobody")
