import json
import time
from dataclasses import asdict
from functools import partial
from itertools import pairwise
from types import SimpleNamespace

import pytest

from configs.errors import Retryable, SourceError
from configs.sources import TextSource
from data import feed as feed_module
from data import waiting
from data.feed import Feed, Progress, times_read
from data.heldout_choice import reason_to_skip, text_hash
from data.prepare import texts_of
from data.sources.base import BETWEEN_TURNS, Document, Source, Turn
from data.sources.opening import open_source

pytestmark = pytest.mark.core


class Numbers(Source):
    """Documents "<epoch>:<n>", one in four unusable; the connection breaks before those numbered in `breaks`."""

    def __init__(self, count, breaks=()):
        super().__init__("numbers")
        self.count, self.breaks = count, set(breaks)

    def size(self):
        return f"{self.count} numbers"

    def documents(self, epoch, position=None):
        for n in range(position or 0, self.count):
            if n in self.breaks:
                self.breaks.remove(n)
                raise Retryable("connection lost")
            if n % 5 == 4:
                self.skipped["divisible"] += 1
            else:
                yield Document("" if n % 4 == 3 else f"{epoch}:{n}"), n + 1

    def held_out(self):
        return iter(())


def feed(
    source, progress=None, *, repeat=None, max_documents=None, min_text_length=1, largest_block=0, held_out=frozenset()
):
    spec = SimpleNamespace(label="numbers", repeat=repeat, max_documents=max_documents)
    skip = partial(reason_to_skip, min_text_length=min_text_length, held_out=held_out)
    return Feed(spec, lambda: source, texts_of, skip, seed=1, progress=progress, largest_block=largest_block)


def take(feed, count):
    return [feed.next_document() for _ in range(count)]


def test_what_is_saved_after_any_document_leads_to_the_next(monkeypatch):
    # Blocks of 4 and then 8 documents, some of them encoded at once: an epoch ends inside a block, and at the end of one.
    monkeypatch.setattr(feed_module, "BLOCK_DOCUMENTS", 4)
    monkeypatch.setattr(feed_module, "ENCODED_BYTES", 8)
    numbers = partial(feed, max_documents=13, largest_block=2 * feed_module.BLOCK_BYTES)
    whole = numbers(Numbers(23))
    expected = take(whole, 60)
    for count in range(50):
        first = numbers(Numbers(23))
        take(first, count)
        saved = Progress(**json.loads(json.dumps(asdict(first.progress))))
        resumed = numbers(Numbers(23), saved)
        assert take(resumed, 10) == expected[count : count + 10]
        assert take(resumed, 60 - count - 10) == expected[count + 10 :]
        assert resumed.progress == whole.progress


def test_an_epoch_ends_with_none_and_everything_left_out_is_counted():
    numbers = feed(Numbers(20), repeat=2)
    first, second = take(numbers, 13), take(numbers, 13)
    assert first[-1] is second[-1] is None
    assert sorted(first[:-1]) == sorted(f"0:{n}" for n in range(20) if n % 5 != 4 and n % 4 != 3)
    assert sorted(second[:-1]) == [text.replace("0:", "1:", 1) for text in sorted(first[:-1])]
    assert second[:-1] != [text.replace("0:", "1:", 1) for text in first[:-1]]  # another order
    assert numbers.finished
    assert numbers.progress.skipped == {"divisible": 8, "empty": 8}
    assert numbers.progress.documents == 24


def test_a_source_that_has_ended_is_not_being_read_again():
    numbers, twice = feed(Numbers(30), repeat=1), feed(Numbers(30), repeat=2)
    while not numbers.finished:
        numbers.next_document()
    assert times_read(asdict(numbers.progress)) == 0
    counts = []
    while not twice.finished:
        twice.next_document()
        counts.append(times_read(asdict(twice.progress)))
    assert set(counts) == {0, 1}
    assert counts[-1] == 1


def test_documents_that_are_limited_are_the_same_in_each_epoch(tmp_path):
    for number in range(200):
        (tmp_path / f"{number}.txt").write_text(f"Note {number}.")
    (tmp_path / "empty.txt").touch()
    spec = TextSource(type="text", path=str(tmp_path), label="notes", max_documents=20)
    source = open_source(spec, cache_dir=None, seed=1)
    notes = Feed(spec, lambda: source, texts_of, lambda document: None, seed=1)
    epochs = [[], [], []]
    for number in range(3):
        while (text := notes.next_document()) is not None:
            epochs[number].append(text)
    assert len(set(epochs[0])) == 20
    assert set(epochs[0]) == set(epochs[1]) == set(epochs[2])
    assert len(set(map(tuple, epochs))) == 3
    assert notes.progress.skipped == {"empty": 1}


def test_a_large_loss_is_said_once_and_not_again_by_a_resumed_run():
    lossy = feed(Numbers(1000))
    take(lossy, 1)
    assert lossy.new_notices() == ["numbers: 400 of its first 1,000 documents are skipped (200 empty, 200 divisible)"]
    take(lossy, 1500)
    resumed = feed(Numbers(1000), Progress(**asdict(lossy.progress)))
    take(resumed, 700)
    assert lossy.new_notices() == resumed.new_notices() == []
    files = Numbers(1000)
    files.skips_documents = False  # 200 that are "divisible" are files
    by_file = feed(files)
    take(by_file, 1)
    assert by_file.new_notices() == ["numbers: 200 of its first 800 documents are skipped (200 empty)"]
    few = feed(Numbers(90))
    take(few, 20)
    assert few.new_notices() == []
    # One in twenty should be held out, whatever else is lost; copies of what is held out are a loss.
    held_out = Numbers(300)
    held_out.documents = lambda epoch, position: ((Document(f"line {n % 3 if n % 5 else n}"), n) for n in range(300))
    repeating = feed(held_out, held_out=frozenset({text_hash("line 0")}))
    take(repeating, 1)
    assert repeating.new_notices() == ["numbers: 81 of its first 300 documents are skipped (81 held out)"]


