"""Layouts that people have: slices, revisions, CSV of every kind, zstd, several formats in one folder."""

import io
import json
import zipfile
from types import SimpleNamespace

import pyarrow as pa
import pytest
import zstandard

from configs.errors import SourceError
from configs.schema import parse_preset
from configs.sources import HFSource, TextSource
from data.identity import check_identity
from data.journal import read_header
from data.open_sources import open_sources
from data.prepare import prepare
from data.producer import Producer
from data.producer_channel import Events
from data.sources import csv_files
from data.sources.hub_files import COUNTED_AT_ONCE
from data.sources.opening import open_source
from data.sources.parquet import BATCH_BYTES, ParquetFiles
from tests.data.sources.reading import open_data, problem_of, texts
from tests.hub import parquet

PATTERNS = {
    "*.jsonl": ["a.jsonl", "b/c.jsonl"],  # and a link, but not one that leads nowhere
    "**/*.jsonl": ["a.jsonl", "b/c.jsonl", "b/c.jsonl", "b/c/d.jsonl"],
    "b/**": ["b/c.jsonl", "b/c/d.jsonl", "b/g.log"],
    "b/*.jsonl": ["b/c.jsonl"],
    "[ab]/?.jsonl": ["b/c.jsonl"],
    "loop/b/*.jsonl": ["b/c.jsonl"],
    ".*/*.jsonl": [".hidden/e.jsonl"],
    "b/__*/*.jsonl": ["b/__pycache__/f.jsonl"],
}


def lines(count: int, first: int = 0) -> bytes:
    return b"".join(b'{"text": "row %d"}\n' % number for number in range(first, first + count))


def frames(*contents: bytes) -> bytes:
    """Each content as a zstd frame of its own, as pzstd writes them."""
    return b"".join(zstandard.ZstdCompressor().compress(content) for content in contents)


# ---- zstd ----------------------------------------------------------------------------------------


def test_zstd_is_read_to_the_end_of_its_last_frame_on_the_hub_and_on_this_disk(hub, tmp_path):
    hub.add("some/zst", {"train.jsonl.zst": frames(lines(20), lines(20, 20))})
    source = open_data("some/zst")
    whole = list(source.documents(0))
    assert [document.text for document, _ in whole] == [f"row {number}" for number in range(40)]
    assert list(source.documents(0, whole[29][1])) == whole[30:]
    (tmp_path / "a.txt.zst").write_bytes(frames("Größe ".encode() * 50, b"and more " * 50))
    (tmp_path / "copy.txt").write_bytes("Größe ".encode() * 50 + b"and more " * 50)
    (tmp_path / "cut.txt.zst").write_bytes(frames(b"cut off " * 500)[:-5])
    source = open_source(
        TextSource(type="text", path=str(tmp_path), glob="**/*.txt*", label="t"), cache_dir=None, seed=1
    )
    assert texts(source) == ["Größe " * 50 + "and more " * 50]
    assert set(source.size().split("skipped: ")[1].split(", ")) == {"1 damaged", "1 duplicate"}


def test_a_folder_of_other_files_says_which_glob_reads_them(tmp_path):
    (tmp_path / "a.txt.zst").write_bytes(frames(b"text"))
    with pytest.raises(SourceError, match=r'it has 1 \.zst: write "glob": "\*\*/\*\.zst", or add files'):
        open_source(TextSource(type="text", path=str(tmp_path), label="t"), cache_dir=None, seed=1)


def test_a_folder_of_hidden_files_alone_has_nothing_to_read(tmp_path):
    (tmp_path / ".DS_Store").write_bytes(b"\0")
    with pytest.raises(SourceError, match=r"holds no file that matches '\*\*/\*\.txt'; add files$"):
        open_source(TextSource(type="text", path=str(tmp_path), label="t"), cache_dir=None, seed=1)


# ---- splits, slices, revisions -------------------------------------------------------------------


