"""Which files of a folder or repository are read: no other is passed over without a word, and none is read twice."""

import pytest

from configs.errors import SourceError
from tests.data.sources.reading import open_data, texts
from tests.hub import parquet


def line(text: str) -> bytes:
    return b'{"text": "%s"}\n' % text.encode()


@pytest.fixture(params=["hub", "disk"])
def placed(request, tmp_path):
    """Places files, given by path, as a repository of the Hub or in a folder, and returns how a preset names it."""

    def place(files: dict[str, bytes]) -> str:
        if request.param == "hub":
            hub = request.getfixturevalue("hub")
            hub.add(name := f"some/listing{len(hub.repos)}", files)
            return name
        for path, content in files.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_bytes(content)
        return str(tmp_path)

    return place


def test_data_files_that_are_not_read_are_said(placed):
    files = {"train.jsonl": line("a"), "extra.jsonl": line("b"), "more/books.jsonl": line("c"), "test.jsonl": line("d")}
    others = {"README.md": b"# Read me", "notes.txt": b"x", ".hidden/x.jsonl": line("e"), "dataset_info.json": b"{}"}
    source = open_data(dataset := placed(files | others))
    assert texts(source) == ["a"]
    what = "2 data files, such as extra.jsonl; name in data_files what should be read"
    assert source.notices == [f"data: of {dataset} not read: {what}"]
    assert sorted(texts(source := open_data(dataset, data_files=["*.jsonl", "more/*.jsonl"]))) == ["a", "b", "c", "d"]
    assert source.notices == []


def test_files_of_another_format_on_the_hub_are_said(hub):
    hub.add("some/formats", {"a.jsonl": line("a"), "b.jsonl": line("b"), "c.parquet": parquet(text=["c"])})
    source = open_data("some/formats")
    assert sorted(texts(source)) == ["a", "b"]
    assert "not read: 1 data file, such as c.parquet" in source.notices[0]
    configs = {"one": {"train": "a.jsonl"}, "two": {"train": "b.jsonl"}}
    hub.add("some/configs", {"a.jsonl": line("a"), "b.jsonl": line("b")}, configs)
    assert open_data("some/configs", config="one").notices == []


def test_a_folder_of_the_repository_is_all_that_is_asked_for(placed):
    source = open_data(placed({"en/a.jsonl": line("a"), "de/b.jsonl": line("b")}), data_dir="en")
    assert texts(source) == ["a"]
    assert source.notices == []


@pytest.mark.parametrize("missing", ["none.jsonl", "none*.jsonl"])
def test_every_pattern_must_match_something(placed, missing):
    dataset = placed({"a.jsonl": line("a")})
    with pytest.raises(SourceError) as caught:
        open_data(dataset, data_files=["a.jsonl", missing])
    assert str(caught.value) == f"source data: {dataset}, `data_files`: no file matches {missing!r}"


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_a_file_that_two_patterns_match_is_read_once(placed, kind):
    content = {"jsonl": line("a"), "csv": b"text\na\n", "parquet": parquet(text=["a"])}[kind]
    source = open_data(placed({f"a.{kind}": content, f"b.{kind}": content}), data_files=[f"a.{kind}", f"*.{kind}"])
    assert sorted(texts(source)) == ["a", "a"]


def test_the_split_all_is_every_split(placed):
    dataset = placed({"train.jsonl": line("a"), "validation.jsonl": line("b"), "test.jsonl": line("c")})
    assert sorted(texts(open_data(dataset, split="all"))) == ["a", "b", "c"]
    assert texts(open_data(dataset, split="all", data_files={"all": "test.jsonl", "train": "train.jsonl"})) == ["c"]


def test_the_split_all_is_every_split_of_all_formats_on_this_disk(tmp_path):
    for name, content in {"train.jsonl": line("a"), "test.csv": b"text\nb\n"}.items():
        (tmp_path / name).write_bytes(content)
    assert sorted(texts(open_data(str(tmp_path), split="all"))) == ["a", "b"]
