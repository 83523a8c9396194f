"""Records survive crashes, are cut back on resume, and hold whatever text a model may write."""

import json
import logging
import math
import os
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from configs.text import fenced, printable
from lm.report.metrics import Interval, MetricsLog, NullLog, read_metrics, usual_seconds
from lm.report.report import write_report
from lm.report.samples import Sample, SampleLog, read_samples
from lm.report.tensorboard import event_log
from lm.runtime.log import close_run_log, open_run_log, show_log
from lm.runtime.machine import Machine, load_machine, machine_identity, save_machine
from lm.train_step import StepResult

pytestmark = pytest.mark.core


@pytest.fixture(autouse=True)
def _logged(monkeypatch):
    monkeypatch.setattr(logging.getLogger("lm"), "propagate", True)  # a run before may have changed it


NASTY = "```text\n## 5 tokens\n`````\n<script>\n\u202eevil\x1b[2J\r\x07\x9b\ttab | é 漢"


def test_a_night_without_a_network_is_not_the_speed_of_a_run():
    assert usual_seconds([1.0, 2.0, 3.0, 30_000.0]) == 2.0
    assert usual_seconds([0.01, 0.01, 0.01, 5.0]) == pytest.approx(1.2575), "the first step of a source"
    assert usual_seconds([60.0, 60.0, 120.0]) == 80.0, "a slow machine, or a slow source"


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


def test_a_record_after_a_torn_line_is_not_lost_with_it(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"tokens": 1}\n{"tokens": 2, "lo')
    log = MetricsLog(path)
    log.write({"tokens": 2, "benchmarks": {}})
    log.write({"tokens": 3})
    log.close()
    assert [record["tokens"] for record in read_metrics(path)] == [1, 2, 3]


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
    ("text", "expected"),
    [
        ("a\tb\nc", "a\tb\nc"),
        ("\x1b[31mred\x00\x7f", "[31mred"),
        ("é漢😀", "é漢😀"),
        ("caf\udce9.txt", "caf\ufffd.txt"),
    ],
)
def test_printable(text, expected):
    assert printable(text) == expected


DEEP = "[" * 100_000
NO_RECORDS = [
    "7", "[1]", "null", '"tokens"', "{}", '{"tokens": "5"}', '{"tokens": -1}', '{"tokens": 1.5}', f'{{"tokens": {10**400}}}',
    f'{{"tokens": 1, "more": {DEEP}}}', DEEP, '{"tokens": 1, "loss": "low"}', '{"tokens": 1, "loss": 1e300}',
    '{"tokens": 1, "loss": NaN}', '{"tokens": 1, "eval": []}', '{"tokens": 1, "eval": {"loss": 1}}',
    '{"tokens": 1, "eval": {"loss": 1, "per_source": {"a": 7}}}', '{"tokens": 1, "mixture": {"a": "b"}}',
    '{"tokens": 1, "overlapping": true}', '{"tokens": 1, "canonical": {}}', '{"tokens": 1, "finish_from": "x"}',
    '{"tokens": 1, "heads": [1]}', '{"tokens": 1, "sources": {"a": {}}}', '{"tokens": 1, "resumed": {"when": 1}}',
]  # fmt: skip
ALL_THERE_IS = [  # as little as records may hold
    '{"tokens": 0, "eval": {"per_source": {"a": {}, "b": {"bits_per_byte": 0.0}}}}',
    '{"tokens": 1, "eval": {"per_source": {"a": {}, "b": {"loss": null}}}, "mixture": {"a": null}, "heads": {"x": null}}',
    '{"tokens": 1, "best": {"tokens": 1, "exported": true, "gained": 0.1}}',
    '{"tokens": 1, "eval": {"per_source": {}}, "mixture": null, "overlapping": null, "best": {"tokens": 1, "exported": true}}',
]


