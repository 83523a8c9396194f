"""Hugging Face datasets, read by the real library from a stand-in for the Hub."""

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import pyarrow as pa
import pytest
from tqdm import tqdm
from tqdm.contrib.concurrent import ensure_lock

from configs.errors import Retryable, SourceError
from configs.sources import HFSource
from data.sources.base import PIECE_CHARACTERS
from data.sources.hub_client import configure_library
from data.sources.opening import open_source
from tests.constants import ROOT
from tests.data.sources.reading import texts
from tests.hub import no_fault, parquet

FORMAT = {"fields": ["question", "answer"], "format": "Q: {question}\nA: {answer}"}


def open_hub(dataset: str, pinned: dict | None = None, **keys):
    spec = HFSource(type="hf", dataset=dataset, label="hub", **keys)
    return open_source(spec, cache_dir=None, seed=1, pinned=pinned)


def add_wikipedia(hub, name: str) -> None:
    """Three files of 25 rows in groups of 10, as the configuration 20231101.en."""
    files = {
        f"20231101.en/train-{file}.parquet": parquet(id=list(range(25)), text=[f"{file}/{n}" for n in range(25)])
        for file in range(3)
    }
    configs = {"20231101.en": {"train": "20231101.en/*.parquet"}, "20231101.de": {"train": "20231101.de/*.parquet"}}
    hub.add(name, files, configs)


def test_an_epoch_is_every_row_once_and_visits_all_files_early(hub):
    add_wikipedia(hub, "wikimedia/whole")
    source = open_hub("wikimedia/whole", config="20231101.en")
    first, second = texts(source, 0), texts(source, 1)
    assert sorted(first) == sorted(second) == sorted(f"{file}/{row}" for file in range(3) for row in range(25))
    assert first != second
    assert {text[0] for text in first[:25]} == {"0", "1", "2"}


def test_rows_that_are_lines_are_put_together_and_resume_at_every_document(hub):
    lines = [None if n == 12 else f"line {n}" for n in range(25)]
    hub.add("lines/lines", {"train.parquet": parquet(text=lines)})  # in groups of 10
    source = open_hub("lines/lines", rows_per_document=4)
    whole = list(source.documents(0))
    expected = [
        "\n".join(filter(None, lines[a:b]))
        for g in (0, 10, 20)
        for a, b in ((g, g + 4), (g + 4, g + 8), (g + 8, g + 10))
    ]
    assert sorted(document.text for document, _ in whole) == sorted(filter(None, expected))
    for number, (_, position) in enumerate(whole):
        assert texts(source, 0, position) == [document.text for document, _ in whole[number + 1 :]]
    assert sorted(document.text for part in range(20) for document in source.held_out(part)) == sorted(
        filter(None, expected)
    )
    part = open_hub("lines/lines", rows_per_document=4, split="train[3:11]")  # counted from its own first row
    whole = list(part.documents(0))
    assert {document.text for document, _ in whole} == {"\n".join(lines[3:7]), "\n".join(lines[7:10]), lines[10]}
    for number, (_, position) in enumerate(whole):
        assert texts(part, 0, position) == [document.text for document, _ in whole[number + 1 :]]


ARTICLES = [
    "",
    " = One = \n",
    "",
    " First. \n",
    " = = Part = = \n",
    None,
    " Second. \n",
    "",
    " = Two = \n",
    " Third. \n",
]


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        ("heading", [" = One = \n\n First. \n = = Part = = \n\n Second. \n", " = Two = \n Third. "]),
        ("empty", [" = One = ", " First. \n = = Part = = ", " Second. ", " = Two = \n Third. "]),
    ],
)
def test_rows_are_put_together_until_an_empty_one_or_a_heading(end, expected, hub):
    name = f"lines/{end}"
    hub.add(name, {"train.parquet": parquet(text=ARTICLES)})
    source = open_hub(name, rows_until=end)
    whole = list(source.documents(0))
    assert [document.text for document, _ in whole] == expected
    for number, (_, position) in enumerate(whole):
        assert texts(source, 0, position) == expected[number + 1 :]
    assert sorted(document.text for part in range(20) for document in source.held_out(part)) == sorted(expected)


