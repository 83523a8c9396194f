"""Each head alone: document ends, targets against naive loops, sampled positions, what the options do."""

import math

import pytest
import torch

import aux_heads.policy
from aux_heads.base import HeadInput
from aux_heads.sizes import NUM_VALUE_BINS
from aux_heads.value import HORIZON, MAX_NATS, Value, coming_loss, trailing_loss_of, two_hot_cross_entropy
from tests.aux_heads.small_trunk import (
    HIDDEN_SIZE,
    NUM_ROWS,
    SEQ_LENGTH,
    VOCAB_SIZE,
    generator,
    joint_model,
    run,
    text_batches,
)
from tests.program import ALL_HEADS


def head_input(tokens_BT1, sampled=None, seed=0, **changes) -> HeadInput:
    """Random states and losses over given tokens."""
    rng = generator(seed)
    num_rows, seq_length = tokens_BT1[:, 1:].shape
    fields = {
        "hidden_BTD": torch.randn(num_rows, seq_length, HIDDEN_SIZE, generator=rng),
        "tokens_BT1": tokens_BT1,
        "token_losses_BT": torch.rand(num_rows, seq_length, generator=rng) * 8,
        "valid_BT": torch.ones(num_rows, seq_length, dtype=torch.bool),
        "embedding_VD": torch.randn(VOCAB_SIZE, HIDDEN_SIZE, generator=rng),
        "output_VD": torch.randn(VOCAB_SIZE, HIDDEN_SIZE, generator=rng) * 0.1,
        "sampled": sampled,
        "end_of_text": 0,
    }
    return HeadInput(**(fields | changes))


def all_losses(model, x: HeadInput) -> dict[str, torch.Tensor]:
    fields = (x.hidden_BTD, x.tokens_BT1, x.token_losses_BT, x.valid_BT, x.embedding_VD, x.output_VD, x.sampled)
    return model.heads_forward(*fields)[0]


@pytest.mark.parametrize("document_ends", [True, False])
def test_nothing_after_the_end_of_a_document_matters(document_ends):
    """Positions before the end, some looking across it: what comes after may change a loss only if there is no end."""
    end = 70
    model = joint_model(**ALL_HEADS)
    torch.nn.init.normal_(model.heads["dynamics"].down.weight, std=0.1)
    sampled = model.sample_positions(NUM_ROWS, SEQ_LENGTH, generator())
    sampled["positions"] = torch.cat((torch.arange(20, 35), torch.arange(end - 16, end))).expand(NUM_ROWS, -1)
    sampled["policy_choices"] = torch.tensor([3, 30]).expand(NUM_ROWS, -1)
    sampled["policy_steps"] = torch.tensor([2, 3]).expand(NUM_ROWS, -1)
    sampled["span_anchors"] = torch.tensor([10, end - 4]).expand(NUM_ROWS, -1)
    tokens = torch.randint(1, VOCAB_SIZE, (NUM_ROWS, SEQ_LENGTH + 1), generator=generator(1))
    tokens[:, end] = 0 if document_ends else 5
    x = head_input(tokens, sampled)

    other = head_input(tokens.clone(), sampled, seed=2)
    other_tokens = tokens.clone()
    other_tokens[:, end + 1 :] = other_tokens[:, end + 1 :] % (VOCAB_SIZE - 1) + 1
    for mine, theirs in ((x.hidden_BTD, other.hidden_BTD), (x.token_losses_BT, other.token_losses_BT)):
        theirs[:, :end] = mine[:, :end]
    changed = head_input(other_tokens, sampled, hidden_BTD=other.hidden_BTD, token_losses_BT=other.token_losses_BT)

    before, after = all_losses(model, x), all_losses(model, changed)
    for name, loss in before.items():
        assert torch.equal(loss, after[name]) is document_ends, name
        assert loss > 0, name


