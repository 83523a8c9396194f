"""The Hub at its worst: faults of every kind, outages, silence. The stream must not notice; the user must be told.

Everything real but the Hub: the producer's process, the `datasets` library, HTTP. FULL_COUNTS=1 makes it 2,000 reads, and
an outage of 60 s while 80,000 tokens a second are used; `-s` shows the figures:

    FULL_COUNTS=1 python -m pytest -s tests/data/test_hub_faults.py
"""

import gzip
import json
import os
import random
import threading
import time
from collections import Counter
from pathlib import Path

import huggingface_hub.constants
import pytest

from configs.schema import parse_preset
from configs.source_specs import HFSource
from data import feeds, hub_client
from data.batches import Stopped, Stream
from data.feeds import Feed
from data.packing import row_dtype
from data.producer import OpenSource, open_sources
from data.sources import Retryable, SourceError, open_source
from tests.hub import FAULTS, no_fault, parquet

FULL_COUNTS = os.environ.get("FULL_COUNTS") == "1"
READS = 2000 if FULL_COUNTS else 250
T = 64
SOURCES = (
    {"dataset": "some/wiki", "config": "en", "label": "wiki"},
    {"dataset": "some/web", "label": "web"},
    {"dataset": "some/questions", "label": "questions", "fields": ["question", "answer"], "format": "{question} {answer}"},
)


def make_preset(sources=SOURCES, seq_length=T):
    preset = {
        "name": "test",
        "model": {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "seq_length": seq_length, "vocab_size": 512},
        "train": {"eval_tokens": 3000},
        "data": {"sources": [{"type": "hf", **source} for source in sources], "source_weights": [5, 3, 2][: len(sources)]},
    }
    return parse_preset(json.dumps(preset), "test")


def add_datasets(hub):
    """Parquet behind a configuration that only the README knows, compressed lines, and Parquet found by its name."""
    rng = random.Random(1)
    words = ["".join(rng.choices("abcdefghijklmnop", k=rng.randint(1, 9))) for _ in range(500)]

    def texts(count):
        return [" ".join(rng.choices(words, k=60)) for _ in range(count)]

    pages = {f"en/{file}.parquet": parquet(20, text=texts(100)) for file in range(20)}
    decoy = {"fr/0.parquet": parquet(20, text=["not this one"] * 100)}
    hub.add("some/wiki", pages | decoy, {"en": {"train": "en/*.parquet"}, "fr": {"train": "fr/*.parquet"}})
    lines = ["".join(json.dumps({"text": text}) + "\n" for text in texts(30)) for _ in range(20)]
    hub.add("some/web", {f"{file:02}.jsonl.gz": gzip.compress(part.encode()) for file, part in enumerate(lines)})
    pairs = {
        f"data/train-{file:05}-of-00010.parquet": parquet(10, question=texts(40), answer=texts(40)) for file in range(10)
    }
    hub.add("some/questions", pairs)


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Makes streams, each with a cache of its own, so that none profits from what another has downloaded."""
    streams = []
    monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "1")

    def start(name, num_rows, preset=None):
        monkeypatch.setenv("HF_HOME", str(tmp_path / f"{name}.cache"))
        streams.append(Stream(preset or make_preset(), tmp_path / name, num_rows * T))
        return streams[-1]

    yield start
    for stream in streams:
        stream.close()


def begin(stream):
    stream.wait_opened()
    stream.go()
    stream.wait_ready()


def written(folder: Path, num_rows: int) -> dict[str, bytes]:
    files = ("tokenizer.json", "stream/heldout.npz", "stream/stream.json", "stream/rows.bin")
    content = {name: (folder / name).read_bytes() for name in files}
    content["stream/rows.bin"] = content["stream/rows.bin"][: num_rows * row_dtype(T, 512).itemsize]
    return content


def test_one_request_in_ten_fails_and_the_stream_is_the_same(hub, start, tmp_path):
    add_datasets(hub)
    num_rows = 16 * READS
    begin(stream := start("whole", num_rows))
    stream.rows(0, num_rows)
    reads_without = len(hub.requests)
    rng, faults = random.Random(1), []

    def fault(method, path, number):
        if rng.random() < 0.1:
            faults.append((rng.choice(FAULTS), "data" if path.endswith((".parquet", ".gz")) else "metadata"))
            return faults[-1][0]
        return None

    hub.requests.clear()
    hub.fault, began = fault, time.monotonic()
    begin(stream := start("faulty", num_rows))
    stream.rows(0, num_rows)
    print(
        f"\n{len(hub.requests):,} reads ({reads_without:,} without faults), {len(faults)} failed, "
        f"{time.monotonic() - began:.0f} s: {dict(Counter(faults))}"
    )
    assert stream.status == ""
    assert written(tmp_path / "whole", num_rows) == written(tmp_path / "faulty", num_rows)
    assert reads_without >= READS
    assert {kind for kind, _ in faults} == set(FAULTS)
    assert {what for _, what in faults} == {"data", "metadata"}