def test_every_position_resumes_with_the_very_next_row(hub):
    add_wikipedia(hub, "wikimedia/resume")
    source = open_hub("wikimedia/resume", config="20231101.en")
    whole = list(source.documents(2))
    resumed = open_hub("wikimedia/resume", pinned=json.loads(json.dumps(source.pinned)), config="20231101.en")
    for done in range(1, 76, 2):
        assert list(resumed.documents(2, whole[done - 1][1])) == whole[done:]


def test_long_documents_come_in_pieces_and_resume_between_them(hub):
    long = " ".join(f"word{number}" for number in range(10_000))
    questions = {"question": ["Why?", "How long?", ""], "answer": ["So.", long, ""]}
    hub.add("some/long", {"data/train-0.parquet": parquet(**questions)})
    source = open_hub("some/long", **FORMAT)
    whole = list(source.documents(0))
    documents = [document for document, _ in whole]
    assert max(len(document.text) for document in documents) == PIECE_CHARACTERS
    assert "".join(document.text for document in documents[1:]) == f"Q: How long?\nA: {long}"
    assert [document.answer_start for document in documents[:3]] == [11, 16, 0]
    for done, (_, position) in enumerate(whole, start=1):
        assert list(source.documents(0, position)) == whole[done:]


def test_a_resumed_run_reads_the_revision_it_began_with(hub):
    add_wikipedia(hub, "wikimedia/pinned")
    source = open_hub("wikimedia/pinned", config="20231101.en")
    hub.requests.clear()
    open_hub("wikimedia/pinned", pinned=source.pinned, config="20231101.en")
    assert source.pinned["revision"] == hub.revision("wikimedia/pinned")
    assert any(request.endswith(f"/revision/{source.pinned['revision']}") for request in hub.requests)
    assert not any(request.endswith("/api/datasets/wikimedia/pinned") for request in hub.requests)


def test_held_out_rows_come_from_all_files_and_are_a_twentieth(hub):
    files = {f"data/train-{file}.parquet": parquet(100, text=[f"{file}/{n}" for n in range(400)]) for file in range(3)}
    hub.add("some/heldout", files)
    held_out = [document.text for document in open_hub("some/heldout").held_out()]
    assert len(held_out) == len(set(held_out)) == 60
    assert {text[0] for text in held_out[:10]} == {"0", "1", "2"}


def test_of_many_files_of_one_row_a_twentieth_is_held_out_too(tmp_path):
    for number in range(400):
        (tmp_path / f"{number}.json").write_text(json.dumps({"text": f"article {number}"}))
    source = open_hub("json", data_files=str(tmp_path / "*.json"))
    assert 5 <= len(list(source.held_out())) <= 40


def test_question_is_found_as_query_and_the_answer_is_marked(hub):
    hub.add("qa/pairs", {"pair/train.parquet": parquet(query=["who {x}?"], answer=["he"])})
    source = open_hub("qa/pairs", **FORMAT)
    (document,) = [document for document, _ in source.documents(0)]
    assert document.text == "Q: who {x}?\nA: he"
    assert document.text[document.answer_start :] == "he"
    assert source.notices == ["hub: field 'question' is not in qa/pairs; using 'query'"]


@pytest.mark.parametrize("name", ["train.jsonl", "train.jsonl.gz", "train.csv"])
def test_other_formats(hub, name):
    if "json" in name:
        content = "".join(json.dumps({"text": f"row {number}"}) + "\n" for number in range(50)).encode()
    else:
        content = ("text\n" + "".join(f"row {number}\n" for number in range(50))).encode()
    dataset = f"formats/{name.replace('.', '-')}"
    hub.add(dataset, {name: gzip.compress(content) if name.endswith("gz") else content})
    source = open_hub(dataset)
    whole = list(source.documents(0))
    assert [document.text for document, _ in whole] == [f"row {number}" for number in range(50)]
    assert list(source.documents(0, whole[29][1])) == whole[30:]