def test_slices_of_parquet_are_exact_and_need_no_more_files_than_they_have(hub):
    content = [parquet(10, text=[f"{file}/{n}" for n in range(25)]) for file in range(20)]
    hub.add("some/slices", {f"train-{file:02}.parquet": data for file, data in enumerate(content)})
    rows = [f"{file}/{n}" for file in range(20) for n in range(25)]
    for split, wanted in {
        "train[:10%]": rows[:50],
        "train[35:60]": rows[35:60],
        "train[-7:]": rows[-7:],
        "train[90%:]+train[:3]": rows[450:] + rows[:3],
    }.items():
        source = open_data("some/slices", split=split)
        whole = list(source.documents(0))
        assert sorted(document.text for document, _ in whole) == sorted(wanted), split
        for done in (1, len(whole) // 2, len(whole) - 1):
            assert list(source.documents(0, whole[done - 1][1])) == whole[done:]
        assert {document.text for document in source.held_out()} <= set(wanted)
    hub.requests.clear()
    open_data("some/slices", split="train[:30]")
    asked = {request.split()[1] for request in hub.requests if request.endswith(".parquet")}
    assert len(asked) == COUNTED_AT_ONCE
    assert "`split`: 'train' has 500 rows, none of them in the slice" in problem_of("some/slices", split="train[5000:]")


def test_a_slice_of_rows_that_cannot_be_counted_names_max_documents(hub):
    hub.add("some/lines", {"train.jsonl": lines(30)})
    unknown = "the number of rows"
    for split, number in {
        "train[:20]": "20", "train[5:20]": "15", "train[:10%]": unknown, "train[:-5]": unknown, "train[10:5]": unknown
    }.items():  # fmt: skip
        assert f'write "split": "train", "max_documents": {number}' in problem_of("some/lines", split=split)


def test_a_slice_drops_no_file_whose_rows_cannot_be_counted(tmp_path):
    (tmp_path / "a.parquet").write_bytes(parquet(text=[f"row {n}" for n in range(30)]))
    (tmp_path / "b.csv").write_text("text\n" + "\n".join(f"line {n}" for n in range(30)))
    for files in (["a.parquet", "b.csv"], ["b.csv", "a.parquet"]):
        found = problem_of(str(tmp_path), data_files=files, split="train[:10%]")
        assert "can be counted only by reading them all" in found


@pytest.mark.parametrize("split", ["train[10%]", "train[:10%", "train[1:2%]", "", "train++test", "train[a:b]"])
def test_a_split_that_is_none_is_refused_in_the_preset(split):
    with pytest.raises(ValueError, match=r"train\[1000:2000\]|at least 1 character"):
        HFSource(type="hf", dataset="some/data", split=split)


def test_a_revision_is_read_and_kept(hub):
    hub.add("some/versions", {"train.jsonl": lines(3)})
    old = hub.revision("some/versions")
    source = open_data("some/versions", revision=old)
    assert source.pinned["revision"] == old
    assert any(request.endswith(f"/revision/{old}") for request in hub.requests)
    with pytest.raises(ValueError, match="only a dataset on the Hub has revisions"):
        HFSource(type="hf", dataset="./here", revision="main")


def test_files_of_each_split_and_of_several_formats(tmp_path, hub):
    (tmp_path / "a.jsonl").write_bytes(lines(3))
    (tmp_path / "b.csv").write_text('text,n\n"row, 3",1\nrow 4,2\n')
    (tmp_path / "c.parquet").write_bytes(parquet(text=["row 5"]))
    (tmp_path / "notes.txt").write_text("not a table\n")
    (tmp_path / "test.jsonl").write_bytes(lines(2, 90))
    rows = ["row 0", "row 1", "row 2", "row 3", "row 4", "row 5"]
    everything = {"train": ["a.jsonl", "*.parquet", "b.csv"], "test": "test.jsonl", "other": "missing.jsonl"}
    for split, wanted in {
        "train": rows,
        "test": ["row 90", "row 91"],
        "test+train": [*rows, "row 90", "row 91"],
    }.items():
        source = open_data(str(tmp_path), data_files=everything, split=split)
        assert sorted(text.replace(",", "") for text in texts(source)) == wanted
    hub.add("some/mixed", {path.name: path.read_bytes() for path in tmp_path.iterdir()})
    source = open_data("some/mixed", data_files=["a.jsonl", "b.csv", "c.parquet"])
    assert sorted(text.replace(",", "") for text in texts(source)) == rows
    (tmp_path / "test.jsonl").unlink()
    source = open_data(str(tmp_path))
    assert sorted(text.replace(",", "") for text in texts(source)) == rows
    assert "only the tables are read, not 1 file of plain text" in source.notices[0]
    assert "all are read (1 json, 1 csv, 1 parquet)" in source.notices[1]
    with pytest.raises(ValueError, match="has no files for split 'dev'; it has 'train'"):
        HFSource(type="hf", dataset="json", data_files={"train": "a.jsonl"}, split="dev")


# ---- CSV -----------------------------------------------------------------------------------------


def test_csv_of_every_kind_is_read_as_written_and_ragged_lines_are_counted(tmp_path, monkeypatch):
    for name, content, keys in (
        ("comma.csv", 'id,text\n1,007\n2,"a, ""b""\nc"\n\n3,None\n4,too,many\n5\n', {}),
        ("bom.csv", '\ufefftext,id\r\n007,1\r\n"a, ""b""\nc",2\r\nNone,3\r\ntoo,many,4\r\n', {}),
        ("twice.csv", 'text,text\n007,1\n"a, ""b""\nc",2\nNone,3\ntoo,many,4\n', {}),
        ("semicolon.csv", 'id;text\n1;007\n2;"a, ""b""\nc"\n3;None\n4;too;many\n', {"delimiter": ";"}),
        ("tab.tsv", 'id\ttext\n1\t007\n2\t"a, ""b""\nc"\n3\tNone\n4\ttoo\tmany\n', {}),
    ):
        (tmp_path / name).write_bytes(content.encode())
        source = open_data("csv", data_files=str(tmp_path / name), **keys)
        whole = list(source.documents(0))
        assert [document.text for document, _ in whole if document.text] == ["007", 'a, "b"\nc', "None"], name
        assert source.skipped == {"line with too many cells": 1}
        assert list(source.documents(0, whole[1][1])) == whole[2:]
    found = problem_of("csv", data_files=str(tmp_path / "semicolon.csv"))
    assert found.endswith("""no column 'text'; its columns are id;text; write "delimiter": ";\"""")
    monkeypatch.setattr(csv_files, "LARGEST_CELL", 1000)
    (tmp_path / "quote.csv").write_text('text\ngood\n"never closed\n' + "x\n" * 1000)
    source = open_data("csv", data_files=str(tmp_path / "quote.csv"))  # with more after it than a cell may hold
    assert texts(source) == ["good"]
    assert source.skipped == {"unreadable file": 1}


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        (
            'id\ttext\n1\t"Hello, he said\n2\tnext\n3\t"Bye", she said\n4\tlast\n',
            '"Hello, he said|next|Bye, she said|last',
        ),
        ('id\ttext\n1\t"never closed\n2\tnext\n3\tlast\n', '"never closed|next|last'),
        ('id\ttext\n1\t"a\tb\nc\td ""e""\tf\n"\n2\tnext\n', 'a\tb\nc\td "e"\tf\n|next'),
        ('id\ttext\n1\t"he said \\"hi,\tthere\\""\n2\tnext\n', 'he said "hi,\tthere"|next'),
        ('id\ttext\n1\t5" disk\n2\t"a\nb\tc"\n', '5" disk|a\nb\tc'),
        ('id\ttext\n1\tC:\\"x"\n2\tnext\n', 'C:\\"x"|next'),
    ],
)
@pytest.mark.parametrize("delimiter", ["\t", ";"])
def test_a_quote_that_begins_no_quoted_cell_takes_no_rows_with_it(tmp_path, content, rows, delimiter):
    (tmp_path / "a.csv").write_text(content.replace("\t", delimiter))
    source = open_data("csv", data_files=f"{tmp_path}/*", delimiter=delimiter)
    whole = list(source.documents(0))
    assert [document.text for document, _ in whole] == rows.replace("\t", delimiter).split("|")
    assert source.skipped == {}
    assert list(source.documents(0, whole[0][1])) == whole[1:]


