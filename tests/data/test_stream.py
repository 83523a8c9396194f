"""The stream as the trainer uses it: real folders of text, a real producer process."""

import itertools
import json
import time

import numpy as np
import pytest

from configs.errors import UserError
from configs.schema import TextSource
from data import tokenizer as bpe
from data.heldout_choice import text_hash
from data.identity import FORMAT
from data.journal import STATES, JournalReader, JournalWriter, read_header, write_header
from data.sources.opening import open_source
from data.stream import StreamEnded
from tests.constants import LIBRARY
from tests.data.small_stream import (
    DTYPE,
    T,
    documents_of,
    folder,
    journal,
    make_preset,
    mixture,
    read_all,
)


@pytest.mark.slow
def test_rows_are_shuffled_and_the_same_from_wherever_they_are_read_on(tmp_path, started):
    num_rows = 1600  # windows of 8, 16, 32 and 64 rows, the last of 8
    stream = started(make_preset(), tmp_path, num_rows * T)
    whole, source, _ = read_all(stream, num_rows)
    stream.close()
    for row in (7, 8, 9, 56, 800, 1591, 1592, 1599):
        begun = stream.windows_begun(row)
        again = started(make_preset(), tmp_path, num_rows * T, start_row=row, begun_windows=begun)
        again.begin()
        count = min(9, num_rows - row)
        tokens, sources, _ = again.rows(row, count)
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
    tokens, *_ = stream.rows(0, num_rows)
    assert sorted(tokens.tolist()) == sorted(journal(tmp_path, num_rows).tolist())
    stream.close()
    again = started(
        make_preset(sources=[folder("json", repeat=1)], weights=None), tmp_path, 10**6, start_row=num_rows - 3
    )
    again.begin()  # from within the last window, whose end has yet to be heard of
    np.testing.assert_array_equal(again.rows(num_rows - 3, 3)[0], tokens[-3:])


