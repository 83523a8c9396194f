"""Two processes under a real torchrun (gloo, CPU) do what one does: values, errors, sums, gradients, steps."""

import json
import socket

import numpy as np
import pytest
import torch

from configs.errors import UserError
from configs.schema import parse_preset
from lm.learner import Learner
from lm.runtime.distributed import World
from lm.schedule import StepPlan
from lm.train import dry_run
from lm.train_step import TrainStep
from tests.lm import two_ranks
from tests.lm.small_step import ALL_HEADS, ALONE, SEQ_LENGTH, VOCAB, make_step

PLANS = {
    "whole": StepPlan(0, 8, 8 * SEQ_LENGTH),  # one process: two micro-batches; two processes: one each
    "uneven": StepPlan(8, 5, 5 * SEQ_LENGTH - 9),  # two rows and three, the last one cut short
    "many": StepPlan(13, 13, 13 * SEQ_LENGTH),  # two micro-batches each, with and without a filled-up one
    "one more": StepPlan(26, 9, 9 * SEQ_LENGTH),  # one micro-batch and two: both must wait for each other once
    "single": StepPlan(35, 1, 20),  # nothing for the first rank
    "answers": StepPlan(0, 8, 8 * SEQ_LENGTH),  # the end of each row is learnt, of the last rank's less
}
LOSS_MASKS = {"answers": np.arange(SEQ_LENGTH + 1) > 4 * np.arange(8)[:, None]}


def same_step(world: World) -> TrainStep:
    return make_step(ALL_HEADS, world=world, batch_rows=4, seed=1, clip=1.0)


def rows_of(plan: StepPlan) -> np.ndarray:
    return np.random.default_rng(plan.first_row).integers(VOCAB, size=(plan.num_rows, SEQ_LENGTH + 1))


def named(step: TrainStep) -> list[tuple[str, torch.nn.Parameter]]:
    """Parameters under the names they have without DDP."""
    return [(name.removeprefix("module."), parameter) for name, parameter in step.model.named_parameters()]


def gradients(world: World) -> dict[str, dict[str, torch.Tensor]]:
    """By plan: the gradients of every parameter, and the step's loss under "loss"."""
    step, found = same_step(world), {}
    for key, plan in PLANS.items():
        loss_sum, _ = step.accumulate(rows_of(plan), plan, loss_mask=LOSS_MASKS.get(key))
        found[key] = {name: parameter.grad.clone() for name, parameter in named(step)}
        found[key]["loss"] = world.sum(loss_sum) / plan.num_tokens
        step.clear()
    return found


def train(world: World) -> dict:
    """Two steps on the `whole` plan, one of all and one of some targets: what they report, and the parameters after
    them."""
    step, plan = same_step(world), PLANS["whole"]
    results = [step(rows_of(plan), plan, loss_mask=loss_mask) for loss_mask in (None, LOSS_MASKS["answers"])]
    return {
        "losses": [result.loss for result in results],
        "norms": [result.gradient_norm for result in results],
        "heads": [result.heads for result in results],
        "parameters": {name: parameter.detach().clone() for name, parameter in named(step)},
    }


def error_of(world: World) -> tuple[str, str]:
    def refuse() -> None:
        raise UserError(f"rank {world.rank} found no sources")

    try:
        world.from_first(refuse)
    except UserError as error:
        return type(error).__name__, str(error)
    return "nothing", ""


def error_of_the_last(world: World) -> str:
    """What the ranks say of an error that only the last one has, and then of none."""
    try:
        world.raise_on_all(UserError(f"rank {world.rank} is too small") if world.rank == world.size - 1 else None)
    except UserError as error:
        world.raise_on_all(None)
        return str(error)
    return "nothing"


def first_ranks(world: World) -> str:
    """What a method of an object that only the first rank has returns, or that it is not here."""
    try:
        return world.only_first(str, "stream").upper()
    except AttributeError as error:
        return str(error)


