"""The Hub at its worst: faults of every kind, outages, silence. The stream must not notice; the user must be told.

Everything real but the Hub: the producer's process, the `datasets` library, HTTP. FULL_COUNTS=1 makes it 2,000 reads, and
an outage of 60 s while 80,000 tokens a second are used; `-s` shows the figures:

    FULL_COUNTS=1 python -m pytest -n 0 -s tests/data/sources/test_hub_faults.py
"""

import gzip
import io
import json
import logging
import random
import re
import threading
import time
from collections import Counter
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub.constants
import pytest
from huggingface_hub import HfFileSystem

from configs.errors import Retryable, UserError
from configs.schema import parse_preset
from configs.sources import HFSource
from data import feed, waiting
from data import open_sources as open_sources_module
from data.feed import Feed
from data.journal import JournalReader
from data.open_sources import open_sources
from data.packing import row_dtype
from data.prepare import texts_of
from data.producer_channel import Events
from data.producer_client import Stopped
from data.sources import hub_client
from data.sources.hub_client import NoAnswer, configure_library
from data.sources.opening import open_source
from data.stream import Stream
from lm.train.progress import headline
from tests.constants import FULL_COUNTS
from tests.hub import FAULTS, no_fault, parquet

READS, ROWS = (2000, 36_000) if FULL_COUNTS else (250, 1000)  # so many reads, at least, for so many rows
FILES = 20 if FULL_COUNTS else 6  # of a dataset
STARTS = 14 if FULL_COUNTS else 2  # of the run with faults; each asks for the metadata of every source again
T = 64
SOURCES = (
    {"dataset": "some/wiki", "config": "en", "label": "wiki"},
    {"dataset": "some/web", "label": "web"},
    {
        "dataset": "some/questions",
        "label": "questions",
        "fields": ["question", "answer"],
        "format": "{question} {answer}",
    },
)


def make_preset(sources=SOURCES, seq_length=T):
    preset = {
        "name": "test",
        "model": {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "seq_length": seq_length, "vocab_size": 512},
        "train": {"eval_tokens": 3000},
        "data": {
            "sources": [{"type": "hf", **source} for source in sources],
            "source_weights": [5, 3, 2][: len(sources)],
        },
    }
    return parse_preset(json.dumps(preset), "test")