def test_a_quote_that_is_never_closed_is_said(tmp_path):
    (tmp_path / "a.csv").write_text('text\ngood\n"never closed\n' + "x\n" * 10)
    source = open_data("csv", data_files=f"{tmp_path}/*")
    assert texts(source) == ["good"]
    assert source.skipped == {"unreadable file": 1}
    assert "a.csv, which cannot be read: a quote that line 3 opens is never closed" in source.notices[0]


def test_a_stray_quote_before_more_than_a_cell_may_hold_takes_no_rows_with_it(tmp_path, monkeypatch):
    monkeypatch.setattr(csv_files, "LARGEST_CELL", 1000)
    rows = [f"{number},row {number}" for number in range(300)]
    rows[100] = '100,"5-inch screen'
    (tmp_path / "a.csv").write_text("\n".join(["id,text", *rows]))
    source = open_data("csv", data_files=str(tmp_path / "a.csv"))
    assert texts(source) == [row.partition(",")[2] for row in rows]
    assert not source.notices


def test_no_dataset_names_files_that_are_not_its_own(hub, tmp_path):
    secret = tmp_path / "secret.jsonl"
    secret.write_text('{"text": "a secret"}\n')
    own = '{"text": "its own"}\n'
    card = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: {}\n---\n"
    hub.add("some/curious", {"README.md": card.format(secret).encode(), "train.jsonl": own.encode()})
    (tmp_path / "card").mkdir()
    (tmp_path / "card" / "README.md").write_text(card.format("../secret.jsonl"))
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / "train.jsonl").symlink_to(secret)
    assert "Data files don't belong to some/curious" in problem_of("some/curious"), "as the library says it"
    for dataset in (f"{tmp_path}/card", f"{tmp_path}/link"):
        assert "is not a file of" in problem_of(dataset), dataset
        assert "name it in `data_files`" in problem_of(dataset)
    assert texts(open_data(f"{tmp_path}/link", data_files="train.jsonl")) == ["a secret"]
    # In the cache of the Hub every file is a link.
    blobs, snapshot = tmp_path / "datasets--a--b" / "blobs", tmp_path / "datasets--a--b" / "snapshots" / "0f"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (blobs / "c0").write_text(own)
    (snapshot / "train.jsonl").symlink_to("../../blobs/c0")
    assert texts(open_data(str(snapshot))) == ["its own"]


