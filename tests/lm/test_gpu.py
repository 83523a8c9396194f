"""What is done otherwise on a GPU beside what a CPU does: recorded steps, recorded passes of the decoder, snapshots, and
pieces of the trunk. On a real GPU where there is one, else with a graph that only calls.

Run it on a GPU after every change of them: `python -m pytest tests/lm/test_gpu.py -n 0`.
"""

import math
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch

from configs.schema import ModelConfig
from lm import loss_scale
from lm.checkpoint.file import Snapshot
from lm.cuda_graph import WARM_UPS, NotCapturable
from lm.inference.decoder import Decoder
from lm.model import Transformer, products, rotary_frequencies, rotary_tables, rotate, rotate_flipped
from lm.runtime.distributed import World
from lm.schedule import StepPlan
from tests.lm.checkpoint.small_checkpoint import make_state
from tests.lm.random_model import LLAMA, random_model, random_norms
from tests.lm.small_step import ALL_HEADS, NUM_ROWS, SEQ_LENGTH, VOCAB, make_step

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
NUM_STEPS, UNSOUND, FORGOTTEN = 12, 5, 7


class NotCaptured:
    """Calls what `Graph` would record, as often and from the same memory."""

    def __init__(self, function, inputs, reset=lambda: None, pool=None):
        self.function, self.inputs = function, [tensor.clone() for tensor in inputs]
        for _ in range(WARM_UPS):
            self.output = function(self.inputs)
        reset()

    def __call__(self, inputs):
        for mine, given in zip(self.inputs, inputs, strict=True):
            mine.copy_(given)
        return self.output.copy_(self.function(self.inputs))


@pytest.fixture(autouse=True)
def graphs(monkeypatch):
    if not GPU:
        for module in ("captured_step", "inference.decoder"):
            monkeypatch.setattr(f"lm.{module}.Graph", NotCaptured)
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))


def rows_of(index: int) -> np.ndarray:
    return np.random.default_rng(index % 4).integers(VOCAB, size=(NUM_ROWS, SEQ_LENGTH + 1))


