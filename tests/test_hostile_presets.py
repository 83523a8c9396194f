"""Presets written to do harm, through the whole program: one message and exit code 2, and nothing written elsewhere.

tests/configs/test_fuzz.py reads thousands of them; these are the ones that reach the file system and the terminal.
"""

import os
import shutil
import time
import unicodedata
from pathlib import Path

import pytest

from tests.program import BUDGET, Ended, Program

pytestmark = pytest.mark.slow
ESCAPES = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202e"


@pytest.fixture(scope="module")
def program(text, tmp_path_factory) -> Program:
    """One with a preset that can be used, all else in configs/ made to do harm; its home and temporary files inside."""
    program = Program(tmp_path_factory.mktemp("program"), text)
    configs = program.folder / "configs"
    program.add("20_good", name="good")
    (configs / "00_folder.json").mkdir()
    os.mkfifo(configs / "01_fifo.json")
    (configs / "02_loop.json").symlink_to("02_loop.json")
    (configs / "03_zero.json").symlink_to("/dev/zero")
    (configs / "04_secret.json").symlink_to("/etc/passwd")
    (configs / f"05_{ESCAPES}.json").write_text("{")
    program.add_text("06_deep", '{"name":' + "[" * 99_000)
    program.add("07_up", name="../../x")
    program.add("08_escapes", name="x" + ESCAPES, more={ESCAPES: ESCAPES})
    program.add_text("09_large", " " * 10_000_000)
    program.add("10_nobody", data={"sources": [{"type": "hf", "dataset": "~nobody-such/x"}]})
    places = (
        "/dev/zero",
        "/dev/stdin",
        "~nobody-such/x",
        "/no/" + ESCAPES,
        "//server/share",
        "C:\\Windows",
        "/" + "x" * 900,
    )
    sources = [{"type": "text", "path": place} for place in places] + [
        {"type": "hf", "dataset": "json", "data_files": place}
        for place in ("/dev/zero", "/dev/stdin", "/proc/self/mem")
    ]
    program.add("11_places", data={"sources": [{**source, "label": f"s{n}"} for n, source in enumerate(sources)]})
    program.add("21_devices", data={"sources": sources[:2] + sources[7:]})
    program.add("22_tokenizer", data={"tokenizer": "/dev/zero"})
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HOME", "TMPDIR", "HF_HOME"):
            (program.folder / name).mkdir()
            patch.setenv(name, str(program.folder / name))
        patch.setenv("PYTHONDONTWRITEBYTECODE", "1")
        program.run("q\n")  # measures the machine
        yield program
    program.close()


def listing(program: Program) -> dict[str, tuple]:
    """Everything but checkpoints/ and the cache in which `datasets` keeps its locks: size, time of the last change."""
    found = {}
    for folder, folders, files in os.walk(program.folder):
        if Path(folder) == program.folder:
            folders[:] = [name for name in folders if name not in ("checkpoints", "HF_HOME")]
        for name in (*folders, *files):
            status = os.lstat(Path(folder, name))
            found[str(Path(folder, name))] = (status.st_size, status.st_mtime_ns if name in files else 0)
    return found


def is_plain(text: str) -> bool:
    """Nothing in it drives a terminal. Samples may hold any letter, no-break spaces and soft hyphens too."""
    bidirectional = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
    return not any(unicodedata.category(c) == "Cc" or c in bidirectional for c in text if c not in "\t\r\n")


def refused(program: Program, answer: str) -> Ended:
    before, began = listing(program), time.monotonic()
    result = program.run(answer)
    print(f"\n{answer.strip()}: {time.monotonic() - began:.1f} s: {result.err.strip()}")
    assert result.code == 2, result.out + result.err
    assert "Traceback" not in result.out + result.err
    assert is_plain(result.out)
    assert is_plain(result.err)
    assert listing(program) == before
    assert not program.written()
    return result


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ("0", "00_folder.json: this is a folder"),
        ("1", "01_fifo.json: cannot be read: it is not a regular file"),
        ("2", "02_loop.json: cannot be read: Too many levels of symbolic links"),
        ("3", "03_zero.json: cannot be read: it is not a regular file"),
        ("4", "04_secret.json: line 1, column 1: not JSON"),
        ("5", "not JSON"),
        ("6", "06_deep.json: nested too deeply"),
        ("7", 'name = "../../x"'),
        ("8", r"\u001b[2J"),
        ("9", "09_large.json: larger than 100,000 bytes"),
        ("10", "does not exist"),
        ("11", "s2 and 4 more sources are not available"),
        ("../../x", "there is no '../../x'"),
    ],
)
def test_the_menu_refuses_and_offers_the_others(answer, says, program):
    result = refused(program, answer + "\n")
    assert says in result.err
    assert len(result.err) < 3_000
    assert "20  good" in result.out
    assert "Enter: start 20_good" in result.out


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (
            "21",
            ["/dev/zero among them", "/dev/stdin among them", "no file matches '/dev/zero'", "source json#3"],
        ),
        ("22", ["tokenizer /dev/zero: not a file"]),
    ],
)
def test_devices_are_not_read(answer, says, program):
    result = refused(program, answer + "\n")
    for place in says:
        assert place in result.err


def test_names_from_a_hostile_folder_are_plain_wherever_they_are_shown(program, text, tmp_path):
    """In the menu, on the start card, in the bar, in every file of the run, and in the archive's names."""
    folder = tmp_path / ("evil" + ESCAPES)
    shutil.copytree(text / "small", folder)
    other = Program(tmp_path / "program", text)
    sources = [{"type": "text", "path": str(folder)}, {"type": "text", "label": "a/../b", "path": str(text / "large")}]
    other.add("00_" + ESCAPES, name="x. .. -", description=ESCAPES, data={"sources": sources})
    other.add("01_other", name="other")
    before = listing(other)
    result = other.run("0\n")
    assert result.code == 0, result.err
    assert is_plain(result.out)
    assert is_plain(result.err)
    assert f"Done: {BUDGET:,} tokens" in result.out
    for name in ("metrics.jsonl", "samples.md", "report.md", "hf/README.md"):
        assert is_plain((other.checkpoints / name).read_text()), name
    result = other.run("1\n")
    assert result.code == 0, result.err
    (aside,) = (other.checkpoints / "archive").iterdir()
    assert aside.name.startswith("x-")
    assert listing(other).keys() == before.keys()
