"""Every target once, the exact gradient however a step is cut up, and no step on numbers that went wrong."""

import copy
import math
from itertools import chain, repeat
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.errors import UserError
from lm.loss import IGNORE, linear_cross_entropy
from lm.schedule import StepPlan, rows_of_step
from lm.train_step import MAX_SKIPPED_IN_A_ROW, TrainStep, micro_batches, rows_of_rank
from tests.lm.small_step import ALL_HEADS, ALONE, NUM_ROWS, SEQ_LENGTH, VOCAB, make_step

CPU = torch.device("cpu")


# ---- the plan ---------------------------------------------------------------------------------------------------


@given(
    batch_rows=st.integers(1, 5),
    seq_length=st.integers(1, 9),
    accumulation=st.integers(1, 4),
    world_size=st.integers(1, 4),
    token_budget=st.integers(1, 700),
)
@settings(max_examples=60)
def test_a_run_learns_every_token_once_in_order_and_ends_at_its_budget(
    batch_rows, seq_length, accumulation, world_size, token_budget
):
    """Token i of this stream is the number i, so the targets of a whole run must be 1, 2, ... token_budget."""
    seen, targets = 0, []
    while seen < token_budget:
        plan = rows_of_step(seen, token_budget, batch_rows * accumulation * world_size, seq_length)
        assert plan.first_row * seq_length == seen
        stream = np.arange(plan.num_rows)[:, None] * seq_length + np.arange(seq_length + 1) + seen
        for rank in range(world_size):
            place = SimpleNamespace(rank=rank, size=world_size, device=CPU)
            batches = list(micro_batches(stream, plan, place, batch_rows))
            assert 1 <= len(batches) <= accumulation
            for batch in batches:
                assert batch.tokens_BT1.shape == (batch_rows, seq_length + 1)
                assert batch.targets_BT.shape == (batch_rows, seq_length)
                valid = batch.targets_BT != IGNORE
                assert torch.equal(batch.targets_BT[valid], batch.tokens_BT1[:, 1:][valid])
                assert not valid.any() or batch.tokens_BT1[0, 0] == batch.first_row * seq_length
                targets += batch.targets_BT[valid].tolist()
        seen += plan.num_tokens
    assert seen == token_budget
    assert targets == list(range(1, token_budget + 1))


@given(num_rows=st.integers(0, 50), world_size=st.integers(1, 8))
def test_ranks_share_rows_evenly_and_in_order(num_rows, world_size):
    parts = [rows_of_rank(num_rows, rank, world_size) for rank in range(world_size)]
    assert [row for part in parts for row in range(num_rows)[part]] == list(range(num_rows))
    sizes = [part.stop - part.start for part in parts]
    assert max(sizes) - min(sizes) <= 1


def test_a_rank_without_rows_takes_part_with_a_masked_micro_batch():
    plan = StepPlan(first_row=7, num_rows=1, num_tokens=3)
    [batch] = micro_batches(np.ones((1, 6), int), plan, SimpleNamespace(rank=0, size=2, device=CPU), 4)
    assert batch.tokens_BT1.shape == (4, 6)
    assert torch.all(batch.targets_BT == IGNORE)


def test_a_step_has_all_its_numbers_on_the_device_of_the_model():
    """On "meta", which takes tensors from a CPU as Apple's GPUs do."""
    meta, plan = torch.device("meta"), StepPlan(first_row=0, num_rows=2, num_tokens=10)
    [batch] = micro_batches(np.ones((2, 6), int), plan, SimpleNamespace(rank=0, size=1, device=meta), 2)
    step = make_step(ALL_HEADS)
    step.world = SimpleNamespace(rank=0, size=1, device=meta)
    assert {batch.tokens_BT1.device, batch.targets_BT.device, step.numbers(0.5).device} == {meta}


# ---- gradients --------------------------------------------------------------------------------------------------


