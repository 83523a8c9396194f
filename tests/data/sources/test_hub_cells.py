"""Datasets whose files differ, and cells of every type: all text in them is read, and nothing else."""

import datetime as dt
import decimal
import io
import json
import os
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs.errors import SourceError
from configs.sources import HFSource
from data.sources import cells, hub
from data.sources.opening import open_source
from tests.data.sources.reading import texts
from tests.hub import parquet


def jsonl(rows: list[dict]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.fixture
def opened(tmp_path):
    """Opens files, given by name, as a source; they are numbered if only contents are given."""

    def open_files(*contents: bytes, kind: str = "json", **keys):
        for number, content in enumerate(contents):
            (tmp_path / f"{number}.{kind}").write_bytes(content)
        spec = HFSource(type="hf", dataset=kind, data_files=f"{tmp_path}/*.{kind}", label="set", **keys)
        return open_source(spec, cache_dir=None, seed=1)

    return open_files


ROWS = [f"row {number}" for number in range(30)]
OTHER_COLUMNS = {
    "one more": ([{}], [{"score": 1}]),
    "one fewer": ([{"score": 1}], [{}]),
    "another type": ([{"score": 1}], [{"score": "high"}]),
    "null at first": ([{"lang": None}], [{"lang": "en"}]),
    "a struct": ([{"meta": {"url": "a"}}], [{"meta": {"date": "b", "id": 1}}]),
    "several types": ([{"x": 1}, {"x": "a"}, {"x": [1]}], [{"x": {"y": 1}}]),
}


@pytest.mark.parametrize("kind", ["json", "parquet"])
@pytest.mark.parametrize("others", OTHER_COLUMNS)
def test_files_may_differ_in_columns_that_nobody_asked_for(opened, kind, others):
    """Of a JSON file, two tables of which differ too, and of three Parquet files."""
    files = []
    for number in range(3):
        rows = OTHER_COLUMNS[others][min(number, 1)]
        if kind == "parquet" and others == "several types":
            rows = rows[:1]
        rows = [{"text": f"{number}/{text}", **rows[i % len(rows)]} for i, text in enumerate(ROWS)]
        files.append(jsonl(rows) if kind == "json" else as_parquet(pa.Table.from_pylist(rows)))
    source = opened(*files, kind=kind)
    assert sorted(texts(source)) == sorted(f"{number}/{text}" for number in range(3) for text in ROWS)
    assert not source.skipped
    assert not source.notices


def test_two_tables_of_one_json_file_may_differ(opened, monkeypatch):
    from datasets.packaged_modules.json.json import JsonConfig

    monkeypatch.setattr(JsonConfig, "chunksize", 200)
    monkeypatch.setattr(
        JsonConfig.__init__,
        "__defaults__",
        tuple(200 if default == 10 << 20 else default for default in JsonConfig.__init__.__defaults__),
    )
    rows = [{"text": text if number > 9 else None, "score": number or None} for number, text in enumerate(ROWS)]
    source = opened(jsonl(rows) + jsonl([{"text": text, "score": "high"} for text in ROWS]))
    assert texts(source) == ROWS[10:] + ROWS
    assert source.skipped == {"no text in 'text'": 10}


EMPTY = {
    "without rows": ("parquet", parquet(text=pa.array([], pa.string()))),
    "without rows or type": ("parquet", parquet(text=pa.array([], pa.null()))),
    "without columns": ("parquet", parquet()),
    "all null": ("parquet", parquet(text=[None] * 5)),
    "null in JSON": ("json", jsonl([{"text": None}] * 5)),
    "blank lines": ("json", b"\n\n \n"),
    "empty": ("json", b""),
    "of another kind": ("json", jsonl([{"name": "not asked for"}] * 5)),
    "of another kind, Parquet": ("parquet", parquet(name=["not asked for"] * 5)),
    "damaged": ("json", b'{"text": '),
    "damaged Parquet": ("parquet", b"PAR1"),
    "only a header": ("csv", b"text,id\n"),
    "empty CSV": ("csv", b""),
}


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("empty", EMPTY)
def test_a_file_without_text_takes_no_other_with_it(opened, empty, place):
    kind, content = EMPTY[empty]
    good = {"json": jsonl([{"text": text} for text in ROWS]), "parquet": parquet(text=ROWS)}.get(
        kind, ("text\n" + "\n".join(ROWS)).encode()
    )
    source = opened(*([content, good] if place == 0 else [good, content]), kind=kind)
    for _ in range(2):
        assert sorted(texts(source)) == sorted(ROWS)
        texts(source, 1)  # a later epoch counts nothing
    lost = source.skipped.total()
    assert lost in (0, 2, 10)  # one unreadable file or five rows, in each of two readings of the first epoch
    if lost:
        assert f"/{place}.{kind}" in source.notices[0]


def test_only_the_wanted_columns_of_a_parquet_file_are_read(hub):
    images = [os.urandom(1000) for _ in range(20_000)]
    wide = parquet(20_000, text=[f"row {number}" for number in range(20_000)], image=images)
    hub.add("wide/set", {"train.parquet": wide})
    source = open_source(HFSource(type="hf", dataset="wide/set", label="wide"), cache_dir=None, seed=1)
    assert len(texts(source)) == 20_000
    assert hub.bytes_sent < len(wide) / 2


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (pa.array([dt.date(2026, 1, 2)]), "2026-01-02"),
        (pa.array([dt.datetime(2026, 1, 2, 3, 4, 5)]), "2026-01-02 03:04:05"),
        (pa.array([dt.datetime(2026, 1, 2)]), "2026-01-02"),
        (pa.array([dt.time(3, 4, 5)]), "03:04:05"),
        (pa.array([decimal.Decimal("1.50")]), "1.50"),
        (pa.array([decimal.Decimal("0.00000001")]), "0.00000001"),
        (pa.array(["Füße".encode()]), "Füße"),
        (pa.array([b"\xff\xfe\x00"]), None),
        (pa.array(["a"]).dictionary_encode(), "a"),
        (pa.array([7]), "7"),
        (pa.array([1.5]), "1.5"),
        (pa.array([0.1], pa.float32()), "0.1"),
        (pa.array([16777216.0], pa.float32()), "16777216"),
        (pa.array([-5.0]), "-5"),
        (pa.array([1e22]), "1e+22"),
        (pa.array([float("inf")]), "inf"),
        (pa.array([0.1], pa.float16()), "0.1"),
        (pa.array([float("nan")]), None),
        (pa.array([True]), "True"),
        (pa.array([["a", None, "b"]]), "a\nb"),
        (pa.array([[None]], pa.list_(pa.string())), None),
        (pa.array([[]], pa.list_(pa.string())), None),
        (pa.array([["a", "b"]], pa.large_list(pa.string())), "a\nb"),
        (pa.array([[b"a\xff"]], pa.large_list(pa.large_binary())).view(pa.large_list(pa.large_string())), "a\ufffd"),
        (pa.array([[b"a\xff"]], pa.list_(pa.binary(), 1)).view(pa.list_(pa.string(), 1)), "a\ufffd"),
    ],
)
def test_a_cell_of_any_type_that_holds_text(opened, value, text):
    source = opened(parquet(text=pa.concat_arrays([value, value])), parquet(text=["a row"]), kind="parquet")
    assert sorted(texts(source)) == sorted(["a row", *([text] * 2 if text else [])])
    assert source.skipped == ({} if text else {"no text in 'text'": 2})


