"""The finish of a run, and sources that are only watched: a real producer process, folders of text."""

import itertools
import shutil

import numpy as np
import pytest

from configs.errors import UserError
from data import tokenizer as bpe
from data.journal import JournalReader
from data.order import finish_row, window_edges
from data.producer import LARGEST_APPEND
from data.stream import StreamEnded
from tests.constants import LIBRARY
from tests.data.small_stream import (
    DTYPE,
    T,
    check_that_kills_leave_no_trace,
    documents_of,
    folder,
    make_preset,
    read_all,
)

ROWS, SHARE = 4000, 0.25
FINISH = {"share": SHARE, "sources": [folder("json"), folder("email")], "source_weights": [3, 1]}
BUDGET = ROWS * T - 50  # the last row is not seen whole


def finishing(**finish):
    return make_preset(sources=("email", "asyncio"), weights=(1, 1), finish=FINISH | finish)


def test_the_last_tokens_come_from_the_finish_and_no_window_crosses_its_first_row(tmp_path, started):
    preset = finishing()
    assert [source.label for source in preset.data.all_sources] == ["email", "asyncio", "json"]
    stream = started(preset, tmp_path, BUDGET)
    _, trained_on, _ = read_all(stream, ROWS)
    first = finish_row(SHARE, T, BUDGET)
    assert 0 <= (BUDGET - first * T) - SHARE * BUDGET < T
    reader = JournalReader(tmp_path / "stream", DTYPE)
    written = reader.rows(0, ROWS)
    for source in (trained_on, written["source"]):
        before, after = (np.bincount(rows[:, 1:].ravel(), minlength=3) for rows in (source[:first], source[first:]))
        assert before.sum() == first * T
        assert before / before.sum() == pytest.approx([0.5, 0.5, 0.0], abs=0.02)
        assert before[2] == after[1] == 0
        assert after / after.sum() == pytest.approx([0.25, 0.0, 0.75], abs=0.05)
    assert written["tokens"][first, 1] == 0, "a document begins"
    assert first in stream.windows_begun(ROWS)
    # Tokens of the document that was cut count only as far as they are trained on.
    state = reader.state_with(ROWS)
    given = sum(entry["tokens"] + entry["documents"] for entry in state["sources"])
    assert given == state["packer"]["rows"] * T + len(state["packer"]["tokens"])
    # The source in both parts continues where it was.
    assert state["sources"][0]["epoch"] == 0
    files = {path.read_text() for path in (LIBRARY / "email").rglob("*.py")}
    mail = [text for text in documents_of(tmp_path, ROWS) if text in files]
    assert len(mail) == len(set(mail)) > 5


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["weighted", "round_robin"])
def test_kills_leave_no_trace_across_the_beginning_of_the_finish(strategy, tmp_path, started):
    finish = FINISH if strategy == "weighted" else {key: FINISH[key] for key in ("share", "sources")}
    preset = make_preset(strategy, sources=("email", "asyncio"), weights=(1, 1), finish=finish)
    changes = [(2000, [1.0, 3.0, 0.0, 1.0, 0.0, 1.0]), (3500, [1.0, 1.0, 0.0, 4.0, 0.0, 1.0])]
    check_that_kills_leave_no_trace(preset, tmp_path, started, ROWS, (0, 1, 2500, 3000, 3000, 3300), changes)


@pytest.mark.slow
def test_a_run_with_a_larger_budget_finishes_later(tmp_path, started):
    stream = started(finishing(), tmp_path, 2000 * T)
    read_all(stream, 2000)
    begun = stream.windows_begun(2000)
    stream.close()
    longer = started(finishing(), tmp_path, 2 * 2000 * T, start_row=2000, begun_windows=begun)
    longer.begin()
    _, source, _ = longer.rows(0, 4000)
    from_finish = [not (source[a:b, 1:] == 1).any() for a, b in ((0, 1500), (1500, 2000), (2000, 3000), (3000, 4000))]
    assert from_finish == [False, True, False, True]
    assert {1500, 3000} <= set(longer.windows_begun(4000))


