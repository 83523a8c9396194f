"""Presets and formats written to do harm: each is used as it is, or refused in one short message, in a moment.

Read from files by the same functions that main.py uses; FULL_COUNTS=1 makes twenty times as many. Through the whole
program: tests/test_hostile_presets.py.
"""

import json
import os
import string
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from configs.errors import PresetError
from configs.schema import Preset, load_preset, parse_preset
from configs.validation import LONGEST_MESSAGE, MAX_BYTES
from data.sources.cells import render
from lm.cli.menu import preset_paths
from tests.constants import FULL_COUNTS
from tests.cpu_clock import CpuClock

TIMES = 20 if FULL_COUNTS else 1
# The same examples every time, but for FULL_COUNTS: a test that fails once in a while would be run again, not looked at.
UNHURRIED = settings(suppress_health_check=list(HealthCheck), database=None, derandomize=TIMES == 1)
LONGEST_SECONDS = 0.5

VALID = {
    "$schema": "./preset.schema.json",
    "name": "small",
    "description": "One sentence.",
    "model": {"hidden_size": 64, "num_layers": 2, "num_heads": 4, "seq_length": 64},
    "train": {},
    "data": {
        "sources": [
            "wikipedia",
            {"type": "hf", "dataset": "a/b", "fields": ["question", "answer"], "format": "{question} {answer}"},
            {"type": "hf", "dataset": "json", "data_files": ["x.jsonl"], "text_field": "text"},
            {"type": "pdf", "path": "~/papers"},
        ],
        "custom_sources": [{"type": "text", "path": "notes"}, {"type": "python"}],
        "mix_strategy": "weighted",
        "source_weights": [1, 2, 3, 4, 5, 6],
    },
    "auxiliary": {},
}
ESCAPES = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202e\r\n"
HOSTILE_TEXT = [
    "", " ", "../../x", "/etc/passwd", "\\\\server\\share", "//server/share", "C:\\Windows\\x", "~nobody-such/x", "~",
    "/dev/zero", "/dev/stdin", "file:///etc/passwd", "http://127.0.0.1:1/x", "a\0b", "\ud800", ESCAPES, "a\nb: c",
    "{0.__class__}", "{question.__init__}", "{question!r:>99999999}", "%s%n", "$(touch pwned)", "${HOME}", "`id`",
    "'; DROP TABLE", "NaN", "1e999", "true", "x" * 5_000, "é" * 1_000, "💥" * 99, "\u200d", "٣", "CON", ".", "..", "-",
]  # fmt: skip
HOSTILE_VALUES = [
    *HOSTILE_TEXT, None, True, False, 0, -1, 1, 3, 0.1, -0.0, 5e-324, 2**63, 2**64, -(2**63), 10**400, 10**4000, [], {},
    [[]], [{}], {"": ""}, {"__proto__": 1}, {"type": {"type": "hf"}}, [None] * 300, [1] * 9_000, ["a"] * 300,
    ["wikipedia"] * 201, ["wikipedia"] * 199, {f"k{n}": n for n in range(5_000)}, float("inf"), float("nan"),
    [{"type": "hf", "dataset": "a/b", "fields": ["\x1b[31m"] * 9, "format": "{\x1b[31m}"}],
    [{"type": "pdf", "path": ESCAPES}], [{"type": "text", "path": "x", "glob": "../" * 50}], ["../../x"] * 9,
]  # fmt: skip