def test_files_on_this_disk_need_no_hub(hub, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    source = open_hub("json", data_files=str(tmp_path / "a.jsonl"))
    assert texts(source) == ["one", "two"]
    (tmp_path / "set" / "data").mkdir(parents=True)
    (tmp_path / "set" / "data" / "train.parquet").write_bytes(parquet(text=["three", "four"]))
    assert texts(open_hub(str(tmp_path / "set"))) == ["three", "four"]
    assert hub.requests == []


def test_files_on_this_disk_that_change_under_a_run_are_said_and_a_copy_of_them_is_not(tmp_path):
    def opened(folder: Path, pinned=None):
        spec = HFSource(type="hf", dataset="json", label="data", data_files=str(folder / "*.jsonl"))
        return open_source(spec, cache_dir=None, seed=1, pinned=pinned)

    lines = [json.dumps({"text": f"row {number}"}) + "\n" for number in range(100)]
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "rows.jsonl").write_text("".join(lines))
    pinned = opened(tmp_path / "a").pinned
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    os.utime(tmp_path / "b" / "rows.jsonl", (0, 0))
    assert opened(tmp_path / "b", pinned).notices == []
    (tmp_path / "b" / "rows.jsonl").write_text("".join(lines[10:]))
    [notice] = opened(tmp_path / "b", pinned).notices
    assert "data: its files changed since this run began; it goes on after as many rows" in notice
    assert (
        opened(tmp_path / "b", {name: pinned[name] for name in ("revision", "files")}).notices == []
    )  # an older stream


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"dataset": "no/where"}, "does not exist on the Hub or is private: check the name"),
        ({"dataset": "some/gated"}, "/datasets/some/gated with your account, and set HF_TOKEN"),
        ({"dataset": "some/wiki", "config": "fr"}, "there is no 'fr'; write one of 20231101.en, 20231101.de"),
        ({"dataset": "some/wiki", "config": "20231101.en", "split": "test"}, "Available splits: ['train']"),
        ({"dataset": "some/wiki", "config": "20231101.en", "text_field": "body"}, "its columns are id, text"),
    ],
)
def test_what_the_user_can_mend_is_explained(hub, keys, says):
    add_wikipedia(hub, "some/wiki")
    hub.repos["some/wiki"]["20231101.de/train-0.parquet"] = parquet(text=["de"])
    hub.add("some/gated", {"data/train.parquet": parquet(text=["x"])})
    hub.gated = ("some/gated",)
    with pytest.raises(SourceError) as error:
        open_hub(**keys)
    assert says in str(error.value)


def test_a_damaged_file_is_left_out_and_the_others_are_read(hub):
    good = parquet(text=[f"row {number}" for number in range(20)])
    hub.add("some/damaged", {"data/train-0.parquet": good, "data/train-1.parquet": good[:200]})
    source = open_hub("some/damaged")
    assert len(texts(source)) == 20
    assert source.skipped == {"unreadable file": 1}


def not_utf8(texts: list[bytes], *, large: bool) -> bytes:
    """A Parquet file whose texts are these bytes, whatever they are; `large`: of the type with 64-bit offsets."""
    kind, as_bytes = (pa.large_string(), pa.large_binary()) if large else (pa.string(), pa.binary())
    column = pa.Array.from_buffers(kind, len(texts), pa.array(texts, type=as_bytes).buffers())
    return parquet(10, number=list(range(len(texts))), text=column)


@pytest.mark.parametrize("bad", [0, 15])
@pytest.mark.parametrize("kind", ["parquet", "large.parquet", "jsonl", "csv"])
def test_bytes_that_are_not_utf8_cost_a_character_and_not_a_row(hub, kind, bad):
    rows = [b"row %d" % number for number in range(40)]
    rows[bad] = b"caf\xe9 au lait"
    content = {
        "parquet": not_utf8(rows, large=False),
        "large.parquet": not_utf8(rows, large=True),
        "jsonl": b"".join(b'{"text": "%s"}\n' % row for row in rows),
        "csv": b"text\n" + b"".join(row + b"\n" for row in rows),
    }[kind]
    hub.add(dataset := f"poison/{kind}{bad}", {f"train.{kind}": content})
    source = open_hub(dataset)
    whole = list(source.documents(0))
    assert sorted(document.text for document, _ in whole) == sorted(row.decode("utf-8", "replace") for row in rows)
    assert source.skipped == {}
    for done in (1, 12, 39):
        assert list(source.documents(0, whole[done - 1][1])) == whole[done:]