@pytest.mark.slow
def test_a_run_with_a_larger_budget_keeps_nothing_of_a_finish_that_was_written_ahead(tmp_path, started):
    """However far ahead of training the rows were."""
    stream = started(finishing(), tmp_path, 4000 * T)
    read_all(stream, 2500)
    begun = stream.windows_begun(2500)
    stream.rows(2500, 1500)
    stream.close()
    longer = started(finishing(), tmp_path, 8000 * T, start_row=2500, begun_windows=begun)
    longer.begin()
    _, source, _ = longer.rows(0, 8000)
    assert begun[-1] <= 3000
    assert not (source[:6000, 1:] == 2).any(), "the third source is of the finish alone"
    assert (source[6000:, 1:] == 2).any()


@pytest.mark.slow
def test_a_run_with_a_smaller_budget_finishes_earlier(tmp_path, started):
    stream = started(finishing(), tmp_path, 8000 * T)
    read_all(stream, 1000)
    begun = stream.windows_begun(1000)
    stream.rows(1000, 3000)  # beyond the beginning of the finish to be
    stream.close()
    for start_row in (1000, 1100):  # and the same again when that is resumed
        shorter = started(finishing(), tmp_path, 4000 * T, start_row=start_row, begun_windows=begun)
        shorter.begin()
        _, source, _ = shorter.rows(0, 4000)
        shorter.close()
        # The append that has the end of the window begun is kept whole.
        kept = max(3000, begun[-1] + LARGEST_APPEND // T)
        assert begun[-1] < 3000 <= kept < 3500
        assert (source[:3000, 1:] == 1).any()
        assert not (source[kept:, 1:] == 1).any()
        assert (source[kept:, 1:] == 2).any()


@pytest.mark.slow
def test_what_is_used_up_before_the_finish_has_no_part_in_it_and_alone_ends_the_run(tmp_path, started):
    once = folder("json", repeat=1)
    finish = {"share": 0.25, "sources": [once, folder("asyncio")]}
    preset = make_preset(sources=(once, "email"), weights=(1, 1), finish=finish)
    _, source, _ = read_all(started(preset, tmp_path / "two", 1200 * T), 1200)
    assert [set(source[a:b, 1:].ravel().tolist()) for a, b in ((0, 900), (900, 1200))] == [{0, 1}, {2}]
    stream = started(make_preset(sources=[once], weights=None, finish=finish), tmp_path / "one", 1200 * T)
    stream.begin()
    with pytest.raises(StreamEnded) as ended:
        stream.rows(0, 1200)
    assert 100 < ended.value.num_rows < 900


def test_a_finish_gives_again_what_the_run_has_read_before_and_drops_copies_of_its_own(tmp_path, started):
    for number in range(300):
        path = tmp_path / "notes" / ("best" if number % 10 == 0 else "") / f"{number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"Note {number} says that {number**7} is the seventh power of it.")
    (tmp_path / "notes" / "best" / "copy.txt").write_text((tmp_path / "notes" / "best" / "0.txt").read_text())
    main, best = ({"type": "text", "path": str(path)} for path in (tmp_path / "notes", tmp_path / "notes" / "best"))
    preset = make_preset(sources=[main], weights=None, finish={"share": 0.25, "sources": [best]})
    stream = started(preset, tmp_path / "run", 800 * T)
    _, source, _ = read_all(stream, 800)
    assert [set(source[a:b, 1:].ravel().tolist()) for a, b in ((0, 600), (600, 800))] == [{0}, {1}]
    dropped = [entry["skipped"].get("duplicate", 0) for entry in stream.progress(800)]
    assert dropped[1] == 1


def test_watched_sources_are_evaluated_and_never_trained_on(tmp_path, started):
    watched = tmp_path / "watched"
    watched.mkdir()
    copied = next(path for path in sorted((LIBRARY / "json").glob("*.py")) if path.stat().st_size > 3000)
    texts = [copied.read_text(), *(f"Letter {n}: " + "my dear friend, " * 20 for n in range(9))]
    for number, text in enumerate(texts):
        (watched / f"{number}.txt").write_text(text)
    sources = [folder("json", repeat=1)]
    watch = [{"type": "text", "path": str(watched), "label": "letters"}]
    preset = make_preset(sources=sources, weights=None, watch=watch)
    stream = started(preset, tmp_path / "run", 150 * T)
    _, source, _ = read_all(stream, 150)
    assert set(source.ravel().tolist()) == {0}
    assert [part.label for part in stream.held_out.sources] == ["json", "letters"]
    letters = stream.held_out.sources[1]
    held_out = bpe.load(tmp_path / "run" / "tokenizer.json").decode(letters.rows[:, 1:][letters.valid].tolist())
    assert all(text in held_out for text in texts), "not a twentieth: all of it"
    assert copied.read_text() not in documents_of(tmp_path / "run", 150)


@pytest.mark.slow
def test_text_of_the_finish_and_watched_text_may_be_moved_and_not_exchanged(tmp_path, started):
    def preset(place, **instead):
        texts = {name: folder(name, path=str(tmp_path / place / name)) for name in ("email", "json", "wsgiref")}
        mail, json, _ = texts.values()
        finish = {"share": SHARE, "sources": [mail | instead, json]}
        return make_preset(
            "round_robin", sources=[mail, "asyncio"], weights=None, finish=finish, watch=[texts["wsgiref"]]
        )

    for name in ("email", "json", "wsgiref"):
        shutil.copytree(LIBRARY / name, tmp_path / "here" / name, ignore=shutil.ignore_patterns("__pycache__"))
    stream = started(preset("here"), tmp_path / "run", 1000 * T)
    whole = read_all(stream, 1000)[0]
    stream.close()
    (tmp_path / "here").rename(tmp_path / "there")
    (tmp_path / "run" / "stream" / "rows.bin").unlink()  # made again from the text at its other place
    np.testing.assert_array_equal(read_all(started(preset("there"), tmp_path / "run", 1000 * T), 1000)[0], whole)
    with pytest.raises(UserError, match=r"data\.finish_sources: \[0, 2\] in the stream, \[1, 2\] in the preset"):
        read_all(started(preset("there", **folder("asyncio")), tmp_path / "run", 1000 * T), 1000)
    (tmp_path / "there" / "wsgiref" / "util.py").write_text("other text")
    with pytest.raises(UserError, match=r"source wsgiref: this run began with the text in .*here/wsgiref"):
        read_all(started(preset("there/../there"), tmp_path / "run", 1000 * T), 1000)


def test_a_finish_of_which_nothing_can_be_used_is_refused_at_the_start_and_not_when_it_begins(tmp_path, started):
    (tmp_path / "short").mkdir()
    for n in range(40):
        (tmp_path / "short" / f"{n}.txt").write_text(f"Answer {n}.")
    bpe.train(["some text"], 300).save(str(tmp_path / "given.json"))
    finish = {"share": SHARE, "sources": [{"type": "text", "path": str(tmp_path / "short")}]}
    preset = make_preset(
        sources=["email"], weights=None, min_text_length=50, tokenizer=str(tmp_path / "given.json"), finish=finish
    )
    with pytest.raises(UserError, match=r"short: not one document can be used \(40 too short\)"):
        started(preset, tmp_path / "run", 200 * T).begin()


def test_watched_text_is_no_held_out_text_of_the_sources_trained_on(tmp_path, started):
    (tmp_path / "one.txt").write_text("Nothing to cut.")
    preset = make_preset(
        sources=[{"type": "text", "path": str(tmp_path / "one.txt")}], weights=None, watch=[folder("json")]
    )
    with pytest.raises(UserError, match=r"one\.txt: no document can be held out"):
        started(preset, tmp_path / "run", 200 * T).begin()


def test_windows_end_where_the_finish_begins():
    edges = window_edges(1000, 100, finish=777)
    assert 777 in edges
    assert edges == sorted(set(edges))
    assert max(b - a for a, b in itertools.pairwise(edges)) <= 50
    assert window_edges(1000, 100, [0, 800], finish=777)[:2] == [0, 800], "begun before the budget changed"
