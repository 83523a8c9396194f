"""What cannot be opened is said in terms of the preset's keys, with what to write instead."""

import gzip
import tarfile
from pathlib import Path

import pytest

from configs.errors import SourceError
from configs.sources import HFSource, TextSource
from data.sources.opening import open_source
from data.sources.probe import probe
from tests.data.sources.reading import problem_of
from tests.hub import parquet

SCRIPT = b"import datasets\n\nclass Rows(datasets.GeneratorBasedBuilder):\n    pass\n"


LINES, HEAD = {"a.jsonl": b"{}"}, "the settings at the top of its README.md"


@pytest.mark.parametrize(
    ("name", "files", "keys", "says"),
    [
        ("some/script", {"script.py": SCRIPT}, {}, "some/script is a Python script, which is never run"),
        ("some/card", {}, {}, "some/card has no data files (JSON, CSV, Parquet, text)"),
        ("some/weights", {"weights.bin": b"x"}, {}, "some/weights has no data files"),
        (
            "some/papers",
            {"a.pdf": b"%PDF-1.4"},
            {},
            'some/papers holds PDFs: read them with "type": "pdf" and in "path"',
        ),
        (
            "some/files",
            {"a.jsonl": b"{}"},
            {"data_files": "b/*.jsonl"},
            "some/files, `data_files`: no file matches 'b/*.jsonl'",
        ),
        (
            "some/folder",
            {"a.jsonl": b"{}"},
            {"data_dir": "b"},
            "some/folder, `data_dir`: there are no data files in 'b'",
        ),
        (
            "some/head",
            {"README.md": b"---\nconfigs: [a\n---\n", "a.jsonl": b"{}"},
            {},
            "the settings at the top of its README.md",
        ),
        (
            "some/list",
            {"README.md": b"---\nconfigs: 3\n---\n", "a.jsonl": b"{}"},
            {},
            "the settings at the top of its README.md",
        ),
    ],
)
def test_a_repository_without_usable_data(name, files, keys, says, hub):
    hub.add(name, files)
    found = problem_of(name, **keys)
    assert says in found
    assert "repair" not in found


def test_a_file_that_cannot_be_read_is_named(hub):
    hub.add("some/damaged", {"data/train.jsonl.zst": b"not compressed"})
    assert problem_of("some/damaged").endswith("; repair data/train.jsonl.zst, or name other files in data_files")


def test_a_script_or_an_address_on_this_disk_is_not_what_the_hub_has(tmp_path):
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "rows.py").write_bytes(SCRIPT)
    assert problem_of(str(tmp_path / "rows")).endswith("which is never run: name files of data in `data_files`")
    assert "download these files" in problem_of("json", data_files="https://127.0.0.1:9/a.jsonl")


@pytest.mark.parametrize(
    ("path", "says"),
    [
        (r"C:\Users\me\notes", "a path of Windows; inside WSL, write /mnt/c/Users/me/notes"),
        ("https://example.com/a.txt", "https://example.com/a.txt does not exist; it is an address; download the text"),
        ("rows", 'it has 1 .jsonl: read its rows with "type": "hf", "dataset": "HERE/rows", or add files'),
    ],
)
def test_a_path_of_text_that_is_something_else(path, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "a.jsonl").touch()
    with pytest.raises(SourceError) as caught:
        open_source(TextSource(type="text", path=path, label="notes"), cache_dir=None, seed=1)
    assert says.replace("HERE", str(tmp_path)) in str(caught.value)


@pytest.mark.parametrize(
    ("dataset", "name", "content", "says"),
    [
        (
            "HERE",
            "a.xlsx",
            b"PK",
            "has no data files (JSON, CSV, Parquet, text) but 1 .xlsx: convert them or, if they are",
        ),
        (
            "HERE",
            "part-0000",
            b"{}",
            "but 1 without suffix: convert them or, if they are such files by another name, write",
        ),
        ("HERE", "a.pdf", b"%PDF-1.4", '; read them with "type": "pdf" and "path": "HERE"'),
        (
            "HERE",
            "a.tar",
            "tar",
            "columns are __key__, __url__, jsonl; these are the suffixes of the files in tar archives",
        ),
        ("json", "a.tar", "tar", "json, `data_files`: tar archives are not read; unpack them"),
        (
            "parquet",
            "a.parquet.gz",
            gzip.compress(parquet(text=["x"])),
            "; unpack HERE/a.parquet.gz, or name other files",
        ),
        ("json", "a.jsonl.lz4", b"\x04\x22\x4d\x18", "; unpack HERE/a.jsonl.lz4, or name other files"),
        ("json", "a.jsonl.zst", b"damaged", "; repair HERE/a.jsonl.zst, or name other files"),
    ],
)
def test_files_of_other_kinds_are_not_said_to_be_damaged(tmp_path, dataset, name, content, says):
    if content == "tar":
        with tarfile.open(tmp_path / name, "w") as archive:
            archive.addfile(tarfile.TarInfo("a.jsonl"))
    else:
        (tmp_path / name).write_bytes(content)
    keys = {} if dataset == "HERE" else {"data_files": f"{tmp_path}/*"}
    assert says.replace("HERE", str(tmp_path)) in problem_of(dataset.replace("HERE", str(tmp_path)), **keys)