def test_a_date_that_python_has_not_costs_no_row(opened):
    days = [dt.date(2026, 1, 2).toordinal() - dt.date(1970, 1, 1).toordinal(), 3_000_000]
    dates = pa.array(days, pa.date32())
    for column, name in (
        (dates, "text"),
        (pa.StructArray.from_arrays([dates], ["day"]), "text.day"),
        (pa.array([[day] for day in days], pa.list_(pa.date32())), "text"),
    ):
        source = opened(parquet(text=column), kind="parquet", text_field=name)
        assert texts(source) == ["2026-01-02", "10183-09-21"]
        assert source.skipped == {}


def test_a_format_that_gives_rows_instead_of_tables(tmp_path):
    with tarfile.open(tmp_path / "train-0.tar", "w") as archive:
        for number in range(5):
            entry = tarfile.TarInfo(f"{number}.txt")
            entry.size = 5
            archive.addfile(entry, io.BytesIO(b"text%d" % number))
    spec = HFSource(type="hf", dataset=str(tmp_path), text_field="txt", label="archive")
    source = open_source(spec, cache_dir=None, seed=1)
    assert texts(source) == [f"text{number}" for number in range(5)]


def test_a_cell_of_lists_in_lists_is_skipped_and_counted(opened):
    rows = [json.dumps({"text": f"row {n}"}) for n in range(20)]
    rows[7] = '{"text": ' + "[" * 600 + '"deep"' + "]" * 600 + "}"
    source = opened("\n".join(rows).encode())
    assert texts(source) == [f"row {n}" for n in range(20) if n != 7]
    assert source.skipped.total() == 1