def dry_run_with_one_compiler(world: World) -> bool:
    """Whether a rank that alone has a compiler still means to use it after the dry run."""
    train = {"per_gpu_batch_size": 2, "accumulation_steps": 1}
    model = {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "seq_length": 32, "vocab_size": 300}
    given = {"name": "tiny", "model": model, "train": train, "data": {"sources": ["python_source"]}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lm.learner.compile_choice", lambda device: (False, "for this test"))
        patch.setattr(dry_run, "_problem_of_compiler", lambda *_: "")
        learner = Learner(
            parse_preset(json.dumps(given), "test"), world, vocab_size=300, end_of_text=0, tokens_per_step=64
        )
        learner.compiled = world.is_first
        dry_run.dry_run(learner, 2 * world.size)
    return learner.compiled


def everything(world: World) -> dict:
    return {
        "compiled": dry_run_with_one_compiler(world),
        "rank": world.rank,
        "is_first": world.is_first,
        "value": world.from_first(lambda: {"rank": world.rank, "rows": np.arange(3) + world.rank}),
        "first": first_ranks(world),
        "error": error_of(world),
        "error of the last": error_of_the_last(world),
        "after error": world.from_first(lambda: "still together"),
        "sum": world.sum(torch.tensor([1.0, 10.0 * (world.rank + 1)], dtype=torch.float64)),
        "gradients": gradients(world),
        "trained": train(world),
    }


if __name__ == "__main__":
    two_ranks.leave(everything)


@pytest.fixture(scope="module")
def alone() -> dict:
    return everything(ALONE)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    """What two processes saw, in the order of their ranks."""
    return two_ranks.run(__file__, tmp_path_factory.mktemp("ranks"))


def assert_close(actual: dict, expected: dict, tolerance: float) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert (actual[name] - value).norm() <= tolerance * value.norm(), name


def test_without_torchrun_there_is_one_process(alone, monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    world = World.start()
    assert (world.rank, world.size, world.objects) == (0, 1, None)
    assert (alone["rank"], alone["is_first"], alone["value"]["rank"]) == (0, True, 0)
    assert alone["error"] == ("UserError", "rank 0 found no sources")
    assert alone["sum"].tolist() == [1, 10]


@pytest.mark.slow
def test_where_one_rank_has_no_compiler_none_uses_one(alone, ranks):
    assert [alone["compiled"], *(seen["compiled"] for seen in ranks)] == [True, False, False]


@pytest.mark.slow
def test_what_the_first_rank_finds_reaches_all(ranks):
    assert [seen["rank"] for seen in ranks] == [0, 1]
    assert [seen["is_first"] for seen in ranks] == [True, False]
    for seen in ranks:
        assert seen["value"]["rank"] == 0
        assert seen["value"]["rows"].tolist() == [0, 1, 2]


@pytest.mark.slow
def test_what_only_the_first_rank_has_cannot_be_used_on_another(alone, ranks):
    missing = "only the first rank has this object and its 'upper'"
    assert [seen["first"] for seen in (alone, *ranks)] == ["STREAM", "STREAM", missing]


@pytest.mark.slow
def test_an_error_of_the_first_rank_is_raised_on_all_and_leaves_them_together(ranks):
    for seen in ranks:
        assert seen["error"] == ("UserError", "rank 0 found no sources")
        assert seen["after error"] == "still together"


@pytest.mark.slow
def test_an_error_of_any_rank_is_raised_on_all(alone, ranks):
    said = [seen["error of the last"] for seen in (alone, *ranks)]
    assert said == ["rank 0 is too small", "rank 1 is too small", "rank 1 is too small"]


@pytest.mark.slow
def test_sum_adds_over_ranks(ranks):
    assert [seen["sum"].tolist() for seen in ranks] == [[2, 30], [2, 30]]


@pytest.mark.slow
def test_two_processes_have_the_gradients_of_two_micro_batches(alone, ranks):
    """Trunk and heads: the random positions belong to the rows, wherever they are computed."""
    for seen in ranks:
        assert_close(seen["gradients"]["whole"], alone["gradients"]["whole"], 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("key", ["uneven", "many", "one more", "single"])
def test_gradients_do_not_depend_on_who_has_how_many_rows(key, alone, ranks):
    """The trunk's, which are exact; heads draw their positions anew for micro-batches that begin at other rows."""
    known, *found = (
        {name: value for name, value in seen["gradients"][key].items() if not name.startswith("heads.")}
        for seen in (alone, *ranks)
    )
    for one in found:
        assert_close(one, known, 1e-6)


@pytest.mark.slow
def test_steps_of_two_processes_are_those_of_one(alone, ranks):
    one, (first, second) = alone["trained"], (seen["trained"] for seen in ranks)
    assert first["losses"] == second["losses"] == pytest.approx(one["losses"], rel=1e-5)
    assert first["norms"] == second["norms"] == pytest.approx(one["norms"], rel=1e-5)
    for reported, expected in zip(first["heads"], one["heads"], strict=True):
        measured = reported.keys() & expected.keys()  # a rank may have nothing to measure on where little is learnt
        assert len(measured) >= 16
        assert [reported[name] for name in measured] == pytest.approx(
            [expected[name] for name in measured], rel=1e-3, abs=1e-5
        )
    for name, parameter in first["parameters"].items():
        assert torch.equal(parameter, second["parameters"][name]), name


def test_a_port_in_use_is_said_with_what_to_do(monkeypatch):
    with socket.socket() as other_job:
        other_job.bind(("0.0.0.0", 0))
        other_job.listen()
        port = other_job.getsockname()[1]
        job = {"RANK": 0, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1"}
        for name, value in {**job, "MASTER_PORT": port}.items():
            monkeypatch.setenv(name, str(value))
        with pytest.raises(UserError, match=f"Port {port} of this machine is in use"):
            World.start()