def test_documents_are_shuffled_by_blocks_that_grow_and_all_there(monkeypatch):
    monkeypatch.setattr(feed_module, "BLOCK_DOCUMENTS", 40)
    numbers = [int(text[2:]) for text in take(feed(Numbers(1000), largest_block=4 * feed_module.BLOCK_BYTES), 600)]
    for first, end in pairwise([0, 40, 120, 280, 440, 600]):
        block, expected = numbers[first:end], sorted(numbers)[first:end]
        assert block != expected
        assert sorted(block) == expected
        assert first == 0 or sorted(block[:40]) != expected[:40]


def test_a_block_ends_with_the_bytes_it_may_hold(monkeypatch):
    monkeypatch.setattr(feed_module, "BLOCK_BYTES", 30)
    numbers = feed(Numbers(1000))
    take(numbers, 1)
    assert len(numbers._waiting) < 12


def test_rows_so_far_are_written_while_a_block_takes_long_to_read(monkeypatch):
    monkeypatch.setattr(feed_module, "BLOCK_DOCUMENTS", 4)
    written = []
    spec = SimpleNamespace(label="numbers", repeat=None, max_documents=None)

    def given_before_each_read(seconds):
        monkeypatch.setattr(feed_module, "BLOCK_SECONDS", seconds)
        written.clear()
        numbers = Feed(
            spec,
            lambda: Numbers(40),
            texts_of,
            lambda _: None,
            seed=1,
            before_waiting=lambda: written.append(numbers.progress.documents),
        )
        take(numbers, 13)
        return written

    assert set(given_before_each_read(-1)) == {0, 4, 8, 12}
    assert given_before_each_read(60) == []  # an append for each block of a small source would be one for each epoch


def test_a_source_that_shrank_gives_nothing_again():
    whole = feed(Numbers(20))
    given = take(whole, 8)
    rest = feed(Numbers(8), whole.progress)  # five are usable
    assert rest.next_document() is None
    assert len(given) == len(set(given))


def test_a_conversation_is_the_same_after_waiting_in_a_block():
    turns = (Turn("system", "Sé bre\n\nve. 😀"), Turn("user", ""), Turn("assistant", "\n\n"), Turn("user", "x\ud800"))
    conversation = Document(BETWEEN_TURNS.join(turn.text for turn in turns), cells=("Sé",), turns=turns)

    class Talk(Numbers):
        def documents(self, epoch, position=None):
            yield conversation, 1

    spec = SimpleNamespace(label="talk", repeat=1, max_documents=None)
    [given] = take(Feed(spec, lambda: Talk(1), list, lambda _: None, seed=1), 1)
    assert given.turns == (*turns[:3], Turn("user", "x?"))
    assert given.text == BETWEEN_TURNS.join(turn.text for turn in given.turns)


def test_a_broken_connection_loses_and_doubles_nothing(monkeypatch, caplog):
    caplog.set_level("INFO", "data")
    monkeypatch.setattr(feed_module, "FIRST_WAIT", 0.01)
    numbers = feed(Numbers(40, breaks=[0, 7, 8, 30, 39]), repeat=1)
    whole = feed(Numbers(40), repeat=1)
    assert take(numbers, 25) == take(whole, 25)
    assert numbers.progress.retries == 5
    assert numbers.progress.skipped == whole.progress.skipped == {"divisible": 8, "empty": 8}
    assert caplog.messages.count("numbers: connection lost, retrying in 0 s") == 5
    assert caplog.messages[-1] == ""


def test_silence_is_said_and_taken_back_when_the_source_answers(monkeypatch, caplog):
    caplog.set_level("INFO", "data")
    monkeypatch.setattr(waiting, "LONGEST_SILENCE", 0.2)

    class Slow(Numbers):
        def documents(self, epoch, position=None):
            deadline = time.monotonic() + 60
            while not caplog.messages and time.monotonic() < deadline:
                time.sleep(0.01)
            yield from super().documents(epoch, position)

    assert take(feed(Slow(3), repeat=1), 3) == take(feed(Numbers(3)), 3)
    assert caplog.messages == ["numbers: no text for 0 s, still trying", ""]
    monkeypatch.setattr(waiting, "LONGEST_SILENCE", 5)
    caplog.clear()
    take(feed(Numbers(3), repeat=1), 3)
    assert caplog.messages == []


def test_a_source_without_one_usable_document_is_an_error_with_the_reasons():
    with pytest.raises(
        SourceError, match=r"source numbers: not one document.*too short.*divisible|divisible.*too short"
    ):
        feed(Numbers(20), min_text_length=1000).next_document()


def test_documents_that_cannot_be_text_are_still_encodable():
    class Odd(Numbers):
        def documents(self, epoch, position=None):
            yield Document("a\ud800b"), 1

    assert feed(Odd(1)).next_document() == "a?b"
