"""float16 with a scaled loss: the step of float32 within rounding, nothing on numbers that went wrong, exact resume."""

import math
from functools import partial

import pytest
import torch

from configs.errors import UserError
from lm import loss_scale
from lm.checkpoint.file import Snapshot
from lm.learner import Learner
from lm.loss import linear_cross_entropy
from lm.loss_scale import INITIAL, LARGEST, SMALLEST, LossScale
from lm.optim import orthogonalize
from lm.schedule import StepPlan
from lm.train_step import MAX_SKIPPED_IN_A_ROW, TrainStep
from tests.lm.checkpoint.small_checkpoint import make_state
from tests.lm.small_step import ALL_HEADS, ALONE, SEQ_LENGTH, VOCAB, make_step
from tests.lm.test_train_step import assert_same, rows, snapshot, whole
from tests.program import tiny_preset

FLOAT16 = partial(torch.autocast, "cpu", dtype=torch.float16)


def scaled(scale: float = INITIAL, *, half: bool = True, **options) -> TrainStep:
    step = make_step(loss_scale=LossScale(ALONE.device), **({"autocast": FLOAT16} if half else {}), **options)
    step.loss_scale.load(torch.tensor([scale, 0.0]))
    return step


def scale_of(step: TrainStep) -> float:
    return float(step.loss_scale.scale)


def test_scaling_alone_changes_no_bit_with_clipping_accumulation_and_heads():
    """Of float32, since the scale is a power of two."""
    options = {"clip": 0.1, "batch_rows": 2}
    plain, other = make_step(ALL_HEADS, **options), scaled(half=False, aux=ALL_HEADS, **options)
    for seed in range(3):
        results = [step(rows(seed=seed), whole(first_row=8 * seed)) for step in (plain, other)]
        assert results[0] == results[1]
        assert results[0].gradient_norm > 0.1
    assert_same(snapshot(other), snapshot(plain))


def test_gradients_that_float16_cannot_hold_are_those_of_float32():
    plan = StepPlan(0, 8, 3_000_000)  # the mean over so many targets, as if these rows were a part of a large step
    errors = []
    for scale in (SMALLEST, INITIAL):
        step, exact = scaled(scale), make_step()
        for each in (step, exact):
            each.accumulate(rows(), plan)
        step.loss_scale.unscale(step.model.trunk.parameters())
        pairs = zip(step.model.trunk.layers.parameters(), exact.model.trunk.layers.parameters(), strict=True)
        errors.append(max(float((one.grad - other.grad).norm() / other.grad.norm()) for one, other in pairs))
    assert errors[1] < 0.01
    assert errors[0] > 10 * errors[1]


def test_a_model_learns_as_in_float32():
    last = []
    for step in (scaled(aux=ALL_HEADS, clip=1.0), make_step(ALL_HEADS, clip=1.0)):
        results = [step(rows(seed=index % 2), whole(first_row=8 * index)) for index in range(12)]
        last.append(results[-1].loss)
    assert last[1] < results[0].loss - 0.3
    assert last[0] == pytest.approx(last[1], rel=0.03)


def test_an_overflow_changes_nothing_but_the_scale_and_does_not_count_as_a_fault():
    """Many skipped steps in a row, from a scale that is far too large: the run goes on."""
    step = scaled()
    step(rows(), whole())
    step.loss_scale.load(torch.tensor([LARGEST, 0.0]))
    plan = StepPlan(8, 8, 8)  # the sum over all targets, almost: the largest gradients
    before, skipped = snapshot(step), 0
    while (result := step(rows(seed=1), plan)).skipped:
        skipped += 1
        assert math.isfinite(result.loss)
        assert scale_of(step) == LARGEST / 2**skipped
        assert step.skipped_in_a_row == 0
        assert_same(snapshot(step), before)
    assert skipped > MAX_SKIPPED_IN_A_ROW


def infinite_gradient(*inputs: torch.Tensor):
    total, losses_N = linear_cross_entropy(*inputs)
    total.register_hook(lambda gradient: gradient * math.inf)
    return total, losses_N


