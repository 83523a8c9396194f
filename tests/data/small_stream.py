"""A stream small enough for these tests, and what its files hold."""

import itertools
import json
import os
import random
import signal
import time
from contextlib import suppress

import numpy as np

from configs.schema import parse_preset
from data import tokenizer as bpe
from data.journal import JournalReader
from data.packing import row_dtype
from data.producer_client import Stopped
from tests.constants import LIBRARY

T = 64
DTYPE = row_dtype(T, 512)


def folder(name, **more):
    return {"type": "text", "path": str(LIBRARY / name), "glob": "**/*.py", "label": name, **more}


def make_preset(strategy="weighted", sources=("email", "asyncio", "json"), weights=(5, 3, 2), **data):
    sources = [folder(source) if isinstance(source, str) else source for source in sources]
    preset = {
        "name": "test",
        "model": {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "seq_length": T, "vocab_size": 512},
        "train": {"eval_tokens": 5000},
        "data": {
            "sources": sources,
            "mix_strategy": strategy,
            **({"source_weights": list(weights)} if weights else {}),
            **data,
        },
    }
    return parse_preset(json.dumps(preset), "test")


def read_all(stream, num_rows):
    stream.begin()
    return stream.rows(0, num_rows)


def journal(checkpoints, num_rows):
    """(num_rows, T+1) tokens in the order in which they were written."""
    return JournalReader(checkpoints / "stream", DTYPE).rows(0, num_rows)["tokens"]


def mixture(stream, first, last):
    """Tokens of each source among the targets of rows first .. last - 1."""
    _, source, _ = stream.rows(first, last - first)
    return np.bincount(source[:, 1:].ravel())


def documents_of(checkpoints, num_rows):
    """The texts of the documents that the journal's rows hold whole."""
    tokens = journal(checkpoints, num_rows)
    flat = np.append(tokens[:, :-1].ravel(), tokens[-1, -1])
    ends = np.flatnonzero(flat == 0)
    tokenizer = bpe.load(checkpoints / "tokenizer.json")
    return tokenizer.decode_batch([flat[a + 1 : b].tolist() for a, b in itertools.pairwise(ends)])


def check_that_kills_leave_no_trace(preset, tmp_path, started, num_rows, kill_at, weight_changes):
    """`kill_at`: at how many rows each start is killed; 0: while it prepares."""
    written, rng = {}, random.Random(1)
    for name in ("whole", "killed"):
        for rows_before in kill_at if name == "killed" else ():
            stream = started(preset, tmp_path / name, num_rows * T, weight_changes=weight_changes)
            with suppress(Stopped):
                stream.begin(should_stop=lambda: True)  # without waiting
            stream.consumed(num_rows)  # nothing but the kill holds it
            reader = JournalReader(tmp_path / name / "stream", DTYPE)
            deadline = time.monotonic() + 120
            while reader.num_rows() < rows_before:
                assert time.monotonic() < deadline, "no such row within two minutes"
                time.sleep(0.001)
            time.sleep(rng.uniform(0.0, 0.05) if rows_before else rng.uniform(0.2, 0.5))
            os.kill(stream._process.pid, signal.SIGKILL)
            stream.close()
        read_all(started(preset, tmp_path / name, num_rows * T, weight_changes=weight_changes), num_rows)
        written[name] = {
            path: (tmp_path / name / path).read_bytes()
            for path in ("tokenizer.json", "stream/rows.bin", "stream/heldout.npz", "stream/stream.json")
        }
        assert len(written[name]["stream/rows.bin"]) >= num_rows * DTYPE.itemsize
    assert written["whole"] == written["killed"]