def places(value, path=()) -> list[tuple]:
    """Every key and index in a preset, as a path from its root."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [deeper for key, item in inner for deeper in [(*path, key), *places(item, (*path, key))]]


WHOLE = json.loads(parse_preset(json.dumps(VALID), "valid").to_json())  # with every knob written out
PLACES = places(WHOLE)


def changed(changes: list[tuple[tuple, object]]) -> dict:
    """A copy of the whole preset with other values in some places; where a change has left no such place, in none."""
    preset = json.loads(json.dumps(WHOLE))
    for (*parents, key), value in changes:
        section = preset
        for parent in parents:
            there = (
                section.keys()
                if isinstance(section, dict)
                else range(len(section))
                if isinstance(section, list)
                else ()
            )
            section = section[parent] if parent in there else None
        if isinstance(section, dict) or (isinstance(section, list) and isinstance(key, int) and key < len(section)):
            section[key] = value
    return preset


def nested(depth: int, shape: str) -> str:
    return "[" * depth + "]" * depth if shape == "[" else '{"a":' * depth + "1" + "}" * depth


def written(place: str, value: str) -> bytes:
    """A preset with `value`, JSON text that json.dumps would not write, at `place`."""
    key, _, inner = place.partition(".")
    whole = {**VALID, key: {**VALID[key], inner: "@"} if inner else "@"}
    return json.dumps(whole).replace('"@"', value).encode()


TEXT = json.dumps(VALID).encode()
LISTED: dict[str, bytes] = {
    "valid": TEXT,
    "empty": b"",
    "spaces": b" " * 1_000,
    "null": b"null",
    "a list": b"[]",
    "text": b'"preset"',
    "a number": b"1",
    "BOM": b"\xef\xbb\xbf" + TEXT,
    "two BOMs": b"\xef\xbb\xbf" * 2 + TEXT,
    "UTF-16": json.dumps(VALID).encode("utf-16"),
    "UTF-32": json.dumps(VALID).encode("utf-32"),
    "Latin-1": TEXT.replace(b"sentence", b"s\xe9ntence"),
    "overlong UTF-8": TEXT.replace(b"small", b"\xc0\xae\xc0\xae"),
    "surrogates in UTF-8": TEXT.replace(b"small", b"\xed\xa0\x80"),
    "NUL": TEXT.replace(b"small", b"sm\0all"),
    "NUL escaped": TEXT.replace(b"small", b"sm\\u0000all"),
    "NULs after it": TEXT + b"\0" * 100,
    "10 MB of spaces": b" " * 10_000_000 + TEXT,
    "10 MB of brackets": b"[" * 10_000_000,
    "10 MB of digits": b'{"name": ' + b"9" * 10_000_000 + b"}",
    "10 MB of text": json.dumps({**VALID, "description": "x" * 10_000_000}).encode(),
    "10 MB of keys": b'{"a":1,' * 1 + b'"a":1,' * 1_600_000 + b'"b":1}',
    "all it may have, in brackets": b'{"a":[' + b"[]," * ((MAX_BYTES - 20) // 3) + b"1]}",
    "all it may have, in keys": json.dumps({f"{n}": 1 for n in range(9_000)}).encode(),
    "all it may have, in NaN": b'{"a":[' + b"NaN," * ((MAX_BYTES - 20) // 4) + b"1]}",
    "all it may have, twice": b"{" + b'"a":1,' * ((MAX_BYTES - 20) // 6) + b'"b":1}',
    "all it may have, in wrong weights": written("data.source_weights", "[" + "-1," * 30_000 + "1]"),
    "all it may have, in wrong sources": written("data.sources", "[" + '"wikipedja",' * 7_000 + '"x"]'),
    "all it may have, in wrong files": written(
        "data.sources", '[{"type":"hf","dataset":"a/b","data_files":[' + "1," * 30_000 + "1]}]"
    ),
    "as many sources as may be": written("data", json.dumps({"sources": ["wikipedia"] * 200})),
    "as many files as may be": written(
        "data", json.dumps({"sources": [{"type": "hf", "dataset": "a/b", "data_files": ["a"] * 1_000}] * 15})
    ),
    "1e999": written("train.weight_decay", "1e999"),
    "-1e999": written("train.weight_decay", "-1e999"),
    "NaN": written("train.weight_decay", "NaN"),
    "1e5 for a whole number": written("train.seed", "1e5"),
    "minus zero": written("train.seed", "-0"),
    "thousands of digits": written("train.seed", "9" * 4_000),
    "too many digits": written("train.seed", "9" * 5_000),
    "a long fraction": written("train.weight_decay", "0." + "3" * 50_000),
    "a comment": TEXT.replace(b"{", b"{ // mine\n", 1),
    "a trailing comma": TEXT[:-1] + b",}",
    "two objects": TEXT + TEXT,
    "torn": TEXT[: len(TEXT) // 2],
    "keys like ours": TEXT.replace(b'"train"', '"trаin"'.encode()),  # a Cyrillic а
    "escapes in a key": TEXT.replace(b'"train"', json.dumps(ESCAPES).encode()),
    "DEL": TEXT.replace(b"small", b"\x7f\x7f"),
    **{f"nested {depth} {shape}": nested(depth, shape).encode() for depth in (9, 99_999) for shape in "[{"},
}
# Every depth around the one at which Python's own stack ends, where a preset can be parsed and hardly looked at.
DEPTHS = [*range(1, 30), *range(300, 1_040, 1 if TIMES > 1 else 7), *range(960, 1_001)]


WRITES = ("os.mkdir", "os.remove", "os.rename", "os.link", "os.symlink", "os.truncate", "subprocess.Popen", "os.system")


class OpenedFiles:
    """What this process does to the disk while `path` is set: it may open that file to read it, and nothing else."""

    def __init__(self):
        self.path: Path | None = None
        self.others: list = []
        b"x".decode("utf-8-sig")  # imported when it is first used
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple) -> None:
        if self.path and (event in WRITES or (event == "open" and not self._reads(*arguments))):
            self.others.append((event, arguments))

    def _reads(self, path: object, _mode: object, flags: int) -> bool:
        return str(path) == str(self.path) and not flags & (os.O_WRONLY | os.O_RDWR)


OPENED = OpenedFiles()


def check(path: Path) -> tuple[str, float]:
    """Reads the preset at `path` as main.py does. Returns what is wrong with it, or "", and the seconds that took."""
    message, clock = "", CpuClock()
    OPENED.path = path
    try:
        with clock:
            preset = load_preset(path)
            labels = [source.label for source in preset.data.all_sources]
    except PresetError as error:
        message = str(error)
    finally:
        OPENED.path = None
    assert OPENED.others == []
    if message:
        assert message.startswith(f"{path}: ")
        assert len(message) <= LONGEST_MESSAGE
        assert all(line.isprintable() for line in message.split("\n")), ascii(message)
    else:
        check_stored(preset)
        assert preset.name.isprintable()
        assert not set(preset.name) & set("/\\")
        assert all(label.isprintable() for label in labels)
        assert len(set(labels)) == len(labels)
    return message, clock.seconds


def check_stored(preset: Preset) -> None:
    """A run keeps its preset as JSON: what comes back is the same."""
    stored = preset.to_json()
    again = parse_preset(stored, "stored")
    assert again == preset
    assert again.to_json() == stored


def test_a_list_of_the_worst(tmp_path):
    path, slowest, used = tmp_path / "00_x.json", (0.0, ""), []
    cases = dict(LISTED)
    for depth in DEPTHS:
        for shape in "[{":
            for place in ("name", "train", "data.sources", "model.hidden_size"):
                cases[f"{depth} {shape} in {place}"] = written(place, nested(depth, shape))
    for value in HOSTILE_VALUES:
        for place in (
            "name",
            "description",
            "data.sources",
            "data.source_weights",
            "data.tokenizer",
            "model.seq_length",
        ):
            cases[f"{place} = {str(value)[:40]!r}"] = written(place, json.dumps(value)) if value == value else b"NaN"
    for name, content in cases.items():
        path.write_bytes(content)
        message, seconds = check(path)
        slowest = max(slowest, (seconds, name))
        if not message:
            used.append(name)
    print(f"\n{len(cases):,} presets, {len(used)} of use; the slowest, {slowest[1]!r}, took {slowest[0]:.3f} s")
    assert slowest[0] < LONGEST_SECONDS
    assert {"valid", "BOM", "as many sources as may be", "as many files as may be", "minus zero"} <= set(used)
    assert not {"DEL", "two BOMs", "1e999", "torn"} & set(used)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
HARMLESS = st.integers(1, 512) | st.floats(0.1, 0.9) | st.booleans() | st.none() | st.text("abc -", max_size=4)
CHANGES = st.lists(
    st.tuples(st.sampled_from(PLACES) | st.just(("more",)), st.sampled_from(HOSTILE_VALUES) | JSON | HARMLESS),
    min_size=1,
    max_size=3,
)
WRAPPED = st.sampled_from([b"%s", b"\xef\xbb\xbf%s", b"%s\n\n", b"%s,", b"[%s]", b"%s\0"])


@pytest.mark.slow
def test_a_thousand_fuzzed_presets(tmp_path):
    path, figures = tmp_path / "00_x.json", {"presets": 0, "of use": 0, "slowest": 0.0}

    @settings(UNHURRIED, max_examples=1_000 * TIMES)
    @given(changes=CHANGES, wrapped=WRAPPED | st.just(b"%s"), plain=st.booleans())
    def fuzz(changes, wrapped, plain):
        text = json.dumps(changed(changes), ensure_ascii=plain).encode("utf-8", "surrogatepass")
        path.write_bytes(wrapped.replace(b"%s", text))
        message, seconds = check(path)
        figures["presets"] += 1
        figures["of use"] += not message
        figures["slowest"] = max(figures["slowest"], seconds)

    fuzz()
    print(f"\n{figures}")
    assert figures["slowest"] < LONGEST_SECONDS
    assert figures["presets"] >= 1_000
    assert figures["of use"] > 20


# --- formats ----------------------------------------------------------------------------------------------------------

FIELDS = ["question", "answer", "a b", "a.b", "a[0]", "0", "__class__", "ü", "\x1b[31m"]
PIECES = st.sampled_from(
    [
        "{question}", "{answer}", "{a b}", "{a.b}", "{a[0]}", "{0}", "{__class__}", "{ü}", "{{", "}}", "\n", "text ",
        "{", "}", "{}", "{question.__class__.__mro__}", "{question!r}", "{question!z}", "{question:>99999999999}",
        "{question:{answer}}", "{answer[__globals__]}", "{" * 200, "}" * 200, "{question:" * 50, "{1}", "{ question}",
        "{question }", "{QUESTION}", "{:}", "{!r}", "{\x1b[31m}", ESCAPES, "%(question)s", "$question", "{question:}",
        "{question}" * 120, "x" * 5_000, "\0", "\ud800", "{a.b.c}", "{a[1]}", "{question!s}", "{lambda: 0}",
    ]
) | st.text(max_size=6)  # fmt: skip
CELLS = dict(zip(FIELDS, ["{answer}", "{0.__class__}", *("%s" + "x" * 99,) * 7], strict=True))


def test_five_hundred_formats():
    figures = {"formats": 0, "of use": 0, "slowest": 0.0}

    @settings(UNHURRIED, max_examples=500 * TIMES)
    @given(pieces=st.lists(PIECES, min_size=1, max_size=6))
    def fuzz(pieces):
        form = "".join(pieces)
        source = {"type": "hf", "dataset": "a/b", "fields": FIELDS, "format": form}
        text = json.dumps({**VALID, "data": {"sources": [source]}})
        message, clock = "", CpuClock()
        try:
            with clock:
                (spec,) = parse_preset(text, "p.json").data.all_sources
                document = render(spec.format, CELLS, "answer")
        except PresetError as error:
            message = str(error)
        if message:
            assert message.startswith("p.json: data.sources[0].format = ")
            assert len(message) <= LONGEST_MESSAGE
            assert all(line.isprintable() for line in message.split("\n")), ascii(message)
        else:
            expected = "".join(
                before + (CELLS[field] if field is not None else "")
                for before, field, _, _ in string.Formatter().parse(form)
            )
            assert document.text == expected
            answer = CELLS["answer"] if "{answer}" in form.replace("{{", "") else ""
            assert document.answer_start is None or document.text[document.answer_start :].startswith(answer)
        figures["formats"] += 1
        figures["of use"] += not message
        figures["slowest"] = max(figures["slowest"], clock.seconds)

    fuzz()
    print(f"\n{figures}")
    assert figures["slowest"] < LONGEST_SECONDS
    assert figures["formats"] >= 500
    assert figures["of use"] > 20


# --- files that are no presets ----------------------------------------------------------------------------------------


def test_what_is_no_file_is_refused_at_once_and_the_others_are_used(tmp_path):
    (tmp_path / "00_good.json").write_bytes(TEXT)
    (tmp_path / "01_folder.json").mkdir()
    os.mkfifo(tmp_path / "02_fifo.json")
    (tmp_path / "03_loop.json").symlink_to("03_loop.json")
    (tmp_path / "04_nowhere.json").symlink_to("nowhere")
    (tmp_path / "05_zero.json").symlink_to("/dev/zero")
    (tmp_path / "06_stdin.json").symlink_to("/dev/stdin")
    (tmp_path / "07_secret.json").symlink_to("/etc/passwd")
    (tmp_path / f"08_{'9' * 200}.json").write_bytes(TEXT)
    (tmp_path / "09_\x1b[31m\x9b.json").write_bytes(b"{")
    (tmp_path / "10_good.json").symlink_to("00_good.json")
    refused = {}
    for path in preset_paths(tmp_path):
        try:
            load_preset(path)
        except PresetError as error:
            refused[path.name[:2]] = str(error)
    assert refused.keys() == {"01", "02", "03", "04", "05", "07", "09"} | ({"06"} & refused.keys())
    assert all(line.isprintable() for message in refused.values() for line in message.split("\n"))
    for number, reason in (
        ("01", "folder"),
        ("02", "regular"),
        ("03", "symbolic links"),
        ("05", "regular"),
        ("07", "JSON"),
    ):
        assert reason in refused[number]
    assert ":0:" not in refused["07"]
