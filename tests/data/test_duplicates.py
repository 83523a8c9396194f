"""Copies of a document are dropped: within an epoch, across sources, and exactly so after a crash."""

import json
from dataclasses import asdict
from functools import partial
from types import SimpleNamespace

import pytest

from data import duplicates as module
from data.duplicates import Duplicates
from data.feed import Feed, Progress
from data.heldout_choice import text_hash
from data.prepare import texts_of
from data.sources.base import Document, Source

pytestmark = pytest.mark.core


class Texts(Source):
    def __init__(self, texts):
        super().__init__("texts")
        self.texts = texts

    def size(self):
        return f"{len(self.texts)} texts"

    def documents(self, epoch, position=None):
        for n in range(position or 0, len(self.texts)):
            yield Document(self.texts[n]), n + 1

    def held_out(self):
        return iter(())


def feeds(duplicates, *sources, stands=None, repeat=3):
    spec = SimpleNamespace(label="texts", repeat=repeat, max_documents=None)
    return [
        Feed(
            spec, lambda source=source: source, texts_of, lambda _: None, seed=1,
            admit=partial(duplicates.admit, number), progress=stands and Progress(**stands[number]),
        )
        for number, source in enumerate(sources)
    ]  # fmt: skip


def one_each(feeds, turns):
    """(source, text), the sources in turn; None ends an epoch."""
    return [
        (number, feed.next_document()) for _ in range(turns) for number, feed in enumerate(feeds) if not feed.finished
    ]


LETTERS = Texts([*"abcabd", "A", "a  b", "a b"])
OTHERS = Texts([*"xyax", "d", "z"])


def test_a_document_is_given_once_an_epoch_by_the_source_that_gave_it_first():
    both = feeds(Duplicates(), LETTERS, OTHERS)
    given = one_each(both, 30)
    for number, texts in enumerate((LETTERS.texts, OTHERS.texts)):
        epochs = "\n".join("|" if text is None else text for source, text in given if source == number).split("|")
        epochs = [sorted(map(text_hash, epoch.strip().split("\n"))) for epoch in epochs[:3]]
        assert epochs[0] == epochs[1] == epochs[2]
        assert len(set(epochs[0])) == len(epochs[0])
        assert set(epochs[0]) <= {text_hash(text) for text in texts}
        both[number].hashes = set(epochs[0])
    assert not both[0].hashes & both[1].hashes
    assert both[0].hashes | both[1].hashes == {text_hash(text) for text in LETTERS.texts + OTHERS.texts}
    dropped = [feed.progress.skipped["duplicate"] for feed in both]
    assert sum(dropped) == len(LETTERS.texts + OTHERS.texts) - len(both[0].hashes | both[1].hashes)


def test_what_is_saved_after_any_document_leads_to_the_same_ones():
    expected = one_each(feeds(Duplicates(), LETTERS, OTHERS), 40)
    for turns in range(25):
        duplicates = Duplicates()
        first = feeds(duplicates, LETTERS, OTHERS)
        given = one_each(first, turns // 2)
        before = duplicates.new_records()
        given += one_each(first, turns - turns // 2)
        records, stands = duplicates.new_records(), json.loads(json.dumps([asdict(feed.progress) for feed in first]))
        resumed = Duplicates()
        resumed.add(before)
        resumed.add(records)
        given += one_each(feeds(resumed, LETTERS, OTHERS, stands=stands), 40 - turns)
        assert given == expected


def test_a_source_that_holds_nothing_new_is_finished():
    first, copy = feeds(Duplicates(), Texts(["a", "b"]), Texts(["b", "a", "A"]), repeat=None)
    assert {first.next_document(), first.next_document()} == {"a", "b"}
    assert copy.next_document() is None
    assert copy.finished
    assert copy.progress.skipped == {"duplicate": 3}
    assert first.next_document() is None
    assert not first.finished


def test_only_so_many_documents_are_remembered(monkeypatch):
    monkeypatch.setattr(module, "MOST_DOCUMENTS", 3)
    duplicates = Duplicates()
    assert all(duplicates.admit(0, text_hash(letter), 0) for letter in "abcde")
    assert [duplicates.admit(1, text_hash(letter), 0) for letter in "abcde"] == [False] * 3 + [True] * 2
    again = Duplicates()
    again.add(duplicates.new_records())
    assert [again.admit(1, text_hash(letter), 0) for letter in "abcde"] == [False] * 3 + [True] * 2
