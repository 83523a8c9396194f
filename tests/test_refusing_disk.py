"""Every write refuses once: a run goes on or ends with one message, saves what it trained, leaves no temporary file, and
the next start ends as the run that no disk refused, to the last bit.

tests/refuse.c makes single calls of the real program and its data process fail: write, fsync, rename, link, open, mkdir.
Here a few at a time; FULL_COUNTS=1 takes each call of a run on its own, with EIO, ENOSPC or EROFS: most of an hour on two
cores. `-s` shows the figures:

    FULL_COUNTS=1 python -m pytest -n 0 -s tests/test_refusing_disk.py
"""

import errno
import re
import shutil
import subprocess
import sys
from collections import Counter
from itertools import cycle
from pathlib import Path

import pytest

from lm.report.metrics import read_metrics
from tests.anybody import AS_ANYBODY
from tests.constants import FULL_COUNTS
from tests.program import BUDGET, Ended, Program, fingerprint

COMPILER = shutil.which("gcc")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux" or not COMPILER, reason="compiles a library for Linux"),
]
EIO, ENOSPC, EROFS, EACCES = errno.EIO, errno.ENOSPC, errno.EROFS, errno.EACCES

# Of files that a run can do without or write later: it goes on, and says so.
ENDURED = [
    ("write", ".lock", 0, ENOSPC),
    ("rename", "machine.json", 1, EROFS),
    ("write", "run.log", 2, EIO),
    ("write", "metrics.jsonl", 5, ENOSPC),
    ("fsync", "metrics.jsonl", 1, EIO),
    ("write", "samples.md", 1, EIO),
    ("write", "tensorboard/*", 40, ENOSPC),
    ("write", ".lm_current.*", 30, EIO),
    ("fsync", ".lm_current.*", 3, EIO),
    ("open", "report.png.tmp", 1, EACCES),
    ("write", ".hf.tmp/.tmp*", 1, ENOSPC),  # the weights, under a name that safetensors gives them
    ("write", "report.md.tmp", 1, EIO),
]


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("library") / "refuse.so"
    subprocess.run([COMPILER, "-shared", "-fPIC", "-o", path, Path(__file__).with_name("refuse.c"), "-ldl"], check=True)
    return path


@pytest.fixture(scope="module")
def make(library, text, tmp_path_factory):
    made = []

    def program() -> Program:
        one = Program(tmp_path_factory.mktemp("run") / "program", text)
        one.change("lm/checkpoint/saver.py", "REST = 5", "REST = 0")  # a slow disk has as many saves
        one.add(model={"seq_length": 64}, auxiliary={"enable_value": True})
        one.environment |= {"LD_PRELOAD": str(library), "REFUSE_FOLDER": str(one.checkpoints)}
        one.environment["REFUSE_LOG"] = str(one.folder / "calls")
        made.append(one)
        return one

    yield program
    for one in made:
        one.close()


@pytest.fixture(scope="module")
def whole(make) -> Program:
    program = make()
    result = program.run()
    assert result.code == 0, result.err
    return program


def run(program: Program, *faults: tuple[str, str, int, int], answers: str | None = None) -> Ended:
    """A start of the program, whose files only their owner may read; whatever the disk refuses, no traceback is shown and no
    temporary file left."""
    program.environment["REFUSE"] = ";".join(" ".join(map(str, fault)) for fault in faults)
    result = program.run(answers, launcher=("/bin/sh", "-c", 'umask 077; exec "$@"', "sh", *AS_ANYBODY, sys.executable))
    assert "Traceback" not in result.out + result.err, result.err
    assert result.code in (0, 2), result.err
    assert not [path for path in program.checkpoints.rglob("*") if path.name.endswith(".tmp")]
    return result


def kinds(program: Program) -> list[list[str]]:
    """The keys of each line of metrics.jsonl."""
    return [list(line) for line in read_metrics(program.checkpoints / "metrics.jsonl")]


def assert_ended_as(whole: Program, program: Program) -> None:
    assert fingerprint(program.state()) == fingerprint(whole.state())
    rows = "stream/rows.bin"
    assert (program.checkpoints / rows).read_bytes() == (whole.checkpoints / rows).read_bytes()
    assert program.written() >= {"report.md", "hf"}


def test_logs_caches_pictures_and_exports_that_are_refused_never_end_a_run(whole, make):
    program = make()
    result = run(program, *ENDURED)
    assert result.code == 0, result.err
    assert f"Done: {BUDGET:,} tokens" in result.out
    for name in ("metrics.jsonl", "samples.md", "tensorboard", "machine.json"):
        assert len(re.findall(rf"{name} cannot be written \(", result.out + result.err)) == 1  # said once
    assert result.out.count("lm_current.pth failed: [Errno 5] Input/output error") == 2
    assert "a picture cannot be written (" in result.out
    assert f"cannot write {program.checkpoints / 'hf'}: " in result.out
    assert f"cannot write {program.checkpoints / 'report.md'}: " in result.out
    assert kinds(program) == kinds(whole)  # what was refused came later
    samples = "samples.md"
    assert (program.checkpoints / samples).read_text() == (whole.checkpoints / samples).read_text()
    assert not program.written() & {"report.md", "hf"}
    assert run(program).code == 0
    assert_ended_as(whole, program)


def test_a_stream_that_cannot_be_written_ends_the_run_saved(whole, make):
    program = make()
    result = run(program, ("write", "stream/rows.bin", 3, EIO), ("rename", "lm_current.pth", 2, EROFS))
    assert result.code == 2
    assert f"cannot write {program.checkpoints / 'stream/rows.bin'}: Input/output error; see to that disk" in result.err
    assert 0 < program.tokens_in_metrics() <= program.state()["tokens_seen"] < BUDGET
    assert run(program).code == 0
    assert_ended_as(whole, program)


@pytest.mark.skipif(not FULL_COUNTS, reason="takes most of an hour: FULL_COUNTS=1")
def test_each_write_of_a_run_refuses_once(whole, make):
    lines = (whole.folder / "calls").read_text().splitlines()
    # Without process ids and random names.
    calls = Counter(re.sub(r"\d{3,}.*?(?=\.tmp$|$)|(?<=/\.tmp)\w+", "*", line) for line in lines)
    numbers, lost = cycle((EIO, ENOSPC, EROFS)), []
    for line, count in sorted(calls.items()):
        call, pattern = line.split()
        for number in sorted({1, (count + 1) // 2, count}):
            fault, program = (call, pattern, number, next(numbers)), make()
            codes = [run(program, fault).code]
            if (program.checkpoints / "lm_current.pth").exists():
                lost += [fault] * (program.tokens_in_metrics() > program.state()["tokens_seen"])
            while not (program.checkpoints / "report.md").exists() and len(codes) < 3:
                codes.append(run(program).code)
            if not (program.checkpoints / "hf").exists():
                codes.append(run(program, answers="e\n").code)
            assert_ended_as(whole, program)
            print(*fault[:3], errno.errorcode[fault[3]], "exit codes", *codes, flush=True)
            shutil.rmtree(program.folder)
    assert not lost