@pytest.mark.slow
def test_shares_are_as_asked_and_weights_change_at_their_row(tmp_path, started):
    stream = started(make_preset(), tmp_path, 20_000 * T, weight_changes=[(16_000, [1.0, 1.0, 8.0])])
    read_all(stream, 20_000)
    start, end = stream.windows_begun(16_001)[-2:]  # of the window that holds row 16,000
    counts = mixture(stream, 0, start)
    assert counts.sum() == start * T
    assert counts / counts.sum() == pytest.approx([0.5, 0.3, 0.2], abs=0.01)
    counts = mixture(stream, end, 20_000)
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_category_costs_nothing_also_where_the_data_is_sorted_by_it(tmp_path, started):
    """200 questions of each title, one title after another: the first 1,000 rows show no other titles."""
    lines = [json.dumps({"title": f"Title {n // 200}", "text": f"Text {n}, {n * 7}."}) for n in range(4000)]
    (tmp_path / "sorted.jsonl").write_text("\n".join(lines))
    source = {
        "type": "hf", "dataset": "json", "data_files": str(tmp_path / "sorted.jsonl"), "repeat": 1,
        "fields": ["title", "text"], "format": "{title}: {text}",
    }  # fmt: skip
    stream = started(make_preset(sources=[source], weights=None), tmp_path / "run", 10**6)
    stream.begin()
    with pytest.raises(StreamEnded) as ended:
        stream.rows(0, 10**6 // T)
    assert len(documents_of(tmp_path / "run", ended.value.num_rows)) > 0.9 * len(lines)
    assert any("documents that share 'title'" in notice for notice in stream.take_notices())


def normalised(texts):
    return [text_hash(text) for text in texts]


@pytest.mark.parametrize("asked", [None, True, False])
@pytest.mark.slow
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


@pytest.mark.slow
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


def test_a_new_run_is_not_told_what_has_changed_since_the_run_that_it_puts_aside(tmp_path, started):
    (tmp_path / "text").mkdir()
    for number in range(40):
        (tmp_path / "text" / f"{number}.txt").write_text(f"The square of {number} is {number**2}. " * 9)
    preset = make_preset(sources=[{"type": "text", "path": str(tmp_path / "text")}], weights=None)
    stream = started(preset, tmp_path / "run", 100 * T)
    read_all(stream, 100)
    stream.close()
    (tmp_path / "text" / "new.txt").write_text("Another text.")
    said = [started(preset, tmp_path / "run", 100 * T, fresh=fresh).wait_opened()[0].notices for fresh in (False, True)]
    assert "its files changed since this run began" in said[0][0]
    assert said[1] == []


def test_a_window_that_has_begun_is_made_to_its_end_also_for_a_smaller_budget(tmp_path, started):
    stream = started(make_preset(), tmp_path, 2000 * T)
    whole = read_all(stream, 1500)[0]
    begun = stream.windows_begun(1500)
    stream.close()
    assert begun[-1] > 1400
    (tmp_path / "stream" / "rows.bin").unlink()
    smaller = started(make_preset(), tmp_path, 1400 * T, start_row=1300, begun_windows=begun)
    smaller.begin()
    until = time.monotonic() + 60
    np.testing.assert_array_equal(smaller.rows(0, 1400, lambda: time.monotonic() > until)[0], whole[:1400])


def test_the_tokenizer_knows_the_words_of_sources_that_come_later(tmp_path, started):
    for name, words in (("english", "the quick brown fox "), ("russian", "съешь ещё этих булок ")):
        (tmp_path / name).mkdir()
        for number in range(100):
            (tmp_path / name / f"{number}.txt").write_text(f"{number} " + words * 600)
    sources = [{"type": "text", "path": str(tmp_path / name), "label": name} for name in ("english", "russian")]
    started(make_preset("sequential", sources, None), tmp_path / "run", 64 * T).begin()
    tokenizer = bpe.load(tmp_path / "run" / "tokenizer.json")
    assert len(tokenizer.encode("съешь ещё этих булок").ids) < 10


def test_a_given_tokenizer_is_used(tmp_path, started):
    given = bpe.train([path.read_text() for path in (LIBRARY / "json").glob("*.py")], 400)
    given.save(str(tmp_path / "given.json"))
    stream = started(make_preset(tokenizer=str(tmp_path / "given.json")), tmp_path / "run", 500 * T)
    info = stream.begin()
    assert (info.vocab_size, info.header["tokenizer_sha256"]) == (400, bpe.fingerprint(given))
    assert bpe.fingerprint(bpe.load(info.tokenizer_path)) == bpe.fingerprint(given)
    assert stream.rows(0, 500)[0].max() < 400


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
    tokens, *_ = live.rows(0, total // T)
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


def test_rows_of_weights_that_a_crash_undid_and_that_were_decided_otherwise_are_made_again(tmp_path, started):
    preset, num_rows, row = make_preset(sources=("email", "asyncio"), weights=(1, 1)), 1200, 700
    before = started(preset, tmp_path / "live", num_rows * T, weight_changes=[(row, [9.0, 1.0])])
    read_all(before, num_rows)
    before.close()  # and no checkpoint knows of the change
    found = {}
    for name in ("live", "alone"):
        stream = started(preset, tmp_path / name, num_rows * T, start_row=300)
        stream.begin()
        stream.change_weights([1.0, 9.0], row)
        found[name] = stream.consumed(num_rows) or stream.rows(0, num_rows)[0]
    assert (found["live"] == found["alone"]).all()


def test_a_new_run_takes_no_rows_of_text_that_is_no_longer_there(tmp_path, started):
    """What was killed before its first checkpoint is no run: if its text has changed, nothing of it is kept."""
    (tmp_path / "text").mkdir()
    for number in range(60):
        secret = "hunter2 " if number % 2 else ""
        (tmp_path / "text" / f"{number}.txt").write_text(f"{secret}The square of {number} is {number**2}. " * 9)
    preset = make_preset(sources=[{"type": "text", "path": str(tmp_path / "text")}], weights=None)
    for fresh in (True, False):
        folder = tmp_path / f"run {fresh}"
        stream = started(preset, folder, 300 * T)
        read_all(stream, 300)
        stream.close()
        assert any("hunter2" in text for text in documents_of(folder, 300))
        hidden = [path.rename(tmp_path / path.name) for path in (tmp_path / "text").glob("*[13579].txt")]
        stream = started(preset, folder, 300 * T, fresh=fresh)
        read_all(stream, 300)
        assert not any("hunter2" in text for text in documents_of(folder, 300))
        for path in hidden:
            path.rename(tmp_path / "text" / path.name)


@pytest.mark.slow
def test_a_stream_as_far_ahead_as_it_may_be_is_not_written_in_as_many_parts_as_there_are_steps(
    copies, tmp_path, started
):
    """Of short documents: an append ends with one."""
    num_rows, sources = 1500, [{**source, "repeat": None} for source in copies]
    stream = started(make_preset("round_robin", sources, None, drop_duplicates=False), tmp_path / "run", num_rows * T)
    stream.begin()
    for first in range(0, num_rows, 2):
        stream.rows(first, 2)
        stream.consumed(first + 2)
        time.sleep(0.003)
    appends = len((tmp_path / "run" / "stream" / STATES).read_text().splitlines())
    assert appends < 60  # at the end of an eighth of what it may be ahead; without that more than 100