def test_an_infinite_gradient_at_the_smallest_scale_is_a_fault():
    step = scaled(4.0, loss=infinite_gradient)
    for expected in (2.0, 1.0, *[SMALLEST] * (MAX_SKIPPED_IN_A_ROW - 1)):
        assert step(rows(), whole()).skipped
        assert scale_of(step) == expected
    with pytest.raises(UserError, match="steps in a row were skipped"):
        step(rows(), whole())


@pytest.mark.parametrize("factor", [math.nan, 1e9])
def test_a_loss_that_went_wrong_is_a_fault_and_leaves_the_scale(factor):
    def wrong(*inputs):
        total, losses_N = linear_cross_entropy(*inputs)
        return total * factor, losses_N * factor

    step = scaled(half=False, loss=wrong)
    for _ in range(MAX_SKIPPED_IN_A_ROW - 1):
        assert step(rows(), whole()).skipped
    assert scale_of(step) == INITIAL
    with pytest.raises(UserError):
        step(rows(), whole())


def test_the_scale_grows_after_many_finite_steps_up_to_a_limit(monkeypatch):
    monkeypatch.setattr(loss_scale, "STEPS_TO_GROW", 3)
    step = scaled(LARGEST / 4, half=False)
    seen = []
    for index in range(10):
        step(rows(), whole(first_row=8 * index))
        seen.append(scale_of(step) / LARGEST)
    assert seen == [0.25, 0.25, 0.5, 0.5, 0.5, 1, 1, 1, 1, 1]


def test_small_gradients_are_orthogonalised():
    matrix = torch.randn(1, 32, 16, generator=torch.Generator().manual_seed(0))
    expected = orthogonalize(matrix, torch.float32)
    assert (orthogonalize(matrix * 1e-9, torch.float16) - expected).abs().max() < 0.01


def learner(folder, monkeypatch, dtype=torch.float16) -> Learner:
    monkeypatch.setenv("TORCH_COMPILE_DISABLE", "1")
    monkeypatch.setattr("lm.learner.precision_choice", lambda device: (dtype, "for this test"))
    preset = tiny_preset(folder, model={"seq_length": SEQ_LENGTH})
    return Learner(preset, ALONE, vocab_size=VOCAB, end_of_text=0, tokens_per_step=8 * SEQ_LENGTH)


def test_a_resumed_run_has_the_same_scale_and_weights(tmp_path, monkeypatch):
    """The scale has shrunk, and grows again one step after the resume."""
    monkeypatch.setattr(loss_scale, "STEPS_TO_GROW", 4)

    def train(run: Learner, *steps: int) -> Learner:
        for index in steps:
            run.train_step(rows(seed=index), StepPlan(8 * index, 8, 8 * SEQ_LENGTH))
        return run

    uninterrupted, stopped = (train(learner(tmp_path, monkeypatch), 0) for _ in range(2))
    for run in (uninterrupted, stopped):
        run.train_step.loss_scale.load(torch.tensor([2.0**10, 0.0]))
        train(run, 1, 2, 3)
    saved = Snapshot({**make_state(4), **stopped.state()}).contents()
    resumed = learner(tmp_path, monkeypatch)
    resumed.load_state(saved)
    train(uninterrupted, 4, 5)
    train(resumed, 4, 5)
    assert scale_of(resumed.train_step) == 2.0**11
    assert_same(resumed.state(), uninterrupted.state())


def test_a_run_may_move_between_precisions_but_not_with_a_scale_of_another_kind(tmp_path, monkeypatch):
    half, full = learner(tmp_path, monkeypatch), learner(tmp_path, monkeypatch, torch.float32)
    states = half.state(), full.state()
    assert "loss_scale" not in states[1]
    half.load_state(states[1])
    full.load_state(states[0])
    half.load_state(states[0] | {"loss_scale": torch.tensor([1e30, -1.0])})
    assert half.train_step.loss_scale.state.tolist() == [LARGEST, 0.0]
    for wrong in (7, torch.zeros(3)):
        with pytest.raises(UserError, match="loss_scale does not fit"):
            half.load_state(states[0] | {"loss_scale": wrong})
