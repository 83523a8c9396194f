import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import tokenizer as bpe
from data.packing import Packer, chain_digest, row_dtype
from data.words import WordCounter

pytestmark = pytest.mark.core

END, T = 0, 8
documents = st.lists(st.tuples(st.lists(st.integers(1, 65_535), max_size=40), st.integers(0, 3)), max_size=30)


def stream_of(docs):
    tokens = [token for ids, _ in docs for token in (END, *ids)]
    source = [number for ids, number in docs for _ in range(len(ids) + 1)]
    return tokens, source


def resumed(packer):
    """One that goes on from the state of another, as after an interruption."""
    other = Packer(packer.dtype, END)
    other.load_state(json.loads(json.dumps(packer.state())))
    return other


@given(documents, st.data())
def test_rows_are_the_stream_without_gap_or_loss_however_often_it_is_interrupted(docs, data):
    dtype = row_dtype(T, 2**16)
    packer, rows = Packer(dtype, END), []
    for ids, source in docs:
        packer.add(np.array(ids, dtype=np.uint32), source)
        if data.draw(st.booleans()):
            rows.append(packer.take())
            packer = resumed(packer)
    rows = np.concatenate([*rows, packer.take()])
    tokens, source = stream_of(docs)
    assert len(rows) == packer.num_rows == max(0, len(tokens) - 1) // T
    assert rows["tokens"][:, 1:].ravel().tolist() == tokens[1 : len(rows) * T + 1]  # each predicted exactly once
    assert rows["source"][:, 1:].ravel().tolist() == source[1 : len(rows) * T + 1]
    assert rows["tokens"][1:, 0].tolist() == rows["tokens"][:-1, -1].tolist()
    assert packer.state()["tokens"] == tokens[len(rows) * T :]


@given(documents, st.data())
def test_what_the_loss_counts_goes_with_its_tokens_however_often_it_is_interrupted(docs, data):
    dtype = row_dtype(T, 2**16, loss_mask=True)
    packer, rows, expected = Packer(dtype, END), [], []
    for ids, source in docs:
        loss_mask = data.draw(st.one_of(st.none(), st.lists(st.booleans(), min_size=len(ids), max_size=len(ids))))
        packer.add(
            np.array(ids, dtype=np.uint32), source, None if loss_mask is None else np.array(loss_mask, dtype=bool)
        )
        expected += [True, *([True] * len(ids) if loss_mask is None else loss_mask)]
        if data.draw(st.booleans()):
            rows.append(packer.take())
            packer = resumed(packer)
    rows = np.concatenate([*rows, packer.take()])
    assert rows["loss_mask"][:, 1:].ravel().tolist() == expected[1 : len(rows) * T + 1]
    assert rows["tokens"][:, 1:].ravel().tolist() == stream_of(docs)[0][1 : len(rows) * T + 1]


@given(documents, st.integers(0, 60), st.booleans())
def test_a_cut_leaves_so_many_rows_and_what_follows_begins_the_next(docs, num_rows, are_taken):
    packer, docs = Packer(row_dtype(T, 2**16), END), [([7] * 30, 0), *docs]
    for ids, number in docs:
        packer.add(np.array(ids, dtype=np.uint32), number)
    num_rows, (tokens, source) = min(num_rows, packer.num_rows), stream_of(docs)
    taken = packer.take() if are_taken else np.empty(0, packer.dtype)
    kept = max(num_rows, len(taken)) * T + 1
    assert packer.cut(num_rows).tolist() == source[kept:]
    packer.add(np.arange(1, 2 * T), 9)
    rows = np.concatenate([taken, packer.take()])
    assert rows["tokens"][:, 1:].ravel()[: kept - 1].tolist() == tokens[1:kept]
    assert rows["tokens"][kept // T, 1:].tolist() == [END, *range(1, T)]
    assert rows["source"][kept // T, 1:].tolist() == [9] * T


def test_a_document_of_a_million_tokens_flows_through():
    packer = Packer(row_dtype(256, 1000), END)
    packer.add(np.arange(1_200_000) % 999 + 1, 2)
    assert packer.waiting == packer.num_rows == 1_200_000 // 256
    rows = packer.take()
    assert len(rows) == 1_200_000 // 256
    assert packer.waiting == 0
    assert rows["tokens"][0, :3].tolist() == [END, 1, 2]


@pytest.mark.parametrize(("vocab_size", "expected"), [(2**16, np.uint16), (2**16 + 1, np.uint32)])
def test_every_token_id_fits_its_type(vocab_size, expected):
    packer = Packer(row_dtype(2, vocab_size), END)
    packer.add(np.array([vocab_size - 1, vocab_size - 1], dtype=np.uint32), 255)
    rows = packer.take()
    assert rows["tokens"].dtype == expected
    assert rows["tokens"][0].tolist() == [END, vocab_size - 1, vocab_size - 1]
    assert rows["source"][0].tolist() == [255, 255, 255]


def test_the_digest_of_the_text_seen_depends_on_tokens_and_order_and_not_on_steps():
    rows = np.arange(8 * 5).reshape(8, 5)
    digest = chain_digest("", rows, 30)
    assert chain_digest(chain_digest("", rows[:3], 12), rows[3:], 18) == digest
    assert chain_digest("", rows[[1, 0, *range(2, 8)]], 30) != digest
    assert chain_digest("", rows, 29) != digest
    rows[7, 3] += 1  # behind the 30th target
    assert chain_digest("", rows, 30) == digest


@pytest.mark.parametrize("size", [300, 600])
def test_rows_have_the_words_of_their_text_however_they_are_cut(size):
    documents = ["one  two\n\nthree", "\tfour ", "five", "é\u00a0six seven\r\n", "eight-nine, 10"] * 7
    tokenizer = bpe.train(documents * 3, size)
    packer = Packer(row_dtype(8, size), bpe.end_of_text(tokenizer))
    for ids in bpe.encode(tokenizer, documents):
        packer.add(ids, 0)
    packer.add(np.full(8, packer.end_of_text), 0)  # fills the last row
    rows = packer.take()["tokens"]
    count = WordCounter(tokenizer, size)
    words = sum(len(re.findall(r"[^\t\n\v\f\r ]+", text)) for text in documents)
    assert count(rows, rows[:, 1:].size) == sum(count(row[None], 8) for row in rows) == words
    parts = [count(rows, tokens) for tokens in range(rows[:, 1:].size + 1)]
    assert parts[0] == 0
    assert set(np.diff(parts)) == {0, 1}  # a word counts with its first token