def test_csv_cells_are_text_as_written(opened):
    content = "text,id\nNone,007\nNA,1.50\nnull,x\n007,\n"
    source = opened(content.encode("utf-8-sig"), kind="csv", fields=["id", "text"], format="{id}|{text}")
    assert texts(source) == ["007|None", "1.50|NA", "x|null"]
    assert texts(opened(content.encode(), kind="csv")) == ["None", "NA", "null", "007"]
    numbers = ["007", "1.50", "1e3"]
    assert texts(opened(("text\n" + "\n".join(numbers)).encode(), kind="csv")) == numbers


FORM = {
    "fields": ["instruction", "input", "output"],
    "format": "### Do\n{instruction}\n\n{#input}### With\n{input}\n\n{/input}### Answer\n{output}",
}


@pytest.mark.parametrize("nothing", [None, "", " \n"])
def test_an_optional_field_without_text_costs_neither_the_row_nor_a_heading(opened, nothing):
    rows = [
        {"instruction": "Add.", "input": "1 and 2", "output": "3"},
        {"instruction": "Greet.", "input": nothing, "output": "Hello."},
        {"instruction": nothing, "input": nothing, "output": "Lost."},
        {"instruction": "Lost.", "input": "Lost.", "output": nothing},
    ]
    source = opened(jsonl(rows), **FORM)
    documents = [document for document, _ in source.documents(0)]
    assert [document.text for document in documents] == [
        "### Do\nAdd.\n\n### With\n1 and 2\n\n### Answer\n3",
        "### Do\nGreet.\n\n### Answer\nHello.",
    ]
    assert [document.text[document.answer_start :] for document in documents] == ["3", "Hello."]
    assert source.skipped == {"no text in 'instruction'": 1, "no text in 'output'": 1}


def test_sections_in_sections():
    form = "{#a}<{a}{#b}, {b}{/b}>{/a}{c}"
    for a, b, text in [("1", "2", "<1, 2>3"), ("1", "", "<1>3"), ("", "2", "3"), ("", "", "3")]:
        assert cells.render(form, {"a": a, "b": b, "c": "3"}, None).text == text


def test_a_field_inside_of_a_column_has_a_name_with_dots(opened):
    rows = [
        {"meta": {"text": "inside"}, "a.b": "dotted", "answers": {"text": ["one", "two"]}, "turns": [{"say": "hi"}]},
        {"meta": None, "a.b": "dotted", "answers": {"text": []}, "turns": []},
    ]
    for kind, content in (("json", jsonl(rows)), ("parquet", as_parquet(pa.Table.from_pylist(rows)))):
        for name, text in {"meta.text": "inside", "answers.text": "one\ntwo", "turns.say": "hi"}.items():
            source = opened(content, kind=kind, text_field=name)
            assert texts(source) == [text]
            assert source.skipped == {f"no text in {name!r}": 1}
        assert texts(opened(content, kind=kind, text_field="a.b")) == ["dotted", "dotted"]
        form = {"fields": ["a.b", "answers.text"], "format": "{a.b}: {answers.text}"}
        assert texts(opened(content, kind=kind, **form)) == ["dotted: one\ntwo"]


