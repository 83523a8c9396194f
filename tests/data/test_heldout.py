import json
import random
from itertools import count

import numpy as np
import pytest

from configs.schema import TextSource, parse_preset
from data import tokenizer as bpe
from data.chat_template import OWN, ChatTemplate, Turn
from data.heldout import HeldOut, pack
from data.heldout_choice import (
    BYTES_PER_TOKEN,
    collect,
    collect_of_few,
    kept_length,
    reason_to_skip,
    text_hash,
    without_shared_cells,
)
from data.heldout_selection import choose_held_out
from data.sources.base import Document
from data.sources.opening import open_source

pytestmark = pytest.mark.core

T = 16
QUESTIONS = [(f"Q: What is {n} and {n}?\nA: ", f"It is {2 * n}, naïvely.") for n in range(40)]
ANSWERED = [Document(question + answer, len(question)) for question, answer in QUESTIONS]
PROSE = [Document(f"Chapter {n}. " + "It was a dark and stormy night. " * (n % 5 + 1)) for n in range(30)]


@pytest.fixture(scope="module")
def tokenizer():
    return bpe.train([document.text for document in ANSWERED + PROSE], 400)


@pytest.fixture(scope="module")
def held_out(tokenizer):
    sources = [pack("qa", ANSWERED, tokenizer, T), pack("prose", PROSE, tokenizer, T), pack("none", [], tokenizer, T)]
    cuts = {text_hash("a document"): 7, text_hash("another"): 5}
    return HeldOut(sources, frozenset(text_hash(document.text) for document in ANSWERED + PROSE), cuts)


def targets(source, mask):
    return source.rows[:, 1:][mask].tolist()


def test_valid_targets_are_every_token_of_every_document_once(held_out, tokenizer):
    for source, documents in zip(held_out.sources, (ANSWERED, PROSE, []), strict=True):
        expected = [token for ids in bpe.encode(tokenizer, [d.text for d in documents]) for token in (*ids.tolist(), 0)]
        assert targets(source, source.valid) == expected
        assert (source.rows[:, 1:][~source.valid] == 0).all()
        assert source.rows.shape == (len(source.valid), T + 1)
        assert source.rows.dtype == np.uint16
        assert (~source.valid).sum() < T


def test_answer_mask_is_the_answer_and_nothing_else(held_out, tokenizer):
    qa, prose, _ = held_out.sources
    text = tokenizer.decode(targets(qa, qa.answer), skip_special_tokens=False)
    assert text.replace(" ", "") == "".join(answer for _, answer in QUESTIONS).replace(" ", "")
    assert not prose.answer.any()


def test_starts_are_where_documents_begin(held_out, tokenizer):
    for source, documents in zip(held_out.sources, (ANSWERED, PROSE, []), strict=True):
        assert len(source.starts) == len(documents)
        flat = np.append(source.rows[:, :-1].ravel(), source.rows[-1:, -1])
        for (row, column), document in zip(source.starts, documents, strict=True):
            assert source.rows[row, column] == 0
            following = flat[row * T + column + 1 :][:6].tolist()
            assert document.text.startswith(tokenizer.decode(following[: following.index(0) if 0 in following else 6]))


@pytest.mark.parametrize("count", [4, 60, 1000])
def test_beginnings_are_of_the_sources_in_turn_and_from_all_over_each(held_out, tokenizer, count):
    found = held_out.beginnings(count, 8)
    in_turn = ["qa", "prose"] * len(PROSE) + ["qa"] * (len(ANSWERED) - len(PROSE))
    assert [label for label, _ in found] == in_turn[:count]
    assert count < 1000 or len({(label, *tokens) for label, tokens in found}) > 60  # some begin alike; none comes twice
    numbers = []
    for label, tokens in found:
        assert 1 < len(tokens) <= 8
        text, documents = tokenizer.decode(tokens[1:]), {"qa": ANSWERED, "prose": PROSE}[label]
        assert tokens[0] == 0
        numbers.append(next(number for number, document in enumerate(documents) if document.text.startswith(text)))
    early, late = (11, 20) if count == 4 else (6, 24)  # two of a source: from the middles of its halves
    assert numbers[0] < early < late < numbers[-1]


def test_few_documents_are_of_sources_from_first_to_last(tokenizer):
    sources = [pack(label, PROSE, tokenizer, T) for label in "0123456"]
    for number, labels in {1: "0", 2: "06", 3: "036", 6: "012346", 8: "01234560"}.items():
        assert [label for label, _, _ in HeldOut(sources, frozenset()).documents(number)] == list(labels)
    assert [label for label, _, _ in HeldOut(sources, frozenset()).without({"0", "6"}).documents(3)] == ["1", "3", "5"]