def test_a_lone_surrogate_in_json_is_one_message_or_one_file_less(hub):
    lone = b'{"text": "high \\ud800 alone"}\n'
    hub.add("poison/all", {"train.jsonl": lone})
    with pytest.raises(
        SourceError, match=r"cannot open poison/all: .*surrogate.*; repair train.jsonl, or name other files"
    ):
        open_hub("poison/all")
    good = b"".join(b'{"text": "row %d"}\n' % number for number in range(20))
    hub.add("poison/one", {"data/train-0.jsonl": good, "data/train-1.jsonl": lone, "data/train-2.jsonl": good})
    source = open_hub("poison/one")
    for epoch in (0, 1):
        assert len(texts(source, epoch)) == 40
        assert source.skipped == {"unreadable file": 1}  # once, not once an epoch
    assert re.fullmatch(r"hub: skipping .*/data/train-1.jsonl, which cannot be read: .*surrogate.*", source.notices[0])


def test_a_split_a_folder_and_a_column_of_ones_choice(hub):
    files = {
        f"{folder}/{split}-0.parquet": parquet(body=[f"{folder}, {split}"], title=["not this"])
        for folder in ("en", "de")
        for split in ("train", "validation")
    }
    hub.add("some/folders", files)
    source = open_hub("some/folders", data_dir="de", split="validation", text_field="body")
    assert texts(source) == ["de, validation"]


def test_an_outage_is_retryable_and_nothing_is_lost_or_doubled(hub, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    add_wikipedia(hub, "wikimedia/outage")
    source = open_hub("wikimedia/outage", config="20231101.en")
    whole = texts(source)
    source = open_hub("wikimedia/outage", pinned=source.pinned, config="20231101.en")
    seen, position, outages = [], None, 0
    while True:
        rows = source.documents(0, position)
        hub.fault = no_fault
        try:
            for document, after in rows:
                seen.append(document.text)
                position = after
                hub.fault = lambda method, path, number: "drop"  # gone, until the next attempt
            break
        except Retryable:
            outages += 1
    assert seen == whole
    assert outages > 2


def test_one_fault_on_metadata_does_not_matter(hub, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.add("some/faulty", {"data/train.parquet": parquet(text=["row"])})
    for request in range(1, 9):
        hub.requests.clear()
        hub.fault = lambda method, path, number, bad=request: 500 if number == bad else None
        assert texts(open_hub("some/faulty")) == ["row"]


def test_sources_opened_side_by_side_do_not_take_each_others_lock(monkeypatch):
    """Two threads in tqdm's ensure_lock each deleted it in the end: "type object 'tqdm' has no attribute '_lock'"."""
    for progress_bar in (tqdm, datasets.utils.tqdm):
        if "_lock" in vars(progress_bar):
            monkeypatch.delattr(progress_bar, "_lock")
    configure_library()
    with ensure_lock(datasets.utils.tqdm):
        pass
    assert datasets.utils.tqdm._lock is not None


def test_reading_a_dataset_needs_no_torch(tmp_path):
    """A second of every start, and 170 MB."""
    (tmp_path / "train.parquet").write_bytes(parquet(text=["some text"]))
    code = (
        "import sys, data.producer; from data.sources.opening import open_source; from configs.sources import HFSource;"
        f"spec = HFSource(type='hf', dataset={str(tmp_path)!r}, label='local');"
        "(document, _), = open_source(spec, cache_dir=None, seed=1).documents(0);"
        "print(document.text, 'torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.stdout == "some text False\n", run.stderr
