"""Records survive crashes, are cut back on resume, and hold whatever text a model may write."""

import json

import numpy as np
import pytest
import torch

from configs.text import fenced, printable
from lm.report.metrics import MetricsLog, NullLog, read_metrics
from lm.report.samples import Sample, SampleLog, read_samples

pytestmark = pytest.mark.core

NASTY = "```text\n## 5 tokens\n`````\n<script>\n\u202eevil\x1b[2J\r\x07\x9b\ttab | é 漢"


def test_records_come_back_as_written(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.write({"tokens": 10, "loss": torch.tensor(2.5), "lr": np.float32(0.5), "grad_norm": float("nan")})
    log.write({"tokens": 20, "eval": {"loss": float("inf"), "per_source": {"a": {"loss": 1.0}}}})
    assert read_metrics(tmp_path / "metrics.jsonl") == [  # readable while the log is open: every line is flushed
        {"tokens": 10, "loss": 2.5, "lr": 0.5, "grad_norm": None},
        {"tokens": 20, "eval": {"loss": None, "per_source": {"a": {"loss": 1.0}}}},
    ]
    log.close()


def test_resuming_cuts_back_to_tokens_seen_and_drops_a_torn_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    for tokens in (10, 20, 30):
        log.write({"tokens": tokens})
    log.close()
    with path.open("a") as file:
        file.write('{"tokens": 2')  # the process died here
    resumed = MetricsLog(path)
    resumed.keep(lambda line: line["tokens"] <= 20)
    resumed.write({"tokens": 25})
    resumed.close()
    assert [json.loads(line)["tokens"] for line in path.read_text().splitlines()] == [10, 20, 25]
    assert not list(tmp_path.glob("*.tmp"))


def test_reading_skips_lines_torn_in_the_middle(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"tokens": 1}\n{"tok\xff{"tokens": 2}\n{"tokens": 3}\n[1]\n')
    assert [record["tokens"] for record in read_metrics(path)] == [1, 3]
    assert read_metrics(tmp_path / "absent.jsonl") == []


def test_samples_keep_any_text_inside_their_fences(tmp_path):
    log = SampleLog(tmp_path / "samples.md")
    log.write(12_000_000, [Sample("wiki`pedia\n## 1 tokens", NASTY, "and then\n## 24,000,000 tokens\n")])
    log.write(24_000_000, [Sample("books", "x", "y")])
    first, second = read_samples(tmp_path / "samples.md")
    assert (first.tokens, second.tokens) == (12_000_000, 24_000_000)
    assert "and then" in first.text
    assert "books" in second.text
    text = (tmp_path / "samples.md").read_text(encoding="utf-8")
    assert not set(text) & {"\x1b", "\r", "\x07", "\x9b", "\u202e"}
    assert "<script>" in text  # quoted, not removed


def test_the_fence_is_longer_than_any_inside():
    lines = fenced(NASTY).splitlines()
    assert lines[0] == "``````text"
    assert lines[-1] == "``````"
    assert lines.count("``````") == 1


def test_samples_are_cut_back_and_a_torn_section_dropped(tmp_path):
    path = tmp_path / "samples.md"
    log = SampleLog(path)
    for tokens in (10, 20, 30):
        log.write(tokens, [Sample("s", NASTY, f"text {tokens}")])
    whole = path.read_text(encoding="utf-8")
    log.truncate_after(20)
    assert path.read_text(encoding="utf-8") == whole[: whole.index("## 30 tokens")]
    path.write_text(whole[: whole.index("text 20") + 4], encoding="utf-8")  # died while writing the second section
    log.truncate_after(20)
    assert path.read_text(encoding="utf-8") == whole[: whole.index("## 20 tokens")]
    log.truncate_after(0)
    assert read_samples(path) == []


def test_the_null_log_takes_everything_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    log = NullLog()
    log.write({"tokens": 1})
    log.write(1, [Sample("s", "p", "c")])
    log.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "expected"), [("a\tb\nc", "a\tb\nc"), ("\x1b[31mred\x00\x7f", "[31mred"), ("é漢😀", "é漢😀")]
)
def test_printable(text, expected):
    assert printable(text) == expected


def test_what_the_disk_refuses_of_a_log_is_written_with_what_comes_next(tmp_path, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr("lm.runtime.files.log.warning", lambda form, *values: said.append(form % values))
    path = tmp_path / "folder" / "metrics.jsonl"  # the folder is not there: like a disk that is unmounted
    log = MetricsLog(path)
    for tokens in (1, 2):
        log.write({"tokens": tokens})
        log.sync()
    assert said == [f"{path} cannot be written (No such file or directory): training goes on, and it is tried again."]
    path.parent.mkdir()
    log.write({"tokens": 3})
    log.close()
    assert [line["tokens"] for line in read_metrics(path)] == [1, 2, 3]