def test_a_beginning_leaves_the_answer_or_the_second_half_to_the_model(tokenizer):
    def beginnings(documents, length):
        return [
            tokens for _, tokens in HeldOut([pack("x", documents, tokenizer, 64)], frozenset()).beginnings(99, length)
        ]

    def halves(documents):
        encoded = bpe.encode(tokenizer, [document.text for document in documents])
        return [[0, *ids.tolist()][: len(ids) // 2 + 1] for ids in encoded]

    for (question, _), tokens in zip(QUESTIONS, beginnings(ANSWERED, 32), strict=True):
        assert tokenizer.decode(tokens[1:]) == question.rstrip()
    assert beginnings(PROSE, 32) == [tokens[:32] for tokens in halves(PROSE)]
    all_answer = [Document(document.text, 0) for document in PROSE]  # as later pieces of a long one are
    assert beginnings(all_answer, 32) == beginnings(PROSE, 32)
    assert {len(tokens) for tokens in beginnings(ANSWERED, 4)} == {4}
    questions = HeldOut([pack("x", ANSWERED, tokenizer, 64)], frozenset()).beginnings(99, 4, 32)
    assert [tokens for _, tokens in questions] == beginnings(ANSWERED, 32)
    assert beginnings([Document("Yes.")], 32) == halves([Document("Yes.")])
    longer_than_two_rows = Document("It was a dark and stormy night. " * 99)
    assert beginnings([longer_than_two_rows], 32) == [halves([longer_than_two_rows])[0][:32]]


def test_a_conversation_ends_where_the_next_begins_whatever_ends_its_turns(tokenizer):
    """In Zephyr's template the end-of-text token ends a question too."""
    ends = OWN.replace("'<|end|>'", f"'{bpe.END_OF_TEXT}'").replace(
        "'<|' + message['role'] + '|>'", "message['role'] + ': '"
    )
    template = ChatTemplate(ends, tokenizer)
    talks = [
        Document(question, turns=(Turn("user", question), Turn("assistant", answer))) for question, answer in QUESTIONS
    ]
    packed = pack("x", talks, tokenizer, 64, template)
    for number, talk in enumerate(talks):
        tokens, before_answer = packed.document(number)
        assert tokens == [0, *template.encode(talk.turns)[0].tolist()]
        assert tokenizer.decode(tokens[before_answer:]).strip() == talk.turns[1].text


def test_a_subset_is_spread_in_proportion_and_always_the_same(held_out):
    half = held_out.subset(held_out.num_tokens // 2)
    assert half.num_tokens == pytest.approx(held_out.num_tokens / 2, rel=0.05)
    for whole, part in zip(held_out.sources, half.sources, strict=True):
        assert part.num_tokens == pytest.approx(whole.num_tokens / 2, abs=2 * T)
        for row, column in part.starts:
            assert part.rows[row, column] == 0
    numbers = [
        next(i for i, row in enumerate(held_out.sources[0].rows) if (row == kept).all())
        for kept in half.sources[0].rows
    ]
    assert numbers == sorted(set(numbers))
    assert numbers[0] < 3
    assert numbers[-1] >= len(held_out.sources[0].rows) - 3
    assert [part.rows.tolist() for part in held_out.subset(1).sources[:2]] == [
        source.rows[:1].tolist() for source in held_out.sources[:2]
    ]
    assert held_out.subset(10**9).num_tokens == held_out.num_tokens


def test_watched_text_takes_nothing_from_a_subset_of_what_is_trained_on(tokenizer):
    mine, web, other = (
        pack(label, PROSE[:count], tokenizer, T) for label, count in (("mine", 4), ("web", 30), ("other", 30))
    )
    alone, beside = HeldOut([mine], frozenset()), HeldOut([mine, web, other], frozenset())
    for num_tokens in (mine.num_tokens // 2, mine.num_tokens):
        for take in (HeldOut.subset, HeldOut.overlapping):
            [expected], [found, *watched] = (
                take(held_out, num_tokens, ["web", "other"]).sources for held_out in (alone, beside)
            )
            np.testing.assert_array_equal(found.rows, expected.rows)
            assert sum(source.num_tokens for source in watched) == pytest.approx(num_tokens, abs=2 * T)


def flat(array):
    return np.append(array[:, :-1].ravel(), array[-1:, -1])


@pytest.mark.parametrize("length", [T, 10])  # 10: windows are 2 tokens apart
@pytest.mark.parametrize("share", [1.0, 0.4])
def test_overlapping_windows_score_the_same_targets_with_more_text_before_them(length, share, tokenizer):
    held_out = HeldOut(
        [pack("qa", ANSWERED, tokenizer, length), pack("prose", PROSE, tokenizer, length), pack("none", [], tokenizer, length)],
        frozenset(),
    )  # fmt: skip
    num_tokens = int(share * held_out.num_tokens)
    whole, plain, windows = (
        each.sources for each in (held_out, held_out.subset(num_tokens), held_out.overlapping(num_tokens))
    )
    for source, rows, overlapping in zip(whole, plain, windows, strict=True):
        assert targets(overlapping, overlapping.valid) == targets(rows, rows.valid)
        assert targets(overlapping, overlapping.answer) == targets(rows, rows.answer)
        text = flat(source.rows).tolist()
        first = overlapping.valid.argmax(1)
        assert (first[1:] >= 3 * length // 4)[overlapping.valid[1:].any(1)].all()
        starts = [
            next(i for i in range(len(text)) if text[i : i + length + 1] == row.tolist()) for row in overlapping.rows
        ]
        assert len(starts) == 0 or len(set(starts)) > len(rows.rows)


def test_saved_and_loaded_it_is_the_same(held_out, tmp_path):
    held_out.save(tmp_path / "heldout.npz")
    loaded = HeldOut.load(tmp_path / "heldout.npz")
    assert (loaded.hashes, loaded.cuts, loaded.digest()) == (held_out.hashes, held_out.cuts, held_out.digest())
    assert [source.label for source in loaded.sources] == ["qa", "prose", "none"]
    for ours, theirs in zip(held_out.sources, loaded.sources, strict=True):
        for name in ("rows", "valid", "answer", "starts"):
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))


def test_collect_takes_each_text_once_and_stops_when_there_is_enough():
    texts = [
        "Short",
        "A text that is long enough.",
        "a TEXT that  is\nlong enough.",
        " " * 50,
        "Another long enough text",
    ]
    chosen = collect(map(Document, texts * 2), 10**6, 10)
    assert [document.text for document in chosen.values()] == [texts[1], texts[4]]
    assert set(chosen) == {text_hash(texts[1]), text_hash(texts[4])}
    many = collect((Document(f"document number {n:06}") for n in range(10**9)), 1000, 1)
    assert sum(len(document.text) for document in many.values()) == pytest.approx(1000 * BYTES_PER_TOKEN, abs=25)
    assert collect(map(Document, texts), 0, 1) == {}


def beginning(source):
    return (document for document, _ in source.documents(0))


def test_a_source_too_small_for_one_in_twenty_still_holds_out_a_document(tmp_path):
    texts = [f"document number {number} of a very small folder " * 20 for number in range(3)]
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.txt").write_text(text)
    source = open_source(TextSource(type="text", path=str(tmp_path), label="tiny"), cache_dir=None, seed=1)
    held_out, cuts = collect_of_few(beginning(source), 1)
    assert [document.text in texts for document in held_out.values()] == [True]
    assert not cuts
    assert collect_of_few(iter([Document("too short to cut")]), 1) == ({}, {}), "nothing would be left to train on"


@pytest.mark.parametrize(
    "text", ["Twenty characters so.", "word " * 30, "nospaces" * 40, "one line\nand another, which is longer\n"]
)
def test_of_the_only_document_however_short_the_last_word_is_held_out(text):
    held_out, cuts = collect_of_few(iter([Document(text)]), 1)
    [kept], [end] = cuts.values(), held_out.values()
    assert text == text[:kept] + end.text
    assert len(text) / 2 < kept < len(text)
    assert end.text.strip()


@pytest.mark.parametrize("mark", ["\n\n", "\n", " ", "x"])
@pytest.mark.parametrize("others", [0, 3])
def test_of_a_few_documents_the_end_of_the_longest_is_held_out(mark, others):
    long = "".join(f"{number:05}{mark}" for number in range(1000))
    documents = [Document("another, much shorter one" * 9 + str(n)) for n in range(others)]
    held_out, cuts = collect_of_few(iter([*documents, Document(long)]), 1)
    [kept] = cuts.values()
    assert cuts == {text_hash(long): kept}
    assert {key: document.text for key, document in held_out.items()} == {text_hash(long[kept:]): long[kept:]}
    assert 0.02 * len(long) < len(long[kept:]) <= 0.05 * len(long)
    assert long[:kept].endswith(mark) or mark == "x"


def test_of_a_copy_with_other_spaces_nothing_is_trained_on_as_its_end_begins_elsewhere():
    text = "".join(f"Line {n} of it,   {n * n}.\n\n" for n in range(400))
    held_out, cuts = collect_of_few(iter([Document(text)]), 1)
    [kept] = cuts.values()
    assert kept_length(text, cuts, frozenset(held_out)) == kept_length(text.upper(), cuts, frozenset(held_out)) == kept
    assert kept_length(" ".join(text.split()), cuts, frozenset(held_out)) == 0
    assert kept_length("another text", cuts, frozenset(held_out)) is None


def test_a_source_with_hardly_a_usable_document_is_not_read_for_ever():
    endless = (Document(f"short {n}") for n in count())
    assert not collect(endless, 1000, min_text_length=100)


def test_the_only_text_that_can_be_used_is_never_held_out_as_a_whole(tmp_path):
    """However many documents there are that cannot be used, and wherever it is among them."""
    for number in range(24):
        (tmp_path / f"{number}.txt").write_text(f"short {number}")
    (tmp_path / "essay.txt").write_text("It was a dark and stormy night. " * 20)
    data = {"sources": [{"type": "text", "path": str(tmp_path)}], "min_text_length": 50}
    model = {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "seq_length": 32}
    preset = parse_preset(json.dumps({"name": "essay", "model": model, "data": data}), "test")
    for seed in range(100):
        source = open_source(preset.data.all_sources[0], cache_dir=None, seed=seed)
        [chosen], _, cuts = choose_held_out(preset, [lambda source=source: source], [1.0], 1_000, None)
        assert len(cuts) == len(chosen) == 1
        assert min(cuts.values()) > 500


def test_of_a_few_questions_one_is_held_out_as_a_whole():
    questions = [Document(f"{n} " * 1000, None, (f"question {n}", f"answer {n}")) for n in range(3)]
    held_out, cuts = collect_of_few(iter(questions), 1)
    assert list(held_out.values()) == questions[:1]
    assert not cuts


def rows(number, answer):
    """Five questions about each paragraph, in the order of their files."""
    return [
        Document(f"{n // 5} {n} {answer(n)}", None, (f"Paragraph {n // 5}.", f"Question {n}?", answer(n)))
        for n in range(number)
    ]


def trained_on(documents, held_out):
    chosen = {text_hash(document.text): document for document in held_out}
    held_out, shared, _, _ = without_shared_cells(chosen, documents)
    return [document for document in documents if not reason_to_skip(document, 1, shared | set(held_out))]


def test_what_shares_a_paragraph_or_an_answer_with_held_out_text_is_not_trained_on():
    documents = rows(1000, lambda n: f"Answer {n // 2 % 300}")  # each of 300 is that of three or four questions
    held_out = documents[::40]
    trained = trained_on(documents, held_out)
    for field in (0, 1, 2):
        assert not {document.cells[field] for document in trained} & {document.cells[field] for document in held_out}
    assert len(trained) > 700
    long = Document("word " * 9000, None, held_out[0].cells)
    assert not any(piece in trained_on([*documents, piece], held_out) for piece in long.pieces())


@pytest.mark.parametrize(
    ("paragraphs", "questions", "least"), [(1000, 5, 0.7), (100, 15, 0.7), (50, 20, 0.7), (10, 20, 0.6), (3, 60, 0.6)]
)
def test_no_paragraph_of_a_held_out_question_is_trained_on_however_many_questions_it_has(paragraphs, questions, least):
    passages = [f"Paragraph {p}. " + "It has a length that no category has. " * 3 for p in range(paragraphs)]
    documents = [
        Document(f"{passage} {n}", None, (passage, f"Question {n} of {p}?", f"{n % 7}"))
        for p, passage in enumerate(passages)
        for n in range(questions)
    ]
    chosen = {
        text_hash(document.text): document for document in random.Random(1).sample(documents, len(documents) // 20)
    }
    held_out, shared, _, _ = without_shared_cells(chosen, documents)
    trained = [document for document in documents if not reason_to_skip(document, 1, shared | set(held_out))]
    assert held_out
    assert not {document.cells[0] for document in trained} & {document.cells[0] for document in held_out.values()}
    assert len(trained) >= least * len(documents)


def test_an_instruction_that_most_documents_have_costs_none_of_them():
    told = "Below is an instruction that describes a task. Write a response that completes it."
    documents = [Document(f"{n}", None, (told, f"Question {n}?")) for n in range(1000)]
    assert len(trained_on(documents, documents[::20])) == 950


def test_a_common_value_or_a_category_is_no_reason_to_lose_most_of_a_source():
    for answer in (lambda n: ("yes", "no")[n % 7 == 0], lambda n: f"class {n % 30}", lambda n: "" if n % 3 else f"{n}"):
        documents = rows(1000, answer)
        held_out = documents[::40]
        trained = trained_on(documents, held_out)
        assert len(trained) > 700
        assert not {document.cells[0] for document in trained} & {document.cells[0] for document in held_out}


def chosen_of(tmp_path, **rows_of):
    """(hashes, sources) of datasets of questions and answers, by their labels."""
    for label, rows in rows_of.items():
        (tmp_path / f"{label}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources = [
        {"type": "hf", "dataset": "json", "data_files": f"{tmp_path}/{label}.jsonl", "label": label,
         **({} if "text" in rows[0] else {"fields": ["q", "a"], "format": "{q} {a}"})}
        for label, rows in rows_of.items()
    ]  # fmt: skip
    model = {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "seq_length": 32}
    preset = parse_preset(json.dumps({"name": "x", "model": model, "data": {"sources": sources}}), "test")
    opened = [open_source(spec, cache_dir=None, seed=1) for spec in preset.data.all_sources]
    reads = [lambda source=source: source for source in opened]
    chosen, hashes, _ = choose_held_out(preset, reads, [1.0] * len(opened), 2_000, None)
    return chosen, hashes, opened


def test_what_is_common_in_one_source_is_not_lost_to_it_because_it_is_rare_in_another(tmp_path):
    rare = [{"q": f"question {n}", "a": f"answer {n}"} for n in range(2000)]
    common = [
        {"q": f"other {n}" if n % 10 else "question 3", "a": f"reply {n}" if n % 3 else "Yes."} for n in range(1000)
    ]
    [chosen, _], _, _ = chosen_of(tmp_path, rare=rare, common=common)
    held_out, other = list(chosen.values())[:2]
    rare[int(held_out.cells[0].split()[1])]["a"] = "Yes."
    common[1]["q"] = other.cells[0]
    chosen, hashes, (_, source) = chosen_of(tmp_path, rare=rare, common=common)
    assert "Yes." in {document.cells[1] for document in chosen[0].values()}
    reasons = {document.cells: reason_to_skip(document, 1, hashes) for document, _ in source.documents(0)}
    assert reasons[other.cells[0], "reply 1"], "what is rare in both tells a document"
    lost = sum(reason is not None for reason in reasons.values())
    assert lost <= 1 + len(chosen[1])


def test_of_lines_that_many_documents_are_none_is_held_out(tmp_path):
    texts = [
        f"The same as {n % 23}, said often." if n % 7 < 3 else f"line {n} of them, said once" for n in range(20_000)
    ]
    rows = [{"text": text} for text in texts]
    [chosen], _, _ = chosen_of(tmp_path, lines=rows)
    assert len(chosen) > 100
    assert not [document.text for document in chosen.values() if document.text.startswith("The same")]


def test_a_value_is_compared_within_its_field():
    documents = [Document(f"{n} {n + 1}", None, (f"{n}", f"{n + 1}")) for n in range(100)]
    assert trained_on(documents, documents[50:51]) == documents[:50] + documents[51:]


def test_of_held_out_conversations_the_answers_are_scored_once_and_begin_after_their_questions():
    turns = [
        (Turn("user", f"What follows {n}?"), Turn("assistant", f"{n + 1}"), Turn("user", "And then?"), Turn("assistant", "No."))
        for n in range(40)
    ]  # fmt: skip
    documents = [Document("\n\n".join(turn.text for turn in talk), None, (), talk) for talk in turns]
    tokenizer = bpe.train([document.text for document in documents], 300, bpe.MARKERS)
    template = ChatTemplate(OWN, tokenizer)
    source = pack("talks", documents, tokenizer, 32, template)
    scored = source.rows[:, 1:][source.valid].tolist()
    expected = [token for n in range(40) for token in (*ids(tokenizer, f"{n + 1}"), 4, *ids(tokenizer, "No."), 4, 0)]
    assert scored == expected
    assert source.rows[:, 1:][source.answer].tolist() == [token for token in expected if token]
    windows = source.overlapping(np.arange(len(source.rows)))
    assert sorted(windows.rows[:, 1:][windows.valid].tolist()) == sorted(expected)
    [(_, tokens)] = HeldOut([source], frozenset()).beginnings(1, 4, 32)
    assert tokenizer.decode(tokens, skip_special_tokens=False).endswith("?<|end|><|assistant|>")


def ids(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False).ids