def test_files_that_are_one_group_each_are_read_in_turns_and_go_on_from_anywhere(tmp_path):
    """A domain each, such as six genres: a run that reads a part of them has read of all."""
    sizes = [0, 5, 16, 17, 40, 100, 60, 33, 70, 90]
    for file, size in enumerate(sizes):
        rows = [json.dumps({"text": f"row {n} of {file}"}) for n in range(size)]
        (tmp_path / f"{file}.jsonl").write_text("\n".join(rows))
    source = open_data("json", data_files=f"{tmp_path}/*.jsonl")
    for epoch in (0, 1):
        whole = list(source.documents(epoch))
        read = [document.text for document, _ in whole]
        assert sorted(read) == sorted(f"row {n} of {file}" for file, size in enumerate(sizes) for n in range(size))
        early = {text.split()[-1] for text in read[: 6 * 16]}
        assert len(early) >= 6
        for number in range(0, len(whole), 7):
            assert (
                list(open_data("json", data_files=f"{tmp_path}/*.jsonl").documents(epoch, whole[number][1]))
                == whole[number + 1 :]
            )


def test_a_long_file_is_read_in_many_turns(tmp_path, monkeypatch):
    monkeypatch.setattr("data.sources.hub.TURN", 1)
    (tmp_path / "long.txt").write_text("".join(f"line {n}\n" for n in range(50_000)))
    (tmp_path / "short.txt").write_text("a line\n")
    assert sum(1 for _ in open_data("text", data_files=f"{tmp_path}/*.txt").documents(0)) == 50_001


def test_lines_that_are_joined_are_read_in_turns_too(tmp_path):
    for file in range(3):
        (tmp_path / f"{file}.txt").write_text("".join(f"line {n} of {file}\n" for n in range(300)))
    keys = {"data_files": f"{tmp_path}/*.txt", "rows_per_document": 7}
    whole = list(open_data("text", **keys).documents(0))
    assert sum(document.text.count("line") for document, _ in whole) == 900
    assert {document.text.split()[-1] for document, _ in whole[:48]} == {"0", "1", "2"}
    for number in (0, 15, 16, 20, 60, 100):
        assert list(open_data("text", **keys).documents(0, whole[number][1])) == whole[number + 1 :]


