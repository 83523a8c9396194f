"""What the tests of the stream share."""

import random

import pytest

from data.stream import Stream


@pytest.fixture
def started():
    """Makes streams and ends their processes."""
    streams = []

    def start(*args, **kwargs):
        streams.append(Stream(*args, **kwargs))
        return streams[-1]

    yield start
    for stream in streams:
        stream.close()


@pytest.fixture
def copies(tmp_path):
    """Two folders that share half of their texts, each with copies of its own that differ in spaces."""
    rng = random.Random(1)
    texts = ["".join(rng.choice("abcdefghij ") for _ in range(rng.randrange(50, 400))) for _ in range(1500)]
    for name, first in (("a", 0), ("b", 500)):
        (tmp_path / name).mkdir()
        for number, text in enumerate(texts[first : first + 1000]):
            (tmp_path / name / f"{number}.txt").write_text(text)
            if number % 5 == 0:
                (tmp_path / name / f"{number}_copy.txt").write_text(text.replace(" ", "\n") + "\n")
    return [{"type": "text", "path": str(tmp_path / name), "label": name, "repeat": 1} for name in ("a", "b")]