def test_targets_and_tables_are_detached():
    """Through dynamics and policy, a state gets a gradient only where it is read, never where it is the target."""
    model = joint_model(enable_dynamics=True, enable_policy=True)
    tokens = torch.ones(NUM_ROWS, SEQ_LENGTH + 1, dtype=torch.long)
    sampled = model.sample_positions(NUM_ROWS, SEQ_LENGTH, generator())
    hidden = torch.randn(NUM_ROWS, SEQ_LENGTH, HIDDEN_SIZE, generator=generator(), requires_grad=True)
    sum(all_losses(model, head_input(tokens, sampled, hidden_BTD=hidden)).values()).backward()
    is_read = torch.zeros(NUM_ROWS, SEQ_LENGTH, dtype=torch.bool).scatter(1, sampled["positions"], True)
    assert torch.equal(hidden.grad.abs().sum(-1) > 0, is_read)


def test_value_target_is_the_mean_of_the_next_losses_in_the_document():
    x = head_input(text_batches(1, seed=3)[0])
    x.valid_BT[:2] = False
    y, counts = coming_loss(x)
    for row in range(NUM_ROWS):
        for t in range(SEQ_LENGTH):
            ahead = range(t, t + HORIZON)
            complete = t + HORIZON <= SEQ_LENGTH and all(x.valid_BT[row, i] for i in ahead)
            complete = complete and all(x.tokens_BT1[row, i + 1] != 0 for i in ahead)
            assert counts[row, t] == complete
            if complete:
                expected = sum(float(x.token_losses_BT[row, i]) for i in ahead) / HORIZON
                assert float(y[row, t]) == pytest.approx(expected, abs=1e-3)
    assert counts.any()
    assert not counts.all()


def test_trailing_baseline_sees_only_its_own_document():
    x = head_input(text_batches(1, seed=3)[0])
    x.valid_BT[:2] = torch.rand(2, SEQ_LENGTH, generator=generator(5)) < 0.5  # as in a conversation
    x.token_losses_BT[~x.valid_BT] = 0.0
    trailing = trailing_loss_of(x)
    overall = x.token_losses_BT[x.valid_BT].mean()
    for row in range(NUM_ROWS):
        past = []
        for t in range(SEQ_LENGTH):
            if x.tokens_BT1[row, t] == 0:
                past = []
            known = [loss for loss in past[-HORIZON:] if loss is not None]
            expected = sum(known) / len(known) if known else overall
            assert float(trailing[row, t]) == pytest.approx(float(expected), abs=1e-3)
            past.append(float(x.token_losses_BT[row, t]) if x.valid_BT[row, t] else None)


def test_value_learns_from_the_loss_of_the_tokens_before_where_it_is_known():
    """The states say nothing here; what comes is what came before."""
    value, generator_ = Value(HIDDEN_SIZE), generator(2)
    optimizer = torch.optim.Adam(value.parameters(), 0.01)
    states, trailing = torch.ones(256, HIDDEN_SIZE), 8 * torch.rand(256, generator=generator_)
    for _ in range(300):
        optimizer.zero_grad()
        two_hot_cross_entropy(value.logits(states, trailing), trailing).mean().backward()
        optimizer.step()
    assert (value.expectation(value.logits(states, trailing)) - trailing).abs().mean() < 0.3
    assert value.logits(states).shape == (256, NUM_VALUE_BINS)


@pytest.mark.parametrize("nats", [0.0, 0.05, 3.21, 9.99, 10.0, 12.0])
def test_best_answer_to_a_two_hot_target_is_the_target(nats):
    target = torch.tensor(nats)
    logits = torch.zeros(NUM_VALUE_BINS, requires_grad=True)
    two_hot_cross_entropy(logits, target).backward()
    two_hot = 1 / NUM_VALUE_BINS - logits.grad  # the gradient of a cross-entropy is softmax minus target
    assert int((two_hot > 1e-6).sum()) <= 2
    centres = torch.linspace(0, MAX_NATS, NUM_VALUE_BINS)
    assert float(two_hot @ centres) == pytest.approx(min(nats, MAX_NATS), abs=1e-4)
    assert float(Value.expectation(two_hot.clamp(min=1e-9).log())) == pytest.approx(min(nats, MAX_NATS), abs=1e-4)


