"""Evaluation equals the definition computed naively, however rows are batched or spread over ranks."""

import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lm.evaluate import PIECE, evaluate, improvement

VOCAB, LENGTH, WIDTH = 11, 6, 8
TOKEN_BYTES = np.array([0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9])


class Trunk:
    """Hidden states that depend on the token only; records the batch shapes it was given."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.table = torch.randn(VOCAB, WIDTH, generator=generator)
        self.output = torch.randn(VOCAB, WIDTH, generator=generator).requires_grad_()
        self.shapes = []

    def __call__(self, tokens):
        assert not torch.is_grad_enabled()
        self.shapes.append(tuple(tokens.shape))
        return self.table[tokens]


class Rows(NamedTuple):
    label: str
    rows: np.ndarray
    valid: np.ndarray
    answer: np.ndarray


@pytest.fixture
def held_out():
    """Five rows of prose, the last without any target that counts, none of a source too small to hold anything out,
    three of questions and answers."""
    rng = np.random.default_rng(0)
    sources = []
    for label, count, answers in (("wiki", 5, 0.0), ("empty", 0, 0.0), ("questions", 3, 0.5)):
        rows = rng.integers(0, VOCAB, (count, LENGTH + 1)).astype(np.uint16)
        valid, answer = rng.random((count, LENGTH)) < 0.8, rng.random((count, LENGTH)) < answers
        valid[4:] = False
        sources.append(Rows(label, rows, valid, answer))
    return sources


def run(trunk, held_out, **options):
    return evaluate(trunk, trunk.output, held_out, **{"token_bytes": TOKEN_BYTES, "batch_rows": 3} | options)


class Scored(NamedTuple):
    row: int
    token: int
    is_answer: bool
    loss: float


def naive(trunk, source) -> list[Scored]:
    """Every target that counts, from one forward pass and textbook cross-entropy a row."""
    scored = []
    for i, row in enumerate(torch.from_numpy(source.rows.astype(np.int64))):
        losses = F.cross_entropy(trunk.table[row[:-1]] @ trunk.output.detach().T, row[1:], reduction="none").tolist()
        targets = zip(row[1:].tolist(), source.valid[i], source.answer[i], losses, strict=True)
        scored += [Scored(i, token, bool(answer), loss) for token, valid, answer, loss in targets if valid]
    return scored


def mean_loss(scored):
    return sum(target.loss for target in scored) / len(scored)


def naive_bits_per_byte(scored):
    nats = sum(target.loss for target in scored if TOKEN_BYTES[target.token])
    return nats / math.log(2) / sum(TOKEN_BYTES[target.token] for target in scored)


def test_equals_the_naive_computation(held_out):
    trunk = Trunk()
    evaluation = run(trunk, held_out)
    wiki, _, questions = [naive(trunk, source) for source in held_out]
    everything = wiki + questions
    assert evaluation.loss == pytest.approx(mean_loss(everything), rel=1e-5)
    assert evaluation.bits_per_byte == pytest.approx(naive_bits_per_byte(everything), rel=1e-5)
    assert evaluation.tokens == len(everything)
    assert list(evaluation.per_source) == ["wiki", "questions"]
    for measured, own in zip(evaluation.per_source.values(), (wiki, questions), strict=True):
        assert measured.loss == pytest.approx(mean_loss(own), rel=1e-5)
        assert measured.bits_per_byte == pytest.approx(naive_bits_per_byte(own), rel=1e-5)
        assert measured.tokens == len(own)
    answers = [target for target in questions if target.is_answer]
    assert 0 < len(answers) < len(questions)
    assert evaluation.per_source["questions"].answer_loss == pytest.approx(mean_loss(answers), rel=1e-5)
    answer_bits = evaluation.per_source["questions"].answer_bits_per_byte
    assert answer_bits == pytest.approx(naive_bits_per_byte(answers), rel=1e-5)
    assert "answer_loss" not in evaluation.to_json()["per_source"]["wiki"]
    assert trunk.shapes == [(3, LENGTH)] * 3  # one shape, the last batch padded: a compiled trunk compiles once


def test_watched_sources_have_an_entry_and_do_not_count_in_the_totals(held_out):
    trunk = Trunk()
    everything, wiki_alone = run(trunk, held_out), run(trunk, held_out[:1])
    evaluation = run(trunk, held_out, watched=["questions"])
    assert evaluation.per_source == everything.per_source
    assert evaluation.tokens == wiki_alone.tokens < everything.tokens
    assert evaluation.bits_per_byte == pytest.approx(wiki_alone.bits_per_byte)
    assert evaluation.loss == pytest.approx(wiki_alone.loss)


def test_a_look_at_watched_sources_finds_nothing_valid(held_out):
    """So the heads are measured on what they are trained on."""
    observed = []
    for watched in ((), ("questions",)):
        seen = {}
        run(
            Trunk(),
            held_out,
            watched=watched,
            observe=lambda tokens, valid, hidden, losses, seen=seen: seen.update(
                (tuple(row.tolist()), flags.tolist()) for row, flags in zip(tokens, valid, strict=True)
            ),
        )
        observed.append(seen)
    rows = {source.label: [tuple(row.tolist()) for row in source.rows] for source in held_out}
    assert all(observed[1][row] == observed[0][row] for row in rows["wiki"])
    assert not any(any(observed[1][row]) for row in rows["questions"])
    assert all(any(observed[0][row]) for row in rows["questions"])


def test_a_look_sees_every_row_once_with_its_losses(held_out):
    trunk, seen = Trunk(), []

    def observe(tokens, valid, hidden, losses):
        assert torch.equal(hidden, trunk.table[tokens[:, :-1]])
        seen.extend((row.tolist(), float(loss)) for row, loss in zip(tokens, losses.sum(1), strict=True) if row.any())

    run(trunk, held_out, observe=observe)
    expected = [
        (row.tolist(), sum(target.loss for target in naive(trunk, source) if target.row == i))
        for source in held_out
        for i, row in enumerate(source.rows)
    ]
    assert [row for row, _ in sorted(seen)] == [row for row, _ in sorted(expected)]
    assert [loss for _, loss in sorted(seen)] == pytest.approx([loss for _, loss in sorted(expected)], abs=1e-4)
    assert [row for row, _ in seen] != [row for row, _ in expected]  # sources are mixed


def test_a_uniform_model_has_known_bits_per_byte(held_out):
    """Every token costs log2(V) bits; tokens of two bytes each make it log2(V) / 2 bits a byte, without error."""
    trunk = Trunk()
    trunk.output = torch.zeros(VOCAB, WIDTH)
    evaluation = run(trunk, held_out, token_bytes=np.full(VOCAB, 2))
    assert evaluation.loss == pytest.approx(math.log(VOCAB), rel=1e-6)
    assert evaluation.bits_per_byte == pytest.approx(math.log2(VOCAB) / 2, rel=1e-6)
    assert evaluation.per_source["wiki"].stderr == pytest.approx(0, abs=1e-6)


def test_stderr_is_that_of_the_ratio_over_rows(held_out):
    trunk = Trunk()
    measured = run(trunk, held_out).per_source["wiki"]
    nats, size = np.zeros(5), np.zeros(5)
    for target in naive(trunk, held_out[0]):
        nats[target.row] += target.loss * (TOKEN_BYTES[target.token] > 0)
        size[target.row] += TOKEN_BYTES[target.token]
    nats, size = nats[size > 0], size[size > 0]
    residuals = nats / math.log(2) - measured.bits_per_byte * size
    expected = residuals.std(ddof=1) * math.sqrt(len(size)) / size.sum()
    assert measured.stderr == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("world_size", [2, 3, 8])
def test_shards_add_up_to_the_whole_and_a_rank_may_have_no_rows(held_out, world_size):
    trunk = Trunk()
    whole = run(trunk, held_out)
    sums = []

    def collect(own):
        sums.append(own)
        return own + 1  # what the other ranks would add; here it reads as "one of them stopped", which ends the call

    for rank in range(1, world_size):
        run(trunk, held_out, rank=rank, world_size=world_size, reduce=collect)
    total = run(trunk, held_out, world_size=world_size, reduce=lambda own: own + sum(sums))
    assert total.tokens == whole.tokens
    assert total.loss == pytest.approx(whole.loss, rel=1e-9)
    for label, source in whole.per_source.items():
        assert total.per_source[label].bits_per_byte == pytest.approx(source.bits_per_byte, rel=1e-9)
        assert total.per_source[label].stderr == pytest.approx(source.stderr, rel=1e-6)


def test_stopping_on_one_rank_stops_all_with_one_collective(held_out):
    trunk = Trunk()
    calls = []
    polls = iter([False, True])
    assert run(trunk, held_out, should_stop=lambda: next(polls), reduce=lambda own: calls.append(own) or own) is None
    assert len(calls) == 1
    assert len(trunk.shapes) == 1
    other_rank_stopped = calls[0]
    assert run(trunk, held_out, reduce=lambda own: own + other_rank_stopped) is None


def test_an_improvement_has_the_error_of_the_difference_and_not_of_the_losses():
    rng = np.random.default_rng(3)
    rows = rng.integers(0, VOCAB, (9, 2 * PIECE + 1))
    valid = rng.random((9, 2 * PIECE)) < 0.9
    hard = rng.exponential(3.0, valid.shape)  # some text is hard for both
    gains = rng.normal(0.1, 0.2, valid.shape)
    gained, stderr = improvement(hard + gains, hard, rows, valid, TOKEN_BYTES)
    num_bytes = TOKEN_BYTES[rows[:, 1:]] * valid
    nats, size = gains * (num_bytes > 0), num_bytes
    assert gained == pytest.approx(nats.sum() / size.sum() / math.log(2))
    pieces = nats.reshape(-1, PIECE).sum(1), size.reshape(-1, PIECE).sum(1)  # of half a row
    residuals = pieces[0] - nats.sum() / size.sum() * pieces[1]
    assert stderr == pytest.approx(math.sqrt(18 / 17 * (residuals**2).sum()) / size.sum() / math.log(2))
    assert stderr < 0.2 * gained  # of the losses themselves it would be fifteen times as much
    # A single row still tells; less than two pieces do not.
    assert improvement((hard + gains)[:1], hard[:1], rows[:1], valid[:1], TOKEN_BYTES)[1] < math.inf
    one = improvement((hard + gains)[:1, :20], hard[:1, :20], rows[:1, :21], valid[:1, :20], TOKEN_BYTES)
    assert one[1] == math.inf