def train(captured: bool) -> tuple[list[float], list[bool], list[torch.Tensor]]:
    """Losses, which steps were skipped, and the weights in the end."""
    step = make_step(ALL_HEADS, world=World(0, 0, 1, DEVICE), batch_rows=NUM_ROWS // 2, clip=1.0, captured=captured)
    losses, skipped = [], []
    for index in range(NUM_STEPS):
        progress = index / NUM_STEPS
        num_rows = NUM_ROWS - 3 * (index == NUM_STEPS - 1)  # the last step of a run is a shorter one
        fades = 1 - progress, max(0.0, 1 - 2 * progress), (max(0.0, 0.5 - progress),)
        plan = StepPlan(NUM_ROWS * index, num_rows, num_rows * SEQ_LENGTH - 1, *fades)
        before = [parameter.detach().clone() for parameter in step.model.parameters()]
        bounds = step.bounds.clone()
        if index == UNSOUND:
            step.bounds.zero_()
        if index == FORGOTTEN:  # as when a run begins after its dry run, or is resumed
            step.reset()
        some = np.random.default_rng(index).random((num_rows, SEQ_LENGTH + 1)) < 0.5  # as in conversations
        result = step(rows_of(index)[:num_rows], plan, loss_mask=some if index % 3 == 1 else None)
        step.bounds.copy_(bounds)
        assert result.skipped == all(map(torch.equal, before, step.model.parameters()))
        losses.append(result.loss)
        skipped.append(result.skipped)
    assert not captured or step._forward_backward is not None
    return losses, skipped, [parameter.detach().clone() for parameter in step.model.parameters()]


def test_a_captured_step_does_what_the_plain_one_does():
    losses, skipped, weights = train(captured=True)
    plain_losses, plain_skipped, plain_weights = train(captured=False)
    assert skipped == plain_skipped == [index == UNSOUND for index in range(NUM_STEPS)]
    assert losses[-1] < losses[0]
    # cuDNN's backward pass adds in no fixed order.
    np.testing.assert_allclose(losses, plain_losses, rtol=1e-4 if GPU else 0)
    for one, other in zip(weights, plain_weights, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2 if GPU else 0, atol=1e-3 if GPU else 0)


def test_a_captured_step_scales_its_loss_as_the_plain_one_does(monkeypatch):
    monkeypatch.setattr(loss_scale, "STEPS_TO_GROW", 2)
    states = []
    for captured in (True, False):
        scale = loss_scale.LossScale(DEVICE)
        step = make_step(
            world=World(0, 0, 1, DEVICE),
            captured=captured,
            loss_scale=scale,
            autocast=partial(torch.autocast, DEVICE.type, dtype=torch.float16),
        )
        scale.load(torch.tensor([loss_scale.LARGEST, 0.0]))
        skipped = [step(rows_of(index), StepPlan(8, NUM_ROWS, 8)).skipped for index in range(12)]
        states.append((skipped, scale.state.tolist()))
    assert states[0] == states[1]
    assert {True, False} == {*skipped}


def test_a_captured_step_that_is_given_up_leaves_no_trace():
    def steps(stopped: int | None) -> list[float]:
        step = make_step(world=World(0, 0, 1, DEVICE), batch_rows=NUM_ROWS // 2, captured=True)
        plan = StepPlan(0, NUM_ROWS, NUM_ROWS * SEQ_LENGTH)
        if stopped is not None:
            step(rows_of(0), plan)
            asked = iter([False, True])
            assert step(rows_of(1), plan, lambda: next(asked)) is None  # after its first micro-batch
            return [step(rows_of(index), plan).loss for index in (2, 3)]
        return [step(rows_of(index), plan).loss for index in (0, 2, 3)][1:]

    np.testing.assert_allclose(steps(stopped=1), steps(stopped=None), rtol=1e-4 if GPU else 0)


def refuse(*_):
    raise NotCapturable("operation not permitted when stream is capturing")


def test_what_cannot_be_captured_is_launched_as_it_is(monkeypatch):
    plan = StepPlan(0, NUM_ROWS, NUM_ROWS * SEQ_LENGTH)
    plain, refused = make_step(ALL_HEADS), make_step(ALL_HEADS, captured=True)
    monkeypatch.setattr("lm.captured_step.Graph", refuse)
    assert refused(rows_of(0), plan) == plain(rows_of(0), plan)
    assert refused.refused == "operation not permitted when stream is capturing"
    assert all(map(torch.equal, refused.model.parameters(), plain.model.parameters()))


both_families = pytest.mark.parametrize("family", [{"num_heads": 2}, LLAMA], ids=["Qwen3", "Llama"])


def small_model(family: dict) -> Transformer:
    config = ModelConfig(hidden_size=32, num_layers=2, seq_length=16, mlp_size=64, **family)
    return random_norms(random_model(config, VOCAB))


@both_families
def test_a_recorded_decoder_continues_as_the_plain_one_also_where_it_is_refused(monkeypatch, family):
    model = small_model(family).to(DEVICE)
    tokens = torch.randint(VOCAB, (16,), generator=torch.Generator().manual_seed(1)).tolist()
    monkeypatch.setattr(
        torch, "empty", lambda *size, **options: torch.full(size, math.nan, **options)
    )  # as memory may be

    def states(recorded: bool) -> torch.Tensor:
        decoder, found = Decoder(model), []
        decoder.recorded = recorded
        for start, stop in [(0, 1), (1, 2), (2, 6), (6, 7), (7, 8), (5, 6), (6, 9), *pairwise(range(9, 17))]:
            decoder.rollback(min(start, decoder.length))
            found.append(decoder(tokens[start:stop]))
        return torch.cat(found)

    plain = states(recorded=False)
    torch.testing.assert_close(states(recorded=True), plain, atol=1e-4, rtol=1e-4)
    monkeypatch.setattr("lm.inference.decoder.Graph", refuse)
    assert torch.equal(states(recorded=True), plain)


def test_a_snapshot_is_of_the_moment_it_was_asked_for():
    state = make_state(1)
    state["model"] = {"weight": torch.ones(1_000_000, device=DEVICE)}
    if GPU:
        torch.cuda._sleep(10**9)  # cycles: steps that it has been given
    snapshot = Snapshot(state)
    state["model"]["weight"].fill_(2)
    copied = snapshot.contents()["model"]["weight"]
    assert copied.eq(1).all()
    again = Snapshot(state, snapshot.buffers).contents()["model"]["weight"]  # in the memory of the one before
    assert again.eq(2).all()
    assert (again.data_ptr() == copied.data_ptr()) == GPU


@both_families
def test_a_gpu_computes_what_a_cpu_does(family):
    """Queries and keys are rotated and gates multiplied otherwise there."""
    model = small_model(family)
    tokens = torch.randint(VOCAB, (2, 16), generator=torch.Generator().manual_seed(1))
    expected = model(tokens)
    torch.testing.assert_close(model.to(DEVICE)(tokens.to(DEVICE)).cpu(), expected, atol=1e-4, rtol=1e-4)

    x = torch.randn(2, 3, 16, 8, generator=torch.Generator().manual_seed(2))
    cos, sin = rotary_tables(16, rotary_frequencies(8, 10_000.0))
    torch.testing.assert_close(rotate_flipped(x, cos, sin), rotate(x, cos, sin))
    weight = torch.randn(6, 8, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(torch.cat(products(x, weight, 2), dim=-1), x @ weight.T)
