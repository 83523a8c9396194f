"""Text that is made to fill the memory of the producer, and books that would."""

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.constants import LIBRARY, ROOT
from tests.data.small_stream import (
    make_preset,
)
from tests.hub import parquet


def write_poison(folder: Path) -> None:
    """Files that are no text, or text that is made to fill the memory or to take for ever."""
    rng = np.random.default_rng(0)

    def characters(first: int, last: int, count: int) -> str:
        return rng.integers(first, last, count, dtype=np.uint32).tobytes().decode("utf-32-le")

    texts = {
        "without_a_space": rng.bytes(50_000_000)[:20_000_000].translate(b"a" * 250 + b"bcdefg").decode(),
        "emoji": characters(0x1F300, 0x1F900, 1_000_000),
        "marks": "a" + "\u0301" * 1_000_000,
        "other_marks": "a" + characters(0x300, 0x370, 1_000_000),
        "one_line": "word " * 1_000_000,
        "spaces": " " * 20_000_000,
        "whitespace": " \n\t\u2028" * 10,
        "lone_surrogates": "high \ud800 and low \udfff " * 1000,
    }
    for name, text in texts.items():
        (folder / f"{name}.txt").write_bytes(text.encode("utf-8", "surrogatepass"))
    lone = ("text \ud800 " * 1000).encode("utf-16-le", "surrogatepass")
    (folder / "lone_surrogates_16.txt").write_bytes(b"\xff\xfe" + lone)
    (folder / "odd_utf16.txt").write_bytes(b"\xff\xfe" + "cut in a letter".encode("utf-16-le")[:-1])
    (folder / "not_utf8.txt").write_bytes(rng.bytes(1_000_000).translate(None, bytes(range(32))))
    (folder / "nul.txt").write_bytes(b"text, then \0 and more text" * 1000)
    (folder / "zeros.txt").write_bytes(bytes(1_000_000))
    (folder / "empty.txt").touch()
    with (folder / "gigabyte.txt").open("wb") as file:  # without a block on the disk
        file.truncate(10**9)
    for path in (LIBRARY / "json").glob("*.py"):
        (folder / f"{path.name}.txt").write_bytes(path.read_bytes())


BUDGET = 25_000_000  # tokens: from 12 million on the tokenizer is trained on as much text as it ever is
MEASURE = """
import resource, sys
from pathlib import Path
from configs.schema import parse_preset
from data.stream import Stream, StreamEnded
from data.sources.base import in_words

budget, wanted = map(int, sys.argv[3:])
stream = Stream(parse_preset(sys.argv[1], "test"), Path(sys.argv[2]), budget)
stream.begin()
stream.consumed(wanted // stream.seq_length)
num_rows = wanted // stream.seq_length
try:
    stream.rows(0, num_rows)
except StreamEnded as ended:
    num_rows = ended.num_rows
print(num_rows * stream.seq_length)
print(in_words(stream.progress(num_rows)[0]["skipped"]))
stream.close()
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024))
"""


def measure(source, folder: Path, wanted: int = BUDGET) -> tuple[int, set[str], int]:
    """Tokens of one epoch, at most those `wanted`, what is skipped of it, and the producer's memory in bytes."""
    preset = make_preset(sources=(source | {"repeat": 1},), weights=(1,)).to_json()
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, preset, str(folder), str(BUDGET), str(wanted)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    num_tokens, left_out, peak = run.stdout.splitlines()
    return int(num_tokens), set(left_out.split(", ")), int(peak)


@pytest.mark.slow(60)
def test_poisoned_text_is_counted_and_fills_no_memory(tmp_path):
    (tmp_path / "poison").mkdir()
    write_poison(tmp_path / "poison")
    num_tokens, left_out, peak = measure({"type": "text", "path": str(tmp_path / "poison")}, tmp_path / "run")
    assert num_tokens > 3_000_000  # all of it was read
    assert peak < 500e6
    # nul, zeros and gigabyte; empty, spaces and whitespace; not_utf8. All else is text, however odd.
    assert {"3 binary", "3 empty", "1 of uncertain encoding"} <= left_out
    assert len(left_out) == 5  # and what is held out, or a copy


@pytest.mark.slow(60)
def test_documents_of_50_megabytes_fill_no_memory(tmp_path):
    (tmp_path / "books").mkdir()
    words = [path.read_text() for path in sorted((LIBRARY / "email").glob("*.py"))]
    book = "".join(itertools.islice(itertools.cycle(words), 10**4))[:50_000_000]
    (tmp_path / "books" / "train.parquet").write_bytes(parquet(1, text=[f"{number} {book}" for number in range(3)]))
    num_tokens, left_out, peak = measure(
        {"type": "hf", "dataset": str(tmp_path / "books")}, tmp_path / "run", 2_000_000
    )
    print(num_tokens, left_out, f"{peak / 1e6:.0f} MB")
    assert num_tokens > 1_900_000
    assert peak < 500e6