def test_of_an_archive_of_csv_other_files_are_no_rows(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name, content in {"README.md": "hello", "b/rows.csv": "text\na row\n", "c.txt": "hello"}.items():
            archive.writestr(name, content)
    assert texts(open_data("csv", data_files=f"{tmp_path}/a.zip")) == ["a row"]


# ---- a wrong text field --------------------------------------------------------------------------


def test_a_column_without_text_is_said_after_1000_rows_with_its_type_and_the_others(tmp_path):
    rows = [{"title": None, "blank": " ", "body": f"text {n}", "ids": [n, n]} for n in range(5_000)]
    content = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    (tmp_path / "a.jsonl").write_bytes(content)
    read = []
    for column, kind in {"title": "null", "blank": "string"}.items():
        source = open_data("json", data_files=str(tmp_path / "a.jsonl"), text_field=column)
        source._render = lambda row, skipped, render=source._render: (read.append(row), *render(row, skipped))[1:]
        read.clear()
        with pytest.raises(SourceError) as caught:
            texts(source)
        assert f"there is no text in {column!r} ({kind}) of json, in the first 1,000 rows" in str(caught.value)
        others = str(caught.value).partition("name a column that holds text: ")[2]
        assert others == "body" if column == "blank" else "blank, body"
        assert len(read) <= 1000
    # Where only the first file has none, the others are read.
    (tmp_path / "b.jsonl").write_bytes(lines(3).replace(b"text", b"title"))
    for seed in range(3):  # in one of these it does come first
        source = open_data("json", data_files=str(tmp_path / "*.jsonl"), text_field="title", seed=seed)
        assert len(texts(source)) == 3


def test_no_pattern_and_no_folder_of_data_files_takes_for_ever(tmp_path, monkeypatch):
    for name in ("a.jsonl", "b/c.jsonl", "b/c/d.jsonl", ".hidden/e.jsonl", "b/__pycache__/f.jsonl", "b/g.log"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(json.dumps({"text": f"the text of {name}"}) + "\n")
    (tmp_path / "nowhere.jsonl").symlink_to(tmp_path / "missing")
    (tmp_path / "linked.jsonl").symlink_to(tmp_path / "b" / "c.jsonl")
    (tmp_path / "loop").symlink_to(tmp_path)
    found = {pattern: texts(open_data("json", data_files=f"{tmp_path}/{pattern}")) for pattern in PATTERNS}
    for pattern, where in PATTERNS.items():  # as fsspec itself finds them
        assert sorted(found[pattern]) == [f"the text of {name}" for name in where], pattern
    assert "is no glob pattern" in problem_of("json", data_files=f"{tmp_path}/**.jsonl")
    monkeypatch.setattr("data.sources.find.MOST_ENTRIES", 100)
    for number in range(100):
        (tmp_path / f"{number}.log").touch()
    too_many = f"{tmp_path} cannot be searched: there are more than 100 files and folders; name a smaller folder"
    for dataset, keys in (
        ("json", {"data_files": f"{tmp_path}/**/*.jsonl"}),
        (str(tmp_path), {"data_files": "*.jsonl"}),
    ):
        assert problem_of(dataset, **keys) == f"`data_files`: {too_many}"
    assert problem_of(str(tmp_path)) == problem_of("json", data_dir=str(tmp_path)) == too_many
    assert texts(open_data("json", data_files=f"{tmp_path}/b/*.jsonl")) == ["the text of b/c.jsonl"]


def test_every_file_that_cannot_be_read_is_named_once(hub):
    good = parquet(text=[f"row {number}" for number in range(20)])
    files = {f"train-{file}.parquet": good for file in range(8)} | {"train-6.parquet": good[:200]}
    hub.add("some/late", files)
    source = open_data("some/late")
    assert source.notices == []
    for epoch in (0, 1):
        assert len(list(source.documents(epoch))) == 140
    assert source.skipped == {"unreadable file": 1}
    (notice,) = source.notices
    assert "train-6.parquet, which cannot be read" in notice


def test_every_file_without_text_is_named_once(hub):
    """Files beyond those that are looked at before a run; such a column, or nulls alone, is no error."""
    files = {f"train-{file:02}.jsonl": lines(5) for file in range(12)}
    files |= {f"train-{file:02}.jsonl": lines(5).replace(b"text", b"content") for file in (7, 9)}
    files["train-08.jsonl"] = lines(5, 10).replace(b'"row', b'" ", "title": "row')
    files["train-10.parquet"] = parquet(text=pa.array([None, None], pa.string()))
    hub.add("some/others", files)
    source = open_data("some/others", data_files=["*.jsonl", "*.parquet"])
    assert source.notices == []
    for _ in range(2):
        assert len([document for document, _ in source.documents(0) if document.text.strip()]) == 45
    problems = {notice.partition("/train-")[2] for notice in source.notices}
    assert problems == {
        "07.jsonl has no column 'text'",
        "08.jsonl has no text in any of its 5 rows",
        "09.jsonl has no column 'text'",
        "10.parquet has no text in any of its 2 rows",
    }
    assert len(source.notices) == 4


def test_a_file_is_not_skipped_because_memory_is_short(hub, monkeypatch):
    hub.add("some/large", {"train.parquet": parquet(text=["a row"] * 20)})
    source = open_data("some/large")

    def tables(*_: object):
        raise MemoryError
        yield

    monkeypatch.setattr(ParquetFiles, "tables", tables)
    with pytest.raises(MemoryError):  # a new process may have enough: other rows would be another text
        texts(source)


def test_what_is_noticed_while_reading_is_sent_once(tmp_path, caplog):
    """A damaged file beyond the first four, and a field that says nothing about which texts are the same."""
    for file in range(8):
        label = [f"class {(n // 3 + file) % 24}" for n in range(240)]
        content = parquet(label=label, body=[f"the text of row {n} of file {file}" for n in range(240)])
        (tmp_path / f"{file}.parquet").write_bytes(content[: 200 if file == 6 else None])
    source = {"type": "hf", "dataset": "parquet", "data_files": f"{tmp_path}/*.parquet", "label": "data", "repeat": 2}
    preset = {
        "name": "test",
        "model": {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "seq_length": 16, "vocab_size": 300},
        "train": {"eval_tokens": 2000},
        "data": {"sources": [{**source, "fields": ["label", "body"], "format": "{label}: {body}"}]},
    }
    preset, stream_dir = parse_preset(json.dumps(preset), "test"), tmp_path / "checkpoints" / "stream"
    events = Events(io.StringIO())
    sources = open_sources(preset, None, events)
    prepared, _ = prepare(preset, stream_dir, None, sources, 10**6)
    orders = SimpleNamespace(weight_changes=[], limit=10**6)
    Producer(preset, stream_dir, prepared, sources, 10**6, 0, orders, events).run()
    notices = [record.getMessage() for record in caplog.records if record.name.startswith("data.")]
    assert len(notices) == 2, notices
    assert notices[0].startswith("data: documents that share 'label' with held-out text are trained on")
    assert "6.parquet, which cannot be read" in notices[1]
    header = read_header(stream_dir)
    del header["data"]["sources"][0]["revision"]  # as an earlier version wrote it, which had no such key
    check_identity(header, preset, stream_dir)


def test_a_row_group_of_large_texts_is_decoded_a_few_at_a_time(tmp_path):
    texts = [f"{number} {'word ' * 100_000}" for number in range(60)]  # 30 MB
    (tmp_path / "books.parquet").write_bytes(parquet(60, text=texts, length=[len(text) for text in texts]))
    tables = list(ParquetFiles([str(tmp_path / "books.parquet")]).tables(0, 0, ["text"], 100))
    assert max(table.nbytes for table in tables) < 2 * BATCH_BYTES
    assert [text for table in tables for text in table["text"].to_pylist()] == texts
    source = open_data("parquet", data_files=str(tmp_path / "books.parquet"))
    whole = list(source.documents(0))
    assert "".join(document.text for document, _ in whole).count("word") == 60 * 100_000
    for done in (1, len(whole) // 2, len(whole) - 1):
        assert list(source.documents(0, whole[done - 1][1])) == whole[done:]