class Poisoned:
    """The loss times the next of `factors`: one number for each micro-batch."""

    def __init__(self, *factors: float):
        self.factors = chain(factors, repeat(1.0))

    def __call__(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        total, losses_N = linear_cross_entropy(*inputs)
        return total * next(self.factors), losses_N


def rows(num_rows: int = NUM_ROWS, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(VOCAB, size=(num_rows, SEQ_LENGTH + 1))


def whole(num_rows: int = NUM_ROWS, first_row: int = 0) -> StepPlan:
    return StepPlan(first_row, num_rows, num_rows * SEQ_LENGTH)


def snapshot(step: TrainStep) -> dict:
    """Everything a step may change: parameters and optimizer state."""
    return copy.deepcopy({"model": step.model.state_dict(), "optimizers": [o.state_dict() for o in step.optimizers]})


def assert_same(actual, expected) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@pytest.mark.parametrize("num_tokens", [8 * SEQ_LENGTH, 7 * SEQ_LENGTH + 5], ids=["whole", "ends within a row"])
@pytest.mark.parametrize("batch_rows", [8, 4, 3, 1])
def test_gradients_are_those_of_one_batch_however_it_is_cut(batch_rows, num_tokens):
    """8, 4 and 1 divide the step's rows; 3 leaves a micro-batch that is filled up with masked rows."""
    step, tokens = make_step(batch_rows=batch_rows), rows()
    trunk = step.model.trunk
    logits = trunk(torch.from_numpy(tokens[:, :-1])) @ trunk.output.weight.T
    losses = F.cross_entropy(logits.flatten(0, 1), torch.from_numpy(tokens[:, 1:]).flatten(), reduction="none")
    reference = losses[:num_tokens].mean()
    expected = torch.autograd.grad(reference, list(trunk.parameters()))
    loss_sum, _ = step.accumulate(tokens, StepPlan(0, 8, num_tokens))
    assert loss_sum.item() / num_tokens == pytest.approx(reference.item(), rel=1e-6)
    for (name, parameter), grad in zip(trunk.named_parameters(), expected, strict=True):
        assert (parameter.grad - grad).norm() <= 1e-6 * grad.norm(), name


def test_tokens_further_ahead_are_trained_on_as_much_as_the_plan_says_and_not_reported():
    step, tokens = make_step(), rows()
    trunk = step.model.trunk
    logits = (trunk(torch.from_numpy(tokens[:, :-1])) @ trunk.output.weight.T).transpose(1, 2)
    targets = torch.from_numpy(tokens[:, 1:])
    one, two, three = (
        F.cross_entropy(logits[:, :, : SEQ_LENGTH - gap], targets[:, gap:], reduction="sum") for gap in range(3)
    )
    expected = torch.autograd.grad((one + 0.75 * two + 0.25 * three) / tokens[:, 1:].size, list(trunk.parameters()))
    loss_sum, _ = step.accumulate(tokens, whole()._replace(multi_token_weights=(0.75, 0.25)))
    assert loss_sum.item() == pytest.approx(one.item(), rel=1e-6)
    for (name, parameter), grad in zip(trunk.named_parameters(), expected, strict=True):
        assert (parameter.grad - grad).norm() <= 1e-5 * grad.norm(), name


def some_loss_mask(num_rows: int = NUM_ROWS) -> np.ndarray:
    """A third of the tokens, and none in the first row."""
    loss_mask = np.random.default_rng(4).random((num_rows, SEQ_LENGTH + 1)) < 0.33
    loss_mask[0] = False
    return loss_mask


@pytest.mark.parametrize("batch_rows", [8, 3])
def test_only_what_is_learnt_is_a_target_and_every_target_of_a_run_weighs_the_same(batch_rows):
    """In conversations: the gradient is divided by all tokens of the step, the loss shown by its targets."""
    step, tokens, loss_mask = make_step(batch_rows=batch_rows), rows(), some_loss_mask()
    num_tokens = 7 * SEQ_LENGTH + 5
    counted = torch.from_numpy(loss_mask[:, 1:]).flatten() & (torch.arange(8 * SEQ_LENGTH) < num_tokens)
    trunk = step.model.trunk
    logits = (trunk(torch.from_numpy(tokens[:, :-1])) @ trunk.output.weight.T).transpose(1, 2)
    targets = torch.where(counted.view(8, SEQ_LENGTH), torch.from_numpy(tokens[:, 1:]), IGNORE)
    one, two = (
        F.cross_entropy(logits[:, :, : SEQ_LENGTH - gap], targets[:, gap:], reduction="sum") for gap in range(2)
    )
    expected = torch.autograd.grad((one + 0.75 * two) / num_tokens, list(trunk.parameters()))
    plan = StepPlan(0, 8, num_tokens, multi_token_weights=(0.75,))
    loss_sum, _ = step.accumulate(tokens, plan, loss_mask=loss_mask)
    assert loss_sum.item() == pytest.approx(one.item(), rel=1e-6)
    for (name, parameter), grad in zip(trunk.named_parameters(), expected, strict=True):
        assert (parameter.grad - grad).norm() <= 1e-5 * grad.norm(), name
    step.clear()
    assert step(tokens, plan, loss_mask=loss_mask).loss == pytest.approx(one.item() / int(counted.sum()), rel=1e-6)


def test_what_is_not_learnt_changes_nothing_with_every_head_on():
    """Neither the targets that are not learnt nor their losses: any head would be led astray by losses of 0."""
    step, tokens = make_step(ALL_HEADS), rows()
    nothing = np.zeros((NUM_ROWS, SEQ_LENGTH + 1), dtype=bool)
    before = snapshot(step)["model"]
    result = step(tokens, whole()._replace(multi_token_weights=(0.5,)), loss_mask=nothing)
    assert (result.loss, result.gradient_norm, result.skipped) == (0.0, 0.0, False)
    assert {value for name, value in result.heads.items() if name.endswith("/loss")} == {0.0}
    assert not [name for name in result.heads if not name.endswith("/loss")]
    assert before.keys() == snapshot(step)["model"].keys()
    everything = make_step(ALL_HEADS)(tokens, whole(), loss_mask=~nothing)
    assert everything == make_step(ALL_HEADS)(tokens, whole())


def test_a_masked_micro_batch_changes_nothing_with_every_head_on():
    """What a rank without rows adds to the sum of gradients."""
    step = make_step(ALL_HEADS)
    step.world = SimpleNamespace(rank=0, size=2, device=CPU, no_sync=ALONE.no_sync, any=bool)
    loss_sum, measured = step.accumulate(rows(1), whole(1))
    assert loss_sum == 0
    assert all(torch.all(parameter.grad == 0) for parameter in step.model.parameters())
    assert {float(value) for name, value in measured.items() if name.endswith("/loss")} == {0.0}


def test_result_reports_the_mean_loss_and_the_norm_before_clipping():
    results = [make_step(clip=clip)(rows(), whole()) for clip in (1e9, 1e-3)]
    assert results[0] == results[1]
    assert results[0].loss == pytest.approx(math.log(VOCAB), rel=0.5)
    assert results[0].gradient_norm > 1e-3
    assert not results[0].skipped


def test_clipping_bounds_the_gradient_that_optimizers_see():
    step, seen = make_step(clip=1e-3), []
    step.optimizers[0].register_step_pre_hook(
        lambda *_: seen.append(torch.stack([p.grad.norm() for p in step.model.trunk.parameters()]).norm().item())
    )
    step(rows(), whole())
    assert seen == [pytest.approx(1e-3, rel=1e-3)]


def test_heads_with_huge_gradients_do_not_shrink_the_trunks_step():
    plain, headed = make_step(clip=0.1), make_step(ALL_HEADS, clip=0.1)
    headed.model.weights = dict.fromkeys(headed.model.weights, 1e6)
    for step in (plain, headed):
        step(rows(), whole())
    assert_same(headed.model.trunk.state_dict(), plain.model.trunk.state_dict())


# ---- numbers that went wrong ------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("position", [0, 1, 3], ids=["first", "second", "last"])
def test_a_loss_that_is_not_finite_changes_nothing_and_is_reported(bad, position):
    """The first step is sound, so there are momenta to spoil; the second has one bad micro-batch among four."""
    step = make_step(batch_rows=2, loss=Poisoned(*[1.0] * (4 + position), bad))
    assert not step(rows(), whole()).skipped
    before = snapshot(step)
    assert step(rows(seed=1), whole(first_row=8)).skipped
    assert_same(snapshot(step), before)
    assert all(parameter.grad is None for parameter in step.model.parameters())
    result = step(rows(seed=2), whole(first_row=16))
    assert not result.skipped
    assert math.isfinite(result.loss)
    assert not torch.equal(step.model.trunk.embed.weight, before["model"]["trunk.embed.weight"])


def test_a_head_that_is_not_finite_skips_the_step_too():
    step = make_step(ALL_HEADS)
    step(rows(), whole())
    before = snapshot(step)
    step.model.weights["value"] = math.nan
    assert step(rows(seed=1), whole(first_row=8)).skipped
    assert_same(snapshot(step), before)


def test_five_bad_steps_in_a_row_end_the_run_and_a_sound_one_between_starts_the_count_again():
    assert MAX_SKIPPED_IN_A_ROW == 5
    step = make_step(loss=Poisoned(*[math.nan] * 4, 1.0, *[math.nan] * 5))
    before = snapshot(step)
    for _ in range(4):
        assert step(rows(), whole()).skipped
    assert_same(snapshot(step), before)
    assert not step(rows(), whole()).skipped
    before = snapshot(step)
    for _ in range(4):
        assert step(rows(), whole()).skipped
    with pytest.raises(UserError, match="learning_rate"):
        step(rows(), whole())
    assert_same(snapshot(step), before)


# ---- the same again ---------------------------------------------------------------------------------------------


def run_three_steps(seed: int = 1337) -> tuple[list, dict]:
    step = make_step(ALL_HEADS, batch_rows=4, seed=seed)
    results = [step(rows(seed=index), whole(first_row=8 * index)) for index in range(3)]
    return results, snapshot(step)


def test_same_seed_and_rows_give_the_same_bits():
    """The heads draw positions: those come from seed and row, never from torch's global generator."""
    first = run_three_steps()
    torch.rand(7)
    second = run_three_steps()
    assert first[0] == second[0]
    assert_same(second[1], first[1])


def test_another_seed_trains_the_heads_elsewhere_and_the_trunk_alike():
    (_, one), (_, other) = run_three_steps(), run_three_steps(seed=7)
    same = {name: torch.equal(value, other["model"][name]) for name, value in one["model"].items()}
    assert all(equal for name, equal in same.items() if name.startswith("trunk."))
    assert not all(equal for name, equal in same.items() if name.startswith("heads."))
