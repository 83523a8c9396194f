"""Two processes under a real torchrun, numbers that go wrong on one of them only: both skip the step, nothing changes.

One long training with all heads: at 20 random steps the last rank's loss is NaN, or its gradient infinite, or its loss
a billion times too large. Then five such steps in a row, and a stop that only one rank was asked for.
"""

import copy
import math
import random

import numpy as np
import pytest
import torch

from configs.errors import UserError
from lm.loss import linear_cross_entropy
from lm.loss_scale import INITIAL, LossScale
from lm.runtime.distributed import World
from lm.schedule import StepPlan
from lm.train_step import MAX_SKIPPED_IN_A_ROW
from tests.lm import two_ranks
from tests.lm.small_step import ALL_HEADS, SEQ_LENGTH, VOCAB, make_step

NUM_STEPS, NUM_BAD = 120, 20
KINDS = ("NaN loss", "infinite gradient", "outlier of 1e9")


def bad_steps() -> dict[int, str]:
    """Never five in a row, which would end the run."""
    rng = random.Random(7)
    return {step: rng.choice(KINDS) for step in sorted(rng.sample(range(1, NUM_STEPS), NUM_BAD))}


class Poisoned:
    """The loss, made wrong in the way `kind` says in the second of a step's two micro-batches."""

    def __init__(self):
        self.kind, self.calls = None, 0

    def __call__(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        total, losses_N = linear_cross_entropy(*inputs)
        self.calls += 1
        if self.kind is None or self.calls % 2:
            return total, losses_N
        if self.kind == "infinite gradient":
            total.register_hook(lambda gradient: gradient * math.inf)
            return total, losses_N
        return total * (math.nan if self.kind == "NaN loss" else 1e9), losses_N


def snapshot(step) -> list[torch.Tensor]:
    """Weights and moments, as they are now."""
    moments = [value for optimizer in step.optimizers for state in optimizer.state.values() for value in state.values()]
    return copy.deepcopy([*step.model.state_dict().values(), *moments])


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return len(one) == len(other) and all(map(torch.equal, one, other))


def everything(world: World) -> dict:
    poison = Poisoned()
    step = make_step(ALL_HEADS, world=world, batch_rows=2, clip=1.0, loss=poison)
    for optimizer in step.optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    last = world.rank == world.size - 1

    def train(index: int, kind: str | None, **how):
        poison.kind = kind if last else None
        rows = np.random.default_rng(index % 10).integers(VOCAB, size=(8, SEQ_LENGTH + 1))
        return step(rows, StepPlan(8 * index, 8, 8 * SEQ_LENGTH), **how)

    bad, skipped, unchanged, losses = bad_steps(), [], [], []
    for index in range(NUM_STEPS):
        before = snapshot(step)
        result = train(index, bad.get(index))
        if result.skipped:
            skipped.append(index)
        else:
            losses.append(result.loss)
        if same(before, snapshot(step)):
            unchanged.append(index)
    after = snapshot(step)
    alone_asked = train(NUM_STEPS, None, should_stop=lambda: last)
    given_up = alone_asked is None and same(after, snapshot(step))
    said = ""
    try:
        for index in range(NUM_STEPS, NUM_STEPS + MAX_SKIPPED_IN_A_ROW):
            train(index, KINDS[index % 3])
    except UserError as error:
        said = f"{index - NUM_STEPS}: {error}"
    scaled = make_step(ALL_HEADS, world=world, batch_rows=2, clip=1.0, loss=poison, loss_scale=LossScale(world.device))
    scales = []
    for index in range(4):
        poison.kind = "infinite gradient" if last and index == 1 else None
        rows = np.random.default_rng(index).integers(VOCAB, size=(8, SEQ_LENGTH + 1))
        scaled(rows, StepPlan(8 * index, 8, 8 * SEQ_LENGTH))
        scales.append(float(scaled.loss_scale.scale) / INITIAL)
    return {
        "scales": scales, "scaled": snapshot(scaled),
        "skipped": skipped, "unchanged": unchanged, "losses": losses, "given up": given_up,
        "said": said, "spoiled": not same(after, snapshot(step)), "weights": after,
    }  # fmt: skip


if __name__ == "__main__":
    two_ranks.leave(everything)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    return two_ranks.run(__file__, tmp_path_factory.mktemp("ranks"))


@pytest.mark.slow
def test_all_ranks_skip_what_went_wrong_on_one_and_nothing_else(ranks):
    bad = bad_steps()
    print(f"\n{len(bad)} of {NUM_STEPS} steps: {bad}")
    assert set(bad.values()) == set(KINDS)
    for seen in ranks:
        assert seen["skipped"] == list(bad)
        assert seen["unchanged"] == list(bad)  # bitwise, weights and moments; every other step did change them
    assert same(ranks[0]["weights"], ranks[1]["weights"])


@pytest.mark.slow
def test_an_overflow_on_one_rank_halves_the_scale_of_the_loss_on_all(ranks):
    assert [seen["scales"] for seen in ranks] == [[1, 0.5, 0.5, 0.5]] * 2
    assert same(ranks[0]["scaled"], ranks[1]["scaled"])


@pytest.mark.slow
def test_the_model_goes_on_learning(ranks):
    losses = ranks[0]["losses"]
    print(f"\nloss {losses[0]:.2f} -> {losses[-1]:.2f} over {len(losses)} sound steps")
    assert losses == ranks[1]["losses"]
    assert losses[-1] < losses[0] - 0.5


@pytest.mark.slow
def test_five_in_a_row_end_the_run_on_all_ranks_with_advice(ranks):
    for seen in ranks:
        assert seen["said"].startswith("4: 5 steps in a row were skipped")
        assert "train.matrix_learning_rate" in seen["said"]
        assert not seen["spoiled"]


@pytest.mark.slow
def test_a_stop_that_one_rank_heard_of_is_everybodys(ranks):
    assert [seen["given up"] for seen in ranks] == [True, True]