def add_datasets(hub):
    """Parquet behind a configuration that only the README knows, compressed lines, and Parquet found by its name."""
    rng = random.Random(1)
    words = ["".join(rng.choices("abcdefghijklmnop", k=rng.randint(1, 9))) for _ in range(500)]

    def texts(count):
        return [" ".join(rng.choices(words, k=60)) for _ in range(count)]

    pages = {f"en/{file}.parquet": parquet(20, text=texts(100)) for file in range(FILES)}
    decoy = {"fr/0.parquet": parquet(20, text=["not this one"] * 100)}
    hub.add("some/wiki", pages | decoy, {"en": {"train": "en/*.parquet"}, "fr": {"train": "fr/*.parquet"}})
    lines = ["".join(json.dumps({"text": text}) + "\n" for text in texts(30)) for _ in range(FILES)]
    hub.add("some/web", {f"{file:02}.jsonl.gz": gzip.compress(part.encode()) for file, part in enumerate(lines)})
    pairs = {
        f"data/train-{file:05}-of-00010.parquet": parquet(10, question=texts(40), answer=texts(40))
        for file in range(FILES // 2)
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


def written(folder: Path, num_rows: int) -> dict[str, bytes]:
    files = ("tokenizer.json", "stream/heldout.npz", "stream/stream.json", "stream/rows.bin")
    content = {name: (folder / name).read_bytes() for name in files}
    content["stream/rows.bin"] = content["stream/rows.bin"][: num_rows * row_dtype(T, 512).itemsize]
    return content


@pytest.mark.slow
def test_one_request_in_ten_fails_and_the_stream_is_the_same(hub, start, tmp_path):
    add_datasets(hub)
    (stream := start("whole", ROWS)).begin()
    stream.rows(0, ROWS)
    reads_without = len(hub.requests)
    stream.close()
    rng, faults = random.Random(1), []

    def fault(method, path, number):
        if rng.random() < 0.1:
            faults.append(
                (FAULTS[len(faults) % len(FAULTS)], "data" if path.endswith((".parquet", ".gz")) else "metadata")
            )
            return faults[-1][0]
        return None

    hub.requests.clear()
    hub.fault, began = fault, time.monotonic()
    for part in range(1, STARTS + 1):
        (stream := start("faulty", ROWS)).begin()
        stream.rows(0, ROWS * part // STARTS)
        assert eventually(lambda stream=stream: stream.rows(0, 1) and stream.status == "")
        stream.close()
    print(
        f"\n{len(hub.requests):,} reads ({reads_without:,} without faults), {len(faults)} failed, "
        f"{time.monotonic() - began:.0f} s: {dict(Counter(faults))}"
    )
    assert written(tmp_path / "whole", ROWS) == written(tmp_path / "faulty", ROWS)
    assert len(hub.requests) >= READS
    assert {kind for kind, _ in faults} == set(FAULTS)
    assert {what for _, what in faults} == {"data", "metadata"}


@pytest.mark.slow
def test_an_outage_is_said_and_outlived(hub, start, tmp_path):
    add_datasets(hub)
    num_rows = 20_000  # more than the documents that the feeds have in memory
    (whole := start("whole", num_rows)).begin()
    whole.rows(0, num_rows)
    (stream := start("outage", num_rows)).begin()
    stream.rows(0, 100)
    hub.fault = lambda *_: "drop"  # while rows are being written
    stream.consumed(num_rows)
    assert eventually(lambda: stream.rows(0, 1) and "retrying" in stream.status)
    assert re.fullmatch(r"(wiki|web|questions): 127.0.0.1: .*, retrying in \d+ s", stream.status)
    result, records = SimpleNamespace(loss=2.5, heads={}), SimpleNamespace(head_measures={}, performance=None)
    state = SimpleNamespace(skipped_steps=0)
    labels = [source.label for source in make_preset().data.all_sources]
    world = SimpleNamespace(is_first=True)
    bar = headline(
        SimpleNamespace(world=world, labels=labels, stream=stream, state=state, records=records, result=result)
    )  # rows are left
    assert bar.endswith(f", {stream.status}")

    said, waited = [], stream.wait_seconds
    there = JournalReader(tmp_path / "outage" / "stream", row_dtype(T, 512)).num_rows()
    *_, complete, _ = stream.windows_begun(there)  # rows of whole windows
    assert 0 < complete <= there < num_rows
    stream.rows(0, complete)
    assert stream.wait_seconds == waited
    deadline = time.monotonic() + 1
    with pytest.raises(Stopped):  # as Ctrl-C does
        stream.rows(0, there + 1, should_stop=lambda: time.monotonic() > deadline, on_status=said.append)
    assert said

    hub.fault = no_fault
    stream.rows(0, num_rows)
    assert eventually(lambda: stream.rows(0, 1) and stream.status == "")
    assert written(tmp_path / "whole", num_rows) == written(tmp_path / "outage", num_rows)


@pytest.mark.skipif(not FULL_COUNTS, reason="takes three minutes: FULL_COUNTS=1")
def test_a_minute_without_the_hub_at_full_speed(hub, tmp_path, monkeypatch):
    """80,000 tokens a second are used, before, during and after."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    add_datasets(hub)
    speed, seq_length = 80_000, 512
    stream = Stream(make_preset(seq_length=seq_length), tmp_path, 100_000_000)
    stream.begin()
    reader = JournalReader(tmp_path / "stream", row_dtype(seq_length, 512))
    row, began, figures = 0, time.monotonic(), []

    def use(seconds=0.0, until=lambda: False):
        nonlocal row
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline or not (seconds or until()):
            time.sleep(0.1)
            # What such a trainer would have used by now.
            step = int((time.monotonic() - began) * speed / seq_length) - row
            stream.consumed(row)
            stream.rows(row, step)
            row += step
        figures.append(f"{time.monotonic() - began:.0f} s: {(reader.num_rows() - row) * seq_length:,} tokens ahead")

    try:
        use(until=lambda: reader.num_rows() - row > stream.run_ahead_rows - 200)
        hub.fault, waited = lambda *_: "stall", stream.wait_seconds
        use(60)
        assert "retrying" in stream.status or "no text" in stream.status
        hub.fault = no_fault
        use(until=lambda: stream.status == "")
        use(5)
        assert stream.wait_seconds == waited
    finally:
        stream.close()
        print("\n" + "\n".join(figures))


def eventually(there, seconds=30):
    deadline = time.monotonic() + seconds
    while not there() and time.monotonic() < deadline:
        time.sleep(0.01)
    return there()


@pytest.fixture
def quick(monkeypatch):
    """Shorter waiting times for what goes wrong for ever; the true ones with FULL_COUNTS."""
    if not FULL_COUNTS:
        monkeypatch.setattr(hub_client, "RETRY_DELAYS", (0.01, 0.02))
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DOWNLOAD_TIMEOUT", 1.0)
        monkeypatch.setattr(feed, "FIRST_WAIT", 0.1)
        monkeypatch.setattr(open_sources_module, "FIRST_WAIT", 0.1)
        monkeypatch.setattr(waiting, "LONGEST_SILENCE", 0.5)
    return waiting.LONGEST_SILENCE + (1 if FULL_COUNTS else 10)  # of a machine that others use as well


def test_the_longest_silence_is_under_half_a_minute():
    assert waiting.LONGEST_SILENCE <= 25


def trouble(caplog) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == "data.waiting"]


@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_goes_wrong_while_reading_is_said_soon(fault, hub, quick, caplog):
    add_datasets(hub)
    hub.retry_after = 300
    caplog.set_level("INFO", "data")
    spec = HFSource(type="hf", **SOURCES[0])
    source = open_source(spec, cache_dir=None, seed=1)
    feed = Feed(spec, lambda: source, texts_of, lambda text: None, seed=1)
    hub.fault = lambda *_: fault
    began = time.monotonic()
    thread = threading.Thread(target=feed.next_document, daemon=True)
    thread.start()
    assert eventually(lambda: trouble(caplog), quick)
    print(f"\n{fault}: said after {time.monotonic() - began:.1f} s: {trouble(caplog)[0].message}")
    hub.fault = no_fault
    thread.join(120)
    assert trouble(caplog)[-1].message == ""


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.slow
def test_whatever_goes_wrong_while_opening_is_said_and_ends_in_one_message(fault, hub, quick, caplog):
    add_datasets(hub)
    hub.retry_after, hub.fault = 300, lambda *_: fault
    caplog.set_level("INFO", "data")
    began = time.time()
    with pytest.raises(UserError, match=r"source wiki: 127.0.0.1: .*; check the network, or choose another preset"):
        open_sources(make_preset(SOURCES[:1]), None, Events(io.StringIO()))
    assert trouble(caplog)[0].created - began < quick


@pytest.mark.parametrize("fault", FAULTS if FULL_COUNTS else ("page",))
@pytest.mark.parametrize("dataset", range(len(SOURCES)))
def test_no_failure_is_taken_for_an_answer(dataset, fault, hub, monkeypatch):
    """Whichever request fails, once in all its tries or for ever: either nothing depends on it, or it is waited for."""
    monkeypatch.setattr(hub_client, "RETRY_DELAYS", (0, 0))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DOWNLOAD_TIMEOUT", 1.0)
    add_datasets(hub)
    keys = dict(SOURCES[dataset])
    files = hub.repos[keys.pop("dataset")]

    def read(name):
        hub.add(name, files)
        hub.requests.clear()
        source = open_source(HFSource(type="hf", dataset=name, **keys), cache_dir=None, seed=1)
        return [document.text for document, _ in islice(source.documents(0), 120)], source.skipped

    whole = read(name := f"whole/{dataset}{fault}")
    assert len(whole[0]) == 120
    requests = [request.replace(name, "NAME") for request in hub.requests]
    once = [lambda request, number, first=first: first <= number < first + 3 for first in range(1, len(requests) + 1)]
    for_ever = [lambda request, number, broken=broken: request == broken for broken in sorted(set(requests))]
    retried = 0
    for number, fails in enumerate(once + for_ever):
        name = f"fails/{dataset}{fault}{number}"
        hub.fault = lambda method, path, number, fails=fails, name=name: (
            fault if fails(f"{method} {path.replace(name, 'NAME')}", number) else None
        )
        try:
            assert read(name) == whole
        except Retryable:
            retried += 1
    assert retried > len(requests) // 2


def test_a_part_is_taken_only_from_a_server_that_knows_parts(hub, quick):
    add_datasets(hub)
    source = open_source(HFSource(type="hf", **SOURCES[0]), cache_dir=None, seed=1)
    hub.fault = lambda *_: "whole"
    with pytest.raises(Retryable, match="a whole file in place of a part"):
        list(source.documents(0))
    hub.fault = no_fault
    assert len(list(source.documents(0))) == 100 * FILES
    assert not source.skipped


def test_a_file_that_could_not_be_asked_for_is_not_said_to_be_missing(hub, quick):
    add_datasets(hub)
    configure_library()
    path = "datasets/some/wiki/en/0.parquet"
    hub.fault = lambda *_: 503
    with pytest.raises(NoAnswer, match="HTTP status 503"):
        HfFileSystem(skip_instance_cache=True).isfile(path)
    hub.fault = no_fault
    assert HfFileSystem(skip_instance_cache=True).isfile(path)
