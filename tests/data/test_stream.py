"""The stream as the trainer uses it: real folders of text, a real producer process, real kills."""

import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from configs.errors import ProducerDied, StreamDamaged, UserError
from configs.schema import TextSource, parse_preset
from data import tokenizer as bpe
from data.heldout import text_hash
from data.identity import FORMAT
from data.journal import JournalReader, JournalWriter, read_header, write_header
from data.packing import row_dtype
from data.producer_client import Stopped
from data.sources.opening import open_source
from data.stream import Stream, StreamEnded
from tests.data.sources.test_pdf import make_pdf
from tests.hub import parquet

ROOT = Path(__file__).parents[2]
LIBRARY = Path(sysconfig.get_path("stdlib"))
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
    _, source = stream.rows(first, last - first)
    return np.bincount(source[:, 1:].ravel())


def documents_of(checkpoints, num_rows):
    """The texts of the documents that the journal's rows hold whole."""
    tokens = journal(checkpoints, num_rows)
    flat = np.append(tokens[:, :-1].ravel(), tokens[-1, -1])
    ends = np.flatnonzero(flat == 0)
    tokenizer = bpe.load(checkpoints / "tokenizer.json")
    return tokenizer.decode_batch([flat[a + 1 : b].tolist() for a, b in itertools.pairwise(ends)])


@pytest.fixture
def started():
    """Makes streams and ends their processes."""
    streams = []

    def start(*args, **kwargs):
        streams.append(Stream(*args, **kwargs))
        return streams[-1]

    yield start
    for stream in streams:
        stream.close()


CHANGES = [(2000, [1.0, 1.0, 6.0]), (5000, [2.0, 2.0, 0.5])]


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


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["weighted", "round_robin", "sequential"])
def test_a_producer_killed_at_any_instant_leaves_the_same_stream(strategy, tmp_path, started):
    preset, num_rows = make_preset(strategy), 12_000  # about 770k tokens; json alone is read many times over
    changes = [] if strategy == "sequential" else CHANGES
    check_that_kills_leave_no_trace(preset, tmp_path, started, num_rows, (0, 0, 1, 1, 2500, 5000, 5000, 8000), changes)


@pytest.fixture
def all_kinds(hub, tmp_path):
    """A source of every kind but `python`: text and PDF folders, datasets on the Hub and on this disk."""
    sentences = [f"Number {n} squared is {n * n}, and its cube is {n**3}." for n in range(3000)]
    (tmp_path / "papers").mkdir()
    for n in range(3):
        pages = ["\n".join(sentences[first : first + 40]) for first in range(1000 * n, 1000 * n + 400, 40)]
        (tmp_path / "papers" / f"{n}.pdf").write_bytes(make_pdf(pages))
    hub.add(
        "owner/numbers",
        {f"data/train-{n}.parquet": parquet(rows_in_group=100, text=sentences[n::2]) for n in range(2)},
    )
    rows = [{"question": text.split(" is ")[0], "answer": text} for text in sentences]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [
        folder("json"),
        {"type": "pdf", "path": str(tmp_path / "papers")},
        {"type": "hf", "dataset": "owner/numbers"},
        {
            "type": "hf", "dataset": "json", "data_files": str(tmp_path / "rows.jsonl"),
            "fields": ["question", "answer"], "format": "{question}? {answer}",
        },
    ]  # fmt: skip


@pytest.mark.slow
def test_every_kind_of_source_goes_on_exactly_after_three_kills(all_kinds, tmp_path, started):
    sources = [*all_kinds, {"type": "python"}]
    preset = make_preset("weighted", sources=sources, weights=None, source_weights=[4, 3, 2, 1, 2])
    changes = [(2000, [1.0, 1.0, 6.0, 1.0, 1.0])]
    check_that_kills_leave_no_trace(preset, tmp_path, started, 8_000, (1, 1500, 4000), changes)