def test_values_of_several_types_are_told_apart(opened):
    """The library keeps them as JSON, at any depth."""
    rows = [
        {"text": "a", "turns": [{"say": "hi", "args": {"x": 1}}, {"say": "ho"}], "meta": {"n": 1, "t": "b"}},
        {"text": 7, "turns": [{"say": "he", "args": "none"}], "meta": {"n": "one", "t": "c"}},
        {"text": {"not": "text"}, "turns": [], "meta": None},
    ]
    for name, found in {"text": ["a", "7"], "turns.say": ["hi\nho", "he"], "meta.t": ["b", "c"]}.items():
        source = opened(jsonl(rows), text_field=name)
        assert texts(source) == found
        assert source.skipped == {f"no text in {name!r}": 1}


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"text": [1, 2, 3], "body": "b"}, "'text' of json holds list<item: int64>, which is not text; .*: body"),
        ({"text": [[0.5]], "body": "b"}, "'text' of json holds .*, which is not text; .*: body"),
        (
            {"text": [{"role": "user", "content": "c"}]},
            "not text; name a column that holds text: text.role, text.content",
        ),
        ({"text": {"en": "c", "id": 1}}, "not text; name a column that holds text: text.en"),
        ({"meta": {"text": "x"}, "n": 1}, r"no column 'text'; its columns are meta, n \(text is in meta.text\)"),
        (
            {"text": "25247 25247 11 12 13 14 15 16 17"},
            "'text' of json holds nothing but numbers, such as '25247",
        ),
        ({"text": "[25247, 25247, 11, 12, 13, 14, 15, 16]"}, "token ids or vectors, not text; name a column"),
        ({"text": "-0.25 1.5e-3 +2 3 4 5 6 7"}, "nothing but numbers, such as '-0.25"),
        ({"text": [str(number) for number in range(9)]}, "nothing but numbers, such as '0"),
    ],
)
def test_a_column_that_holds_no_text_is_refused_at_once_with_its_type(opened, row, says):
    with pytest.raises(SourceError, match=says):
        texts(opened(jsonl([row] * 3)))


@pytest.mark.parametrize(
    "rows", [["1 2 3 4 5 6 7 8 9", "and so on"], ["2024 12 31", "10:30"], ["7", "12 13"], ["1.5 2.5", "3"]]
)
def test_numbers_among_text_are_text(opened, rows):
    assert texts(opened(jsonl([{"text": text} for text in rows]))) == rows


def test_token_ids_are_found_behind_empty_rows_and_among_short_ones(opened):
    ids = " ".join(map(str, range(30)))
    for rows in ([None] * 120 + [ids], ["", " "] * 60 + [ids], [ids, "1 2 3", ids]):
        with pytest.raises(SourceError, match="nothing but numbers"):
            texts(opened(jsonl([{"text": row} for row in rows])))
    rows = [{"title": "a title", "text": None}] * 120 + [{"title": "a title", "text": ids}]
    with pytest.raises(SourceError, match="'text' of json holds nothing but numbers"):
        texts(opened(jsonl(rows), fields=["title", "text"], format="{title}: {text}"))


def test_many_small_row_groups_are_ordered_once_an_epoch(opened, monkeypatch):
    hashed = 0

    def hash_key(*parts):
        nonlocal hashed
        hashed += 1
        return str(hash(parts))

    monkeypatch.setattr(hub, "hash_key", hash_key)
    source = opened(parquet(1, text=[str(number) for number in range(300)]), kind="parquet")
    for epoch in (0, 1):
        hashed = 0
        assert len(set(texts(source, epoch))) == 300
        assert hashed < 1000


def test_a_large_row_group_is_decoded_piece_by_piece(opened):
    number = 20_000
    source = opened(parquet(number, text=["x" * 1000 for _ in range(number)]), kind="parquet")
    before = pa.total_allocated_bytes()
    most = 0
    for _ in source.documents(0):
        most = max(most, pa.total_allocated_bytes() - before)
    assert most < 5e6  # of 20 MB


def as_parquet(table: pa.Table) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file)
    return file.getvalue()