def test_what_is_no_record_is_skipped_by_the_report_and_set_aside_once_by_a_run(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    good = ['{"tokens": 1, "loss": 2.5}', *ALL_THERE_IS]
    path.write_text("\n".join([good[0], *NO_RECORDS, *good[1:], ""]))
    before = path.read_bytes()
    assert read_metrics(path) == [json.loads(line) for line in good]
    write_report(tmp_path, "{}", {"preset": "x"})
    for end in range(1, len(good) + 1):  # each record may be the last
        path.write_text("\n".join(good[:end]) + "\n")
        write_report(tmp_path, "{}", {"preset": "x"})
    path.write_bytes(before)
    assert "no measurements" not in caplog.text
    for _ in range(2):
        log = MetricsLog(path)
        assert [json.dumps(record) for record in log.keep(lambda line: True)] == good
        log.close()
    assert (tmp_path / "metrics.jsonl.bad-1").read_bytes() == before
    assert caplog.text.count("kept as metrics.jsonl.bad-1") == 1
    assert not (tmp_path / "metrics.jsonl.bad-2").exists()


def test_text_that_is_no_sample_is_set_aside_once(tmp_path, caplog):
    path = tmp_path / "samples.md"
    path.write_text(f"my notes\n## {'9' * 5000} tokens\n")
    assert read_samples(path) == []
    for tokens in (1, 2):
        log = SampleLog(path)
        log.truncate_after(100)
        log.write(tokens, [Sample("s", "a", "b")])
    assert [section.tokens for section in read_samples(path)] == [1, 2]
    assert (tmp_path / "samples.md.bad-1").read_text().startswith("my notes")
    assert caplog.text.count("samples.md.bad-1") == 1


def no_file(kind: str, path: Path) -> None:
    if kind == "folder":
        (path / "mine").mkdir(parents=True)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "large":
        with path.open("wb") as file:
            file.truncate(2**40)
    else:
        path.symlink_to({"device": "/dev/zero", "loop": path, "elsewhere": path.parent / "outside"}[kind])


@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "loop", "large"])
def test_logs_and_caches_that_are_no_files_are_set_aside_and_made_anew(tmp_path, kind, caplog):
    names = ("metrics.jsonl", "samples.md", "machine.json")
    no_file(kind, tmp_path / "run.log")
    show_log(True)
    open_run_log(tmp_path)
    logging.getLogger("lm").info("hello")
    close_run_log()
    assert "hello" in (tmp_path / "run.log").read_text()
    logging.getLogger("lm").propagate = True
    for name in names:
        no_file(kind, tmp_path / name)
    assert (read_metrics(tmp_path / names[0]), read_samples(tmp_path / names[1])) == ([], [])
    assert load_machine(tmp_path) is None
    write_report(tmp_path, "{}", {})
    log, samples = MetricsLog(tmp_path / "metrics.jsonl"), SampleLog(tmp_path / "samples.md")
    log.keep(lambda line: True)
    samples.truncate_after(1)
    log.write({"tokens": 1})
    samples.write(1, [Sample("s", "a", "b")])
    log.close()
    save_machine(tmp_path, replace(MACHINE, identity=machine_identity()))
    assert len(read_metrics(tmp_path / names[0])) == len(read_samples(tmp_path / names[1])) == 1
    assert load_machine(tmp_path).speeds == MACHINE.speeds
    for name in names[:2]:
        assert os.path.lexists(tmp_path / f"{name}.bad-1")
        assert caplog.text.count(f"{name}.bad-1") == 1


def test_a_mirror_for_tensorboard_touches_nothing_else(tmp_path, caplog):
    folder, outside = tmp_path / "tensorboard", tmp_path / "outside"
    outside.mkdir()
    for kind in ("folder", "pipe", "elsewhere", "device"):
        no_file(kind, folder)
        event_log(folder, [{"tokens": 1, "loss": 2.0}]).close()
        assert len(list(folder.glob("events.*"))) == 1
        event_log(folder, [{"tokens": 1, "loss": 2.0}]).close()
        assert len(list(folder.glob("events.*"))) == 1
        assert (folder / "mine").exists() is (kind == "folder")
        folder.rename(tmp_path / f"{kind} done")
    assert not list(outside.iterdir())
    assert caplog.text.count("is no folder") == 3


MACHINE = Machine("here", "cpu", "a CPU", True, False, 1e12, {"x": 1.0}, {"x": 2.0})


def test_measurements_of_a_machine_that_are_none_are_made_anew(tmp_path):
    good = asdict(replace(MACHINE, identity=machine_identity()))
    path = tmp_path / "machine.json"
    path.write_text(json.dumps(good))
    assert load_machine(tmp_path)
    bad = [{"matmul_flops": value} for value in ("fast", 0, -1.0, None, float("inf"), float("nan"), 10**400, [], {})]
    bad += [{"speeds": value} for value in ([], {"x": "y"}, {"x": 0}, {"x": {}}, None)]
    for text in (*(json.dumps(good | changes) for changes in bad), "[]", "7", "", DEEP, "{", '{"identity": 1}'):
        path.write_text(text)
        assert load_machine(tmp_path) is None, text[:80]


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


def test_a_line_holds_the_mean_over_what_its_steps_have_learnt_and_the_speed_over_all_they_read():
    interval = Interval()
    interval.took(2.0)
    for loss, num_targets in ((4.0, 10), (1.0, 30), (9.0, 0)):  # the last step had questions only
        interval.add(
            StepResult(loss, 1.0, skipped=False), num_tokens=100, num_targets=num_targets, num_bytes=2 * num_targets
        )
    means = interval.means()
    assert means["loss"] == pytest.approx((4.0 * 10 + 1.0 * 30) / 40)
    assert means["bits_per_byte"] == pytest.approx(70 / math.log(2) / 80)
    assert means["tokens_per_second"] == 150