def test_positions_are_a_function_of_the_generator_and_stay_in_the_row():
    model = joint_model(**ALL_HEADS, span_mask_fraction=0.25)
    sampled = model.sample_positions(NUM_ROWS, SEQ_LENGTH, generator(4))
    again, other = (
        model.sample_positions(NUM_ROWS, SEQ_LENGTH, generator(4)),
        model.sample_positions(NUM_ROWS, SEQ_LENGTH, generator(5)),
    )
    for name, indices in sampled.items():
        assert torch.equal(indices, again[name])
        assert not torch.equal(indices, other[name])
    positions, anchors = sampled["positions"], sampled["span_anchors"]
    assert (positions.diff(dim=1) > 0).all()
    assert positions.min() >= 0
    assert positions.max() + 3 < SEQ_LENGTH
    assert positions.shape[1] == pytest.approx(SEQ_LENGTH / 8, abs=1)
    assert sampled["policy_choices"].numel() == pytest.approx(positions.numel() / 2, rel=0.2)
    assert anchors.min() >= 0
    assert anchors.max() + 8 <= SEQ_LENGTH
    assert (anchors.diff(dim=1) >= 8).all()  # spans do not overlap
    assert anchors.numel() * 8 / (NUM_ROWS * SEQ_LENGTH) == pytest.approx(0.25)


def span_loss(tokens, **auxiliary):
    model = joint_model(enable_span_contrastive=True, **auxiliary)
    x = head_input(tokens, model.sample_positions(len(tokens), SEQ_LENGTH, generator()))
    output = model.heads["span_contrastive"](x)
    return output.loss.item(), {name: value.item() for name, value in output.measures.items()}


def test_spans_of_the_same_text_are_not_wrong_answers():
    loss, measures = span_loss(torch.ones(NUM_ROWS, SEQ_LENGTH + 1, dtype=torch.long))
    assert loss == pytest.approx(0, abs=1e-6)
    assert measures["chance"] == pytest.approx(1)


def test_spans_compete_with_at_most_512_others():
    tokens = torch.randint(1, VOCAB_SIZE, (80, SEQ_LENGTH + 1), generator=generator())
    _, measures = span_loss(tokens, span_mask_fraction=0.5)  # 8 spans a row, 640 in all: two groups of 320
    assert measures["chance"] == pytest.approx(1 / 320)
    assert measures["chance_same_document"] == pytest.approx(1 / 8)


def test_spans_alone_in_their_document_say_nothing_of_telling_them_apart():
    tokens = torch.randint(1, VOCAB_SIZE, (80, SEQ_LENGTH + 1), generator=generator())
    _, alone = span_loss(tokens, span_mask_fraction=8 / SEQ_LENGTH)  # one span a row
    assert math.isnan(alone["top1_same_document"])
    assert math.isnan(alone["chance_same_document"])
    assert alone["chance"] == pytest.approx(1 / 80)
    tokens[:40, ::16] = 0  # the first of two groups has one span in each document, the other one eight
    _, measures = span_loss(tokens, span_mask_fraction=0.5)
    assert measures["chance_same_document"] == pytest.approx(1 / 8)


def test_span_options_have_an_effect():
    tokens = text_batches(1)[0]
    default = span_loss(tokens)[0]
    assert span_loss(tokens, span_contrastive_temperature=1.0)[0] < default  # untrained: flatter scores are less wrong
    assert span_loss(tokens, span_l2_normalize=False)[0] != pytest.approx(default, rel=0.01)


def test_the_policy_teaches_the_transition_a_tenth_as_much_as_its_loss_would(monkeypatch):
    def gradient() -> torch.Tensor:
        model = joint_model(enable_policy=True)
        run(model, text_batches(1)[0]).total.backward()
        return model.heads["dynamics"].linear.weight.grad

    as_it_is = gradient()
    monkeypatch.setattr(aux_heads.policy, "GRADIENT_SCALE", 1.0)
    assert as_it_is.norm() > 0
    torch.testing.assert_close(as_it_is, 0.1 * gradient())