@pytest.mark.slow
def test_rows_are_shuffled_and_the_same_from_wherever_they_are_read_on(tmp_path, started):
    num_rows = 1600  # windows of 8, 16, 32 and 64 rows, the last of 8
    stream = started(make_preset(), tmp_path, num_rows * T)
    whole, source = read_all(stream, num_rows)
    stream.close()
    for row in (7, 8, 9, 56, 800, 1591, 1592, 1599):
        begun = stream.windows_begun(row)
        again = started(make_preset(), tmp_path, num_rows * T, start_row=row, begun_windows=begun)
        again.begin()
        count = min(9, num_rows - row)
        tokens, sources = again.rows(row, count)
        np.testing.assert_array_equal(tokens, whole[row : row + count])
        np.testing.assert_array_equal(sources, source[row : row + count])
        again.close()
    written = journal(tmp_path, num_rows)
    assert (whole == written).all(axis=1).mean() < 0.1, "the journal's own order teaches less"
    for start, end in itertools.pairwise(stream.windows_begun(num_rows)):
        assert sorted(whole[start:end].tolist()) == sorted(written[start:end].tolist())


def test_sources_that_end_early_end_their_window(tmp_path, started):
    stream = started(make_preset(sources=[folder("json", repeat=1)], weights=None), tmp_path, 10**6)
    stream.begin()
    with pytest.raises(StreamEnded) as ended:
        stream.rows(0, 10**6 // T)
    num_rows = ended.value.num_rows
    tokens, _ = stream.rows(0, num_rows)
    assert sorted(tokens.tolist()) == sorted(journal(tmp_path, num_rows).tolist())
    stream.close()
    again = started(
        make_preset(sources=[folder("json", repeat=1)], weights=None), tmp_path, 10**6, start_row=num_rows - 3
    )
    again.begin()  # from within the last window, whose end has yet to be heard of
    np.testing.assert_array_equal(again.rows(num_rows - 3, 3)[0], tokens[-3:])


def test_a_dead_producer_is_replaced_and_the_trainer_only_waits(tmp_path, started):
    preset = make_preset()
    stream = started(preset, tmp_path / "a", 8000 * T)
    read_all(stream, 10)
    os.kill(stream._process.pid, signal.SIGKILL)
    tokens, source = stream.rows(0, 8000)
    expected, expected_source = read_all(started(preset, tmp_path / "b", 8000 * T), 8000)
    np.testing.assert_array_equal(tokens, expected)
    np.testing.assert_array_equal(source, expected_source)
    assert tokens.shape == source.shape == (8000, T + 1)


def test_shares_are_as_asked_and_weights_change_at_their_row(tmp_path, started):
    stream = started(make_preset(), tmp_path, 20_000 * T, weight_changes=[(16_000, [1.0, 1.0, 8.0])])
    read_all(stream, 20_000)
    counts = mixture(stream, 0, 16_000)
    assert counts.sum() == 16_000 * T
    assert counts / counts.sum() == pytest.approx([0.5, 0.3, 0.2], abs=0.01)
    counts = mixture(stream, 16_800, 20_000)  # the window after the one that holds row 16,000
    assert counts / counts.sum() == pytest.approx([0.1, 0.1, 0.8], abs=0.04)  # a document is up to 3% here


def test_rows_are_the_sources_text_without_held_out_documents(tmp_path, started):
    preset = make_preset(sources=[folder(name, repeat=1) for name in ("json", "wsgiref", "html")], min_text_length=40)
    stream = started(preset, tmp_path, 10**6)
    stream.begin()
    with pytest.raises(StreamEnded) as ended:
        stream.rows(0, 10**6 // T)
    trained = documents_of(tmp_path, ended.value.num_rows)
    files = [path.read_text() for name in ("json", "wsgiref", "html") for path in (LIBRARY / name).rglob("*.py")]
    assert all(any(text in file for file in files) for text in trained)
    assert not {text_hash(text) for text in trained} & stream.held_out.hashes
    assert min(map(len, trained)) >= 40
    held_out = bpe.load(tmp_path / "tokenizer.json").decode_batch(
        [source.rows[:, 1:][source.valid].tolist() for source in stream.held_out.sources]
    )
    # Once each, apart from the last document, which has no whole row, and copies of held-out text.
    length = sum(map(len, trained)) + sum(map(len, held_out))
    assert length == pytest.approx(sum(len(file) for file in files if len(file) >= 40), rel=0.1)
    assert len(set(trained)) == len(trained)
    assert stream.held_out.num_tokens > 0


def test_of_a_single_document_the_end_is_held_out(tmp_path, started):
    text = (LIBRARY / "json" / "encoder.py").read_text()[:15_000]
    spec = TextSource(type="text", path=str(tmp_path / "only.txt"))
    for length in range(15_000, 0, -1):  # one that would be held out as a whole if it had company
        (tmp_path / "only.txt").write_text(text[:length])
        if list(open_source(spec, cache_dir=None, seed=1337).held_out()):
            text = text[:length]
            break
    source = {"type": "text", "path": str(tmp_path / "only.txt"), "repeat": 3}
    stream = started(make_preset(sources=[source], weights=None), tmp_path / "run", 10**6)
    stream.begin()
    with pytest.raises(StreamEnded) as ended:
        stream.rows(0, 10**6 // T)
    first, second = documents_of(tmp_path / "run", ended.value.num_rows)  # the third has no whole last row
    [held_out] = stream.held_out.sources
    end = bpe.load(tmp_path / "run" / "tokenizer.json").decode(held_out.rows[:, 1:][held_out.valid].tolist())
    assert first == second
    assert first + end == text
    assert 0.02 * len(text) < len(end) <= 0.05 * len(text)


def test_no_answer_and_no_paragraph_of_a_held_out_question_is_trained_on(tmp_path, started):
    lines = [
        {
            "context": f"Paragraph {n // 5} tells of item {n // 5 * 7}.",
            "question": f"What is {n}?",
            "answer": f"It is {n % 700}.",
        }
        for n in range(4000)
    ]
    (tmp_path / "squad.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    source = {
        "type": "hf", "dataset": "json", "data_files": str(tmp_path / "squad.jsonl"), "repeat": 1,
        "fields": ["context", "question", "answer"], "format": "{context}|{question}|{answer}",
    }  # fmt: skip
    stream = started(make_preset(sources=[source], weights=None), tmp_path / "run", 10**6)
    stream.begin()
    with pytest.raises(StreamEnded) as ended:
        stream.rows(0, 10**6 // T)
    trained = [text.split("|") for text in documents_of(tmp_path / "run", ended.value.num_rows)]
    [packed] = stream.held_out.sources
    tokenizer = bpe.load(tmp_path / "run" / "tokenizer.json")
    text = tokenizer.decode(packed.rows[:, 1:][packed.valid].tolist(), skip_special_tokens=False)
    held_out = [part.split("|") for part in text.split(tokenizer.id_to_token(0)) if part]
    assert len(held_out) > 20
    assert len(trained) > 2000
    for field in range(3):
        assert not {cells[field] for cells in trained} & {cells[field] for cells in held_out}
    [progress] = stream.progress(ended.value.num_rows)
    assert progress["skipped"]["sharing a field with held-out text"] > 0


@pytest.fixture
def copies(tmp_path):
    """Two folders that share half of their texts, each with copies of its own that differ in spaces."""
    rng = random.Random(1)
    texts = ["".join(rng.choice("abcdefghij ") for _ in range(rng.randrange(50, 400))) for _ in range(1500)]
    for name, first in (("a", 0), ("b", 500)):
        (tmp_path / name).mkdir()
        for number, text in enumerate(texts[first : first + 1000]):
            (tmp_path / name / f"{number}.txt").write_text(text)
            if number % 5 == 0:
                (tmp_path / name / f"{number}_copy.txt").write_text(text.replace(" ", "\n") + "\n")
    return [{"type": "text", "path": str(tmp_path / name), "label": name, "repeat": 1} for name in ("a", "b")]


def normalised(texts):
    return [text_hash(text) for text in texts]


@pytest.mark.parametrize("asked", [None, True, False])
def test_copies_are_dropped_within_and_across_folders_unless_they_are_wanted(copies, asked, tmp_path, started):
    stream = started(make_preset(sources=copies, weights=None, drop_duplicates=asked), tmp_path / "run", 10**6)
    stream.begin()
    with pytest.raises(StreamEnded) as ended:
        stream.rows(0, 10**6 // T)
    trained = normalised(documents_of(tmp_path / "run", ended.value.num_rows))
    dropped = sum(source["skipped"].get("duplicate", 0) for source in stream.progress(ended.value.num_rows))
    if asked is False:
        assert len(trained) - len(set(trained)) > 700
        assert not dropped
    else:
        assert len(set(trained)) == len(trained)
        assert dropped > 700
    assert len(set(trained) | stream.held_out.hashes) >= 1499  # the last document has no whole row


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["weighted", "round_robin", "sequential"])
def test_kills_leave_no_trace_where_copies_are_dropped(strategy, copies, tmp_path, started):
    for source in copies:
        del source["repeat"]
    preset = make_preset(strategy, sources=copies, weights=(2, 1))
    check_that_kills_leave_no_trace(preset, tmp_path, started, 8_000, (0, 1, 1, 2500, 5000), [])


def test_opening_writes_nothing_and_shows_a_real_line(tmp_path, started):
    stream = started(make_preset(), tmp_path / "checkpoints", 1000)
    infos = stream.wait_opened()
    assert [info.label for info in infos] == ["email", "asyncio", "json"]
    for info in infos:
        assert "files" in info.size
        assert any(info.first_line in path.read_text() for path in (LIBRARY / info.label).rglob("*.py"))
    assert list(tmp_path.iterdir()) == []


def test_every_unusable_source_is_named_before_anything_starts(tmp_path, started):
    preset = make_preset(sources=[folder("json"), folder("not_there"), folder("gone_too")])
    with pytest.raises(UserError, match=r"(?s)not_there.*gone_too"):
        started(preset, tmp_path, 1000).wait_opened()


def test_a_stream_is_not_continued_with_other_data(tmp_path, started):
    stream = started(make_preset(), tmp_path, 100 * T)
    read_all(stream, 100)
    stream.close()
    with pytest.raises(UserError, match=r"(?s)data\.min_text_length: 1 in the stream, 9 in the preset"):
        read_all(started(make_preset(min_text_length=9), tmp_path, 100 * T), 100)
    header = read_header(tmp_path / "stream")
    with pytest.raises(UserError, match=r"is not the stream of this run, but another's"):
        read_all(started(make_preset(), tmp_path, 100 * T, header=header | {"held_out": "another"}), 100)
    write_header(tmp_path / "stream", header | {"format": FORMAT - 1})
    with pytest.raises(UserError, match=r"started by another version of this program"):
        read_all(started(make_preset(), tmp_path, 100 * T), 100)


def flip(path, position=None):
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if position is None else position] ^= 4
    path.write_bytes(content)


def without_hashes(path):
    with np.load(path) as arrays:
        kept = {name: arrays[name] for name in arrays if name != "hashes"}
    np.savez(path, hashes=np.zeros((0, 16), dtype=np.uint8), **kept)


def zero_tail(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 3] + bytes(len(content) - len(content) // 3))


STREAM_FILES = ("tokenizer.json", "stream/rows.bin", "stream/heldout.npz", "stream/stream.json")


def test_whatever_is_lost_or_damaged_is_made_again_as_it_was(tmp_path, started):
    def begin(**of_run):
        said = []
        stream = started(make_preset(), tmp_path, 2000 * T, start_row=500, **of_run)
        header = stream.begin(on_status=said.append).header
        tokens = stream.rows(0, 2000)[0]
        stream.close()
        return header, tokens, [line for line in said if "made again" in line]

    header, whole, said = begin()
    files = {name: (tmp_path / name).read_bytes() for name in STREAM_FILES}
    assert len(said) == 1  # no row of the 500 that were trained on was there
    for damages, lost in [
        ({}, None),
        ({"stream/rows.bin": flip}, r"rows from [\d,]+ on"),
        ({"stream/heldout.npz": without_hashes, "stream/rows.bin": zero_tail}, r"heldout\.npz, rows from [\d,]+ on"),
        (dict.fromkeys(["tokenizer.json", "stream/states.jsonl"], flip), r"tokenizer\.json, rows from [\d,]+ on"),
        (dict.fromkeys(["stream/stream.json", "stream/rows.bin"], Path.unlink), r"stream\.json, rows from 0 on"),
        (
            dict.fromkeys([*STREAM_FILES, "stream/states.jsonl"], zero_tail),
            r"tokenizer\.json, heldout\.npz, stream\.json, rows from .* on",
        ),
    ]:
        for name, damage in damages.items():
            damage(tmp_path / name)
        again, tokens, said = begin(header=header)
        assert again == header
        np.testing.assert_array_equal(tokens, whole)
        assert {name: (tmp_path / name).read_bytes()[: len(files[name])] for name in files} == files
        if lost:
            [line] = said
            assert re.search(f"was damaged or incomplete: made again are {lost}$", line), line
        else:
            assert not said


def test_damage_while_rows_are_read_is_raised_and_then_made_again(tmp_path, started):
    stream = started(make_preset(), tmp_path, 4000 * T)
    read_all(stream, 10)
    stream.consumed(4000)
    stream.rows(3999, 1)  # all is written
    expected = journal(tmp_path, 4000)
    flip(tmp_path / "stream" / "rows.bin", 3999 * DTYPE.itemsize)
    stream.rows(0, 1000)
    with pytest.raises(StreamDamaged, match=r"rows .* are not those that were written"):
        stream.rows(0, 4000)
    stream.make_again(on_status=(said := []).append)
    assert re.search(r"made again are rows from [\d,]+ on", said[-1])
    stream.rows(0, 4000)
    np.testing.assert_array_equal(journal(tmp_path, 4000), expected)

    flip(tmp_path / "stream" / "rows.bin", 100)
    os.kill(stream._process.pid, signal.SIGKILL)  # the next producer finds the damage first
    with pytest.raises(StreamDamaged, match=r"has lost rows|was damaged: made again are rows from 0 on"):
        stream.rows(0, 10**6)
    stream.make_again()

    shutil.rmtree(tmp_path / "stream")
    with pytest.raises(StreamDamaged, match="has lost rows"):
        stream.rows(0, 10**6)
    stream.make_again()
    stream.rows(0, 4000)
    np.testing.assert_array_equal(journal(tmp_path, 4000), expected)


def test_a_given_tokenizer_is_used(tmp_path, started):
    given = bpe.train([path.read_text() for path in (LIBRARY / "json").glob("*.py")], 400)
    given.save(str(tmp_path / "given.json"))
    stream = started(make_preset(tokenizer=str(tmp_path / "given.json")), tmp_path / "run", 500 * T)
    info = stream.begin()
    assert (info.vocab_size, info.header["tokenizer_sha256"]) == (400, bpe.fingerprint(given))
    assert bpe.fingerprint(bpe.load(info.tokenizer_path)) == bpe.fingerprint(given)
    assert stream.rows(0, 500)[0].max() < 400


def test_a_defect_that_repeats_is_raised_with_its_traceback(tmp_path, started):
    stream = started(make_preset(), tmp_path, 100 * T)
    read_all(stream, 100)
    stream.close()
    (tmp_path / "stream" / "rows.bin").unlink()
    (tmp_path / "stream" / "rows.bin").mkdir()
    with pytest.raises(ProducerDied, match=r"(?s)ended 3 times, code 1.*Traceback.*IsADirectoryError"):
        read_all(started(make_preset(), tmp_path, 100 * T), 100)


def test_interrupts_are_for_the_trainer_and_waiting_can_be_stopped(tmp_path, started):
    stream = started(make_preset(), tmp_path, 100 * T)
    stream.wait_opened()
    pid = stream._process.pid
    os.kill(pid, signal.SIGINT)
    with pytest.raises(Stopped):
        stream.begin(should_stop=lambda: True)
    read_all(stream, 100)
    assert stream._process.pid == pid
    with pytest.raises(Stopped):  # beyond the budget no row will come
        stream.rows(10**6, 1, should_stop=lambda: True)
    assert stream.wait_seconds > 0


ORPHAN = """
import os, signal, sys
from pathlib import Path
from configs.schema import parse_preset
from data.stream import Stream
stream = Stream(parse_preset(sys.argv[1], "test"), Path(sys.argv[2]), 10**5)
stream.begin()
stream.rows(0, 10**5 // 64)  # all there is: from now on the producer has nothing to say
print(stream._process.pid, flush=True)
os.write(stream._process.stdin.fileno(), {last_words!r}.encode())
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("last_words", ["", '{"consumed": 1'])
def test_the_producer_ends_with_its_trainer(last_words, tmp_path):
    command = [sys.executable, "-c", ORPHAN.format(last_words=last_words), make_preset().to_json(), str(tmp_path)]
    pid = int(subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and is_running(pid):
        time.sleep(0.05)
    assert not is_running(pid)


def is_running(pid):
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout
    return bool(state.strip()) and not state.startswith("Z")


def test_a_step_larger_than_the_run_ahead_is_made_all_the_same(tmp_path, started):
    stream = started(make_preset(), tmp_path, 100_000)
    assert read_all(stream, 4 * stream.run_ahead_rows)[0].shape == (4 * stream.run_ahead_rows, T + 1)


@pytest.mark.slow
def test_run_ahead_is_bounded_and_late_weights_equal_early_ones(tmp_path, started):
    preset, margin = make_preset(sources=("email", "asyncio"), weights=(1, 1)), 200  # rows of the longest document
    total = 2_000_000
    live = started(preset, tmp_path / "live", total)
    limit = live.run_ahead_rows
    read_all(live, limit)
    time.sleep(0.5)
    reader = JournalReader(tmp_path / "live" / "stream", DTYPE)
    assert limit <= reader.num_rows() <= limit + limit // 2 + margin  # to the end of a window that is wanted
    change = (1000 + limit, [9.0, 1.0])
    live.change_weights(change[1], change[0])
    live.consumed(1000)
    live.rows(0, limit + 1000)
    live.consumed(total // T - limit)
    tokens, _ = live.rows(0, total // T)
    counts = mixture(live, change[0] + margin, total // T)
    assert counts[0] / counts.sum() == pytest.approx(0.9, abs=0.05)
    live.close()

    writer = JournalWriter(tmp_path / "live" / "stream", DTYPE)  # the second half again, the change known beforehand
    writer.close()
    lines = (tmp_path / "live" / "stream" / "states.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "live" / "stream" / "states.jsonl").write_text("".join(lines[: len(lines) // 2]))
    again = started(preset, tmp_path / "live", total, start_row=2000, weight_changes=[change])
    again.consumed(total // T)
    assert (read_all(again, total // T)[0] == tokens).all()


def write_poison(folder: Path) -> None:
    """Files that are no text, or text that is made to fill the memory or to take for ever."""
    rng = np.random.default_rng(0)

    def characters(first: int, last: int, count: int) -> str:
        return rng.integers(first, last, count, dtype=np.uint32).tobytes().decode("utf-32-le")

    texts = {
        "without_a_space": rng.bytes(50_000_000).translate(b"a" * 250 + b"bcdefg").decode(),
        "emoji": characters(0x1F300, 0x1F900, 1_000_000),
        "marks": "a" + "\u0301" * 1_000_000,
        "other_marks": "a" + characters(0x300, 0x370, 1_000_000),
        "one_line": "word " * 1_000_000,
        "spaces": " " * 20_000_000,
        "whitespace": " \n\t\u2028" * 10,
        "lone_surrogates": "high \ud800 and low \udfff " * 1000,
    }
    for name, text in texts.items():
        (folder / f"{name}.txt").write_bytes(text.encode("utf-8", "surrogatepass"))
    lone = ("text \ud800 " * 1000).encode("utf-16-le", "surrogatepass")
    (folder / "lone_surrogates_16.txt").write_bytes(b"\xff\xfe" + lone)
    (folder / "odd_utf16.txt").write_bytes(b"\xff\xfe" + "cut in a letter".encode("utf-16-le")[:-1])
    (folder / "not_utf8.txt").write_bytes(rng.bytes(1_000_000).translate(None, bytes(range(32))))
    (folder / "nul.txt").write_bytes(b"text, then \0 and more text" * 1000)
    (folder / "zeros.txt").write_bytes(bytes(1_000_000))
    (folder / "empty.txt").touch()
    with (folder / "gigabyte.txt").open("wb") as file:  # without a block on the disk
        file.truncate(10**9)
    for path in (LIBRARY / "json").glob("*.py"):
        (folder / f"{path.name}.txt").write_bytes(path.read_bytes())


MEASURE = """
import resource, sys
from pathlib import Path
from configs.schema import parse_preset
from data.stream import Stream, StreamEnded
from data.sources.base import in_words

budget = int(sys.argv[3])
stream = Stream(parse_preset(sys.argv[1], "test"), Path(sys.argv[2]), budget)
stream.begin()
stream.consumed(budget)
num_rows = budget // stream.seq_length
try:
    stream.rows(0, num_rows)
except StreamEnded as ended:
    num_rows = ended.num_rows
print(num_rows * stream.seq_length)
print(in_words(stream.progress(num_rows)[0]["skipped"]))
stream.close()
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024))
"""


def measure(source, folder: Path, budget: int = 25_000_000) -> tuple[int, set[str], int]:
    """Tokens of one epoch, at most `budget`, what is skipped of it, and the producer's memory in bytes. From 12 million tokens
    on the tokenizer is trained on as much text as it ever is."""
    preset = make_preset(sources=(source | {"repeat": 1},), weights=(1,)).to_json()
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, preset, str(folder), str(budget)], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    num_tokens, left_out, peak = run.stdout.splitlines()
    return int(num_tokens), set(left_out.split(", ")), int(peak)


@pytest.mark.slow
def test_poisoned_text_is_counted_and_fills_no_memory(tmp_path):
    (tmp_path / "poison").mkdir()
    write_poison(tmp_path / "poison")
    num_tokens, left_out, peak = measure({"type": "text", "path": str(tmp_path / "poison")}, tmp_path / "run")
    assert num_tokens > 3_000_000  # all of it was read
    assert peak < 500e6
    # nul, zeros and gigabyte; empty, spaces and whitespace; not_utf8. All else is text, however odd.
    assert {"3 binary", "3 empty", "1 of uncertain encoding"} <= left_out
    assert len(left_out) == 5  # and what is held out, or a copy


@pytest.mark.slow
def test_documents_of_50_megabytes_fill_no_memory(tmp_path):
    (tmp_path / "books").mkdir()
    words = [path.read_text() for path in sorted((LIBRARY / "email").glob("*.py"))]
    book = "".join(itertools.islice(itertools.cycle(words), 10**4))[:50_000_000]
    (tmp_path / "books" / "train.parquet").write_bytes(parquet(1, text=[f"{number} {book}" for number in range(3)]))
    num_tokens, left_out, peak = measure(
        {"type": "hf", "dataset": str(tmp_path / "books")}, tmp_path / "run", 12_000_000
    )
    print(num_tokens, left_out, f"{peak / 1e6:.0f} MB")
    assert num_tokens > 11_000_000
    assert peak < 500e6
