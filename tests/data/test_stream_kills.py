"""The stream when something dies or its files are damaged: the rows are those of an undisturbed one."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import chdir
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from configs.errors import ProducerDied, StreamDamaged
from data.producer_client import Stopped
from lm.runtime.signals import processes
from tests.constants import ROOT
from tests.data.small_stream import (
    DTYPE,
    T,
    check_that_kills_leave_no_trace,
    folder,
    journal,
    make_preset,
    read_all,
)
from tests.data.sources.test_pdf import make_pdf
from tests.hub import parquet

CHANGES = [(2000, [1.0, 1.0, 6.0]), (5000, [2.0, 2.0, 0.5])]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["weighted", "round_robin", "sequential"])
def test_a_producer_killed_at_any_instant_leaves_the_same_stream(strategy, tmp_path, started):
    preset, num_rows = make_preset(strategy), 12_000  # about 770k tokens; json alone is read many times over
    changes = [] if strategy == "sequential" else CHANGES
    check_that_kills_leave_no_trace(preset, tmp_path, started, num_rows, (0, 1, 1, 2500, 5000, 8000), changes)


@pytest.fixture
def all_kinds(hub, tmp_path):
    """A source of every kind: text and PDF folders, datasets on the Hub and on this disk. The `python` source is a folder of
    text with 190 MB, which every start would read."""
    sentences = [f"Number {n} squared is {n * n}, and its cube is {n**3}." for n in range(3000)]
    (tmp_path / "papers").mkdir()
    for n in range(3):
        pages = ["\n".join(sentences[first : first + 40]) for first in range(1000 * n, 1000 * n + 400, 40)]
        (tmp_path / "papers" / f"{n}.pdf").write_bytes(make_pdf(pages))
    hub.add(
        "owner/numbers",
        {f"data/train-{n}.parquet": parquet(rows_in_group=100, text=sentences[n::2]) for n in range(2)},
    )
    rows = [{"question": text.split(" is ")[0], "answer": text} for text in sentences]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [
        folder("json"),
        {"type": "pdf", "path": str(tmp_path / "papers")},
        {"type": "hf", "dataset": "owner/numbers"},
        {
            "type": "hf", "dataset": "json", "data_files": str(tmp_path / "rows.jsonl"),
            "fields": ["question", "answer"], "format": "{question}? {answer}",
        },
    ]  # fmt: skip


@pytest.mark.slow
def test_every_kind_of_source_goes_on_exactly_after_three_kills(all_kinds, tmp_path, started):
    preset = make_preset("weighted", sources=all_kinds, weights=None, source_weights=[4, 3, 2, 1])
    changes = [(2000, [1.0, 1.0, 6.0, 1.0])]
    check_that_kills_leave_no_trace(preset, tmp_path, started, 8_000, (1, 1500, 4000), changes)


@pytest.mark.slow
def test_a_dead_producer_is_replaced_and_the_trainer_only_waits(tmp_path, started):
    preset = make_preset()
    stream = started(preset, tmp_path / "a", 8000 * T)
    read_all(stream, 10)
    os.kill(stream._process.pid, signal.SIGKILL)
    tokens, source, _ = stream.rows(0, 8000)
    expected, expected_source, _ = read_all(started(preset, tmp_path / "b", 8000 * T), 8000)
    np.testing.assert_array_equal(tokens, expected)
    np.testing.assert_array_equal(source, expected_source)
    assert tokens.shape == source.shape == (8000, T + 1)


@pytest.mark.slow
def test_kills_leave_no_trace_where_copies_are_dropped(copies, tmp_path, started):
    for source in copies:
        del source["repeat"]
    preset = make_preset("weighted", sources=copies, weights=(2, 1))
    check_that_kills_leave_no_trace(preset, tmp_path, started, 8_000, (0, 1, 1, 2500, 5000), [])


def flip(path, position=None):
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if position is None else position] ^= 4
    path.write_bytes(content)


def without_hashes(path):
    with np.load(path) as arrays:
        kept = {name: arrays[name] for name in arrays if name != "hashes"}
    np.savez(path, hashes=np.zeros((0, 16), dtype=np.uint8), **kept)


def zero_tail(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 3] + bytes(len(content) - len(content) // 3))


STREAM_FILES = ("tokenizer.json", "stream/rows.bin", "stream/heldout.npz", "stream/stream.json")


@pytest.mark.slow
def test_whatever_is_lost_or_damaged_is_made_again_as_it_was(tmp_path, started):
    def begin(**of_run):
        said = []
        stream = started(make_preset(), tmp_path, 2000 * T, start_row=500, **of_run)
        header = stream.begin(on_status=said.append).header
        tokens = stream.rows(0, 2000)[0]
        stream.close()
        return header, tokens, [line for line in said if "ade again" in line]

    header, whole, said = begin()
    files = {name: (tmp_path / name).read_bytes() for name in STREAM_FILES}
    assert len(said) == 1  # no row of the 500 that were trained on was there
    for damages, lost in [
        ({}, None),
        ({"stream/rows.bin": flip}, r"rows from [\d,]+ on"),
        ({"stream/heldout.npz": without_hashes, "stream/rows.bin": zero_tail}, r"heldout\.npz, rows from [\d,]+ on"),
        (dict.fromkeys(["tokenizer.json", "stream/states.jsonl"], flip), r"tokenizer\.json, rows from [\d,]+ on"),
        (dict.fromkeys(["stream/stream.json", "stream/rows.bin"], Path.unlink), r"stream\.json, rows from 0 on"),
        (
            dict.fromkeys([*STREAM_FILES, "stream/states.jsonl"], zero_tail),
            r"tokenizer\.json, heldout\.npz, stream\.json, rows from .* on",
        ),
    ]:
        for name, damage in damages.items():
            damage(tmp_path / name)
        again, tokens, said = begin(header=header)
        assert again == header
        np.testing.assert_array_equal(tokens, whole)
        assert {name: (tmp_path / name).read_bytes()[: len(files[name])] for name in files} == files
        if lost:
            [line] = said
            assert re.search(rf"was damaged or incomplete\. Made again: {lost}$", line), line
        else:
            assert not said


def folder_at(path):
    path.mkdir()
    (path / "of somebody").write_text("kept")


def socket_at(path):
    with socket.socket(socket.AF_UNIX) as server, chdir(path.parent):  # names of sockets are short
        server.bind(path.name)


def device_at(path):
    path.symlink_to("/dev/zero")  # whose reading never ends


def link_at(path):
    path.symlink_to(path.parent / "an unmounted disk")


OBSTACLES = [folder_at, os.mkfifo, socket_at, device_at, link_at]


@pytest.mark.slow
def test_what_is_no_file_is_set_aside_and_made_again_wherever_it_is(tmp_path, started):
    def begin():
        stream = started(make_preset(), tmp_path, 2000 * T)
        tokens = read_all(stream, 2000)[0]
        notices = stream.take_notices()
        stream.close()
        return tokens, notices

    whole, _ = begin()
    names = [*STREAM_FILES, "stream/states.jsonl"]
    for number, first in enumerate((0, 2), start=1):
        for name, obstacle in zip(names, OBSTACLES[first:] + OBSTACLES[:first], strict=True):
            (tmp_path / name).unlink()
            obstacle(tmp_path / name)
        tokens, notices = begin()
        np.testing.assert_array_equal(tokens, whole)
        aside = [tmp_path / f"{name}.bad-{number}" for name in names]
        assert all(map(os.path.lexists, aside))
        assert sorted(notices) == sorted(
            f"{tmp_path / name} is no file: it is now {new.name}" for name, new in zip(names, aside, strict=True)
        )
    assert len(list(tmp_path.rglob("of somebody"))) == number
    for number, obstacle in enumerate([Path.touch, link_at], start=1):
        shutil.rmtree(tmp_path / "stream")
        obstacle(tmp_path / "stream")
        tokens, notices = begin()
        np.testing.assert_array_equal(tokens, whole)
        assert notices == [f"{tmp_path / 'stream'} is no folder: it is now stream.bad-{number}"]


def replaced_by(obstacle, path):
    path.unlink()
    obstacle(path)


def restored(path):
    """As from a backup: the data process goes on with the file that had this name."""
    lines = path.read_bytes().splitlines(keepends=True)
    path.rename(path.with_name("newer"))
    path.write_bytes(b"".join(lines[:1]))


@pytest.mark.slow
def test_what_becomes_of_the_files_of_the_journal_under_a_run_is_noticed(tmp_path, started):
    stream = started(make_preset(), tmp_path, 2000 * T)
    stream.consumed(2000)
    read_all(stream, 2000)
    expected = journal(tmp_path, 2000)
    for name, happens in [
        ("rows.bin", partial(replaced_by, folder_at)),
        ("states.jsonl", partial(replaced_by, os.mkfifo)),
        ("rows.bin", partial(replaced_by, os.mkfifo)),
        ("rows.bin", lambda path: os.truncate(path, 100)),  # it is mapped into no memory
        ("states.jsonl", restored),
    ]:
        stream.rows(0, 10)  # the other windows are forgotten
        happens(tmp_path / "stream" / name)
        with pytest.raises(StreamDamaged):
            stream.rows(0, 2000)
        stream.make_again()
        stream.rows(0, 2000)
        np.testing.assert_array_equal(journal(tmp_path, 2000), expected)


@pytest.mark.slow
def test_damage_while_rows_are_read_is_raised_and_then_made_again(tmp_path, started):
    stream = started(make_preset(), tmp_path, 4000 * T)
    read_all(stream, 10)
    stream.consumed(4000)
    stream.rows(3999, 1)  # all is written
    expected = journal(tmp_path, 4000)
    flip(tmp_path / "stream" / "rows.bin", 3999 * DTYPE.itemsize)
    stream.rows(0, 1000)
    with pytest.raises(StreamDamaged, match=r"rows .* are not those that were written"):
        stream.rows(0, 4000)
    stream.make_again(on_status=(said := []).append)
    assert re.search(r"Made again: rows from [\d,]+ on", said[-1])
    stream.rows(0, 4000)
    np.testing.assert_array_equal(journal(tmp_path, 4000), expected)

    flip(tmp_path / "stream" / "rows.bin", 100)
    os.kill(stream._process.pid, signal.SIGKILL)  # the next producer finds the damage first
    with pytest.raises(StreamDamaged, match=r"has lost rows|was damaged\. Made again: rows from 0 on"):
        stream.rows(0, 10**6)
    stream.make_again()

    shutil.rmtree(tmp_path / "stream")
    with pytest.raises(StreamDamaged, match="has lost rows"):
        stream.rows(0, 10**6)
    stream.make_again()
    stream.rows(0, 4000)
    np.testing.assert_array_equal(journal(tmp_path, 4000), expected)


def test_a_defect_that_repeats_is_raised_with_its_traceback(tmp_path, started, monkeypatch):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "tokenizers.py").write_text("raise AttributeError('half an installation')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "broken"))
    with pytest.raises(ProducerDied, match=r"(?s)ended 3 times, code 1.*Traceback.*half an installation"):
        read_all(started(make_preset(), tmp_path / "run", 100 * T), 100)


@pytest.mark.slow
def test_interrupts_are_for_the_trainer_and_waiting_can_be_stopped(tmp_path, started):
    stream = started(make_preset(), tmp_path, 100 * T)
    stream.wait_opened()
    pid = stream._process.pid
    os.kill(pid, signal.SIGINT)
    with pytest.raises(Stopped):
        stream.begin(should_stop=lambda: True)
    read_all(stream, 100)
    assert stream._process.pid == pid
    with pytest.raises(Stopped):  # beyond the budget no row will come
        stream.rows(10**6, 1, should_stop=lambda: True)
    assert stream.wait_seconds > 0


ORPHAN = """
import os, signal, sys
from pathlib import Path
from configs.schema import parse_preset
from data.stream import Stream
stream = Stream(parse_preset(sys.argv[1], "test"), Path(sys.argv[2]), 10**5)
stream.begin()
stream.rows(0, 10**5 // 64)  # all there is: from now on the producer has nothing to say
print(stream._process.pid, flush=True)
os.write(stream._process.stdin.fileno(), {last_words!r}.encode())
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("last_words", ["", '{"consumed": 1'])
@pytest.mark.slow
def test_the_producer_ends_with_its_trainer(last_words, tmp_path):
    command = [sys.executable, "-c", ORPHAN.format(last_words=last_words), make_preset().to_json(), str(tmp_path)]
    pid = int(subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and is_running(pid):
        time.sleep(0.05)
    assert not is_running(pid)


def is_running(pid):
    return any(process == pid and state != "Z" for process, _, state in processes())