def test_suffixes_may_be_capital_letters(tmp_path):
    (tmp_path / "A.JSONL").write_bytes(b'{"text": "a row"}\n')
    source = open_source(HFSource(type="hf", dataset=str(tmp_path), label="data"), cache_dir=None, seed=1)
    assert [document.text for document, _ in source.documents(0)] == ["a row"]


def test_configurations_are_those_that_the_library_lists_and_not_its_example(hub):
    hub.add("some/two", {"a.parquet": parquet(text=["x"])}, {name: {"train": "a.parquet"} for name in ("en", "de")})
    assert problem_of("some/two") == "some/two, `config`: it is missing; write one of en, de"


def test_of_many_configurations_the_nearest_are_named(hub):
    names = {f"2023.{number:03}": {"train": f"{number}.parquet"} for number in range(320)}
    hub.add("some/many", {f"{number}.parquet": parquet(text=["x"]) for number in range(320)}, names)
    assert "2023.000, 2023.001" in problem_of("some/many")
    found = problem_of("some/many", config="2O23.117")
    assert "2023.117" in found
    assert found.endswith(" more")
    assert len(found) < 250


def test_a_name_that_the_hub_does_not_know_may_be_meant_as_a_path(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts").mkdir()
    for dataset, says in (
        ("texts", 'or set HF_TOKEN. For the folder of that name write "./texts"'),
        ("data/rows.jsonl", 'or set HF_TOKEN. For a file write "dataset": "json", "data_files": "data/rows.jsonl"'),
        ("no/such", "check the name, or set HF_TOKEN"),
    ):
        assert problem_of(dataset).endswith(says)
        (asked,) = probe([HFSource(type="hf", label="data", dataset=dataset)], seconds=60)
        assert asked.detail.endswith(says)


def test_paths_on_this_disk_are_said_by_the_menu_and_the_reader_alike(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("empty", "a [b]"):
        (tmp_path / folder).mkdir()
    (tmp_path / "rows.csv.gz").touch()
    (tmp_path / "a [b]" / "rows.jsonl").touch()
    (tmp_path / "rows [1].csv").write_text("text\na row\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    for keys, says in (
        ({"dataset": "./rows.csv.gz"}, './rows.csv.gz is a file: write "dataset": "csv", "data_files": "rows.csv.gz"'),
        ({"dataset": "./gone"}, f"`dataset`: ./gone (in {Path.cwd()}) does not exist; correct it in the preset"),
        ({"dataset": "./empty"}, "./empty is an empty folder; add data files"),
        ({"dataset": "./a [b]"}, "./a [b]: [ and ] in a path are read as a pattern; rename the folder"),
        ({"dataset": "json", "data_files": ["a.jsonl"]}, f"`data_files`: a.jsonl (in {Path.cwd()}) does not exist"),
        ({"dataset": "json", "data_dir": "/no/where"}, "`data_dir`: /no/where does not exist"),
        ({"dataset": "json", "data_dir": "~/nowhere"}, "`data_dir`: ~/nowhere does not exist"),
        ({"dataset": "./" + 300 * "x"}, "xxx (in"),
        ({"dataset": "rows.csv.gz"}, 'rows.csv.gz is a file: write "dataset": "csv", "data_files": "rows.csv.gz"'),
        ({"dataset": "jsonl", "data_files": "a.jsonl"}, 'jsonl is no dataset: write "dataset": "json", and the paths'),
        (
            {"dataset": "csv", "data_files": "rows [1].csv"},
            "[ and ] in a path are read as a pattern; rename it, or write ?",
        ),
        ({"dataset": "JSON"}, 'JSON is no dataset: write "dataset": "json", and the paths in "data_files"'),
    ):
        found = problem_of(**keys)
        assert says in found
        assert probe([HFSource(type="hf", label="data", **keys)]) == [("data", False, found)]
    (tmp_path / "rows.jsonl").write_text('{"text": "a row"}\n')
    for keys in (
        {"data_files": "~/rows.jsonl"},
        {"data_dir": "~", "data_files": ["rows.jsonl"]},
        {"data_files": "r?ws.jsonl"},
    ):
        source = HFSource(type="hf", dataset="json", label="data", **keys)
        assert [document.text for document, _ in open_source(source, cache_dir=None, seed=1).documents(0)] == ["a row"]
