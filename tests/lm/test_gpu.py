"""A recorded training step on a real GPU, beside the plain one."""

import numpy as np
import pytest
import torch
from small_step import ALL_HEADS, NUM_ROWS, SEQ_LENGTH, VOCAB, make_step

from lm.distributed import World
from lm.optim import set_learning_rate
from lm.train_step import StepPlan

on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


def train(recorded: bool, num_steps: int = 12, unsound: int = 5) -> tuple[list[float], list, list]:
    """Losses, whether skipped, and the weights after each step."""
    step = make_step(
        ALL_HEADS, world=World(0, 0, 1, torch.device("cuda")), batch_rows=NUM_ROWS // 2, clip=1.0,
        trunk_gradient_scale=lambda progress: max(0.0, 1 - 2 * progress),
        multi_token_weights=lambda progress: [max(0.0, 0.5 - progress)],
    )  # fmt: skip
    if not recorded:
        step._pool = None
    losses, skipped, weights = [], [], []
    for index in range(num_steps):
        set_learning_rate(step.optimizers, 1 - index / num_steps)
        rows = np.random.default_rng(index % 4).integers(VOCAB, size=(NUM_ROWS, SEQ_LENGTH + 1))
        last_rows = NUM_ROWS - 3 * (index == num_steps - 1)  # the last step of a run is a shorter one
        plan = StepPlan(NUM_ROWS * index, last_rows, last_rows * SEQ_LENGTH)
        bounds = step.bounds.clone()
        if index == unsound:
            step.bounds.zero_()
        if index == unsound + 2:  # as when a run begins after its trial, or is taken up again
            step.forget_graphs()
        result = step(rows[:last_rows], plan, index / num_steps)
        step.bounds.copy_(bounds)
        losses.append(result.loss)
        weights.append([parameter.detach().clone() for parameter in step.model.parameters()])
        unchanged = index > 0 and all(map(torch.equal, weights[-2], weights[-1]))
        assert unchanged == result.skipped
        skipped.append(unchanged)
    assert bool(step._graphs) == recorded
    return losses, skipped, weights[-1]


@on_a_gpu
def test_a_recorded_step_does_what_the_plain_one_does():
    losses, skipped, weights = train(recorded=True)
    plain_losses, plain_skipped, plain_weights = train(recorded=False)
    assert skipped == plain_skipped == [index == 5 for index in range(12)]
    assert losses[-1] < losses[0]
    np.testing.assert_allclose(losses, plain_losses, rtol=1e-4)
    for one, other in zip(weights, plain_weights, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-3)


def test_what_cannot_be_recorded_is_launched_as_it_is(monkeypatch):
    def refuse(*_):
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    plan = StepPlan(0, NUM_ROWS, NUM_ROWS * SEQ_LENGTH)
    rows = np.random.default_rng(0).integers(VOCAB, size=(NUM_ROWS, SEQ_LENGTH + 1))
    plain, refused = make_step(ALL_HEADS), make_step(ALL_HEADS)
    monkeypatch.setattr("lm.train_step.Graph", refuse)
    refused.not_recorded, refused._pool = "", "a pool"
    assert refused(rows, plan, 0.0) == plain(rows, plan, 0.0)
    assert refused.not_recorded == "operation not permitted when stream is capturing"
    assert all(map(torch.equal, refused.model.parameters(), plain.model.parameters()))
