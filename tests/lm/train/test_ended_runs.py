"""Whatever ends a run, its whole steps are saved, and nothing but whole steps; also when its folder is taken away."""

import shutil
from itertools import cycle

import pytest

import main
from configs.errors import UserError
from lm.checkpoint.store import CURRENT
from lm.optim import Muon
from lm.train.trainer import Trainer
from tests.program import BUDGET, fingerprint, state_in, tiny_preset

pytestmark = pytest.mark.slow
SELDOM = dict.fromkeys(("save_every_tokens", "eval_every_tokens", "sample_every_tokens"), 10**9)


@pytest.fixture
def train(text, eager):
    preset = tiny_preset(text, train=SELDOM)
    return lambda folder: main.train(preset, token_budget=BUDGET, checkpoint_dir=folder)


@pytest.fixture
def after(monkeypatch):
    """Call `then(trainer)` before the first step that begins with so many tokens seen."""

    def set_trap(tokens: int, then) -> None:
        train_on = Trainer.train_on

        def trapped(trainer: Trainer, step):
            if trainer.state.tokens_seen >= tokens:
                monkeypatch.setattr(Trainer, "train_on", train_on)
                then(trainer)
            return train_on(trainer, step)

        monkeypatch.setattr(Trainer, "train_on", trapped)

    return set_trap


def fail(*_: object) -> None:
    raise ZeroDivisionError("a defect")


def test_any_error_saves_the_whole_steps(train, after, tmp_path, monkeypatch):
    train(tmp_path / "whole")
    after(5_000, fail)
    with pytest.raises(ZeroDivisionError):
        train(tmp_path / "run")
    saved = state_in(tmp_path / "run")["tokens_seen"]
    assert 5_000 <= saved < BUDGET

    step, was_moved = Muon.step, []

    def half_a_step(optimizer: Muon) -> None:
        step(optimizer)
        was_moved.append(optimizer)
        fail()

    with monkeypatch.context() as patch:
        after(10_000, lambda _: patch.setattr(Muon, "step", half_a_step))
        with pytest.raises(ZeroDivisionError):
            train(tmp_path / "run")
    assert was_moved
    assert state_in(tmp_path / "run")["tokens_seen"] == saved  # some weights have moved on, others have not
    years = cycle((0.0, 9e8, -9e8))
    monkeypatch.setattr("time.time", lambda: 1.7e9 + next(years))  # a clock that jumps is nothing to a run
    train(tmp_path / "run")
    assert fingerprint(state_in(tmp_path / "run")) == fingerprint(state_in(tmp_path / "whole"))


@pytest.mark.parametrize("take_away", [shutil.rmtree, lambda folder: shutil.rmtree(folder / "stream")])
def test_a_folder_that_is_removed_or_emptied_gets_the_weights_and_the_run_is_resumed(take_away, train, after, tmp_path):
    after(5_000, lambda trainer: take_away(trainer.folder))
    with pytest.raises(UserError, match="was removed, moved or emptied"):
        train(tmp_path / "run")
    assert 5_000 <= state_in(tmp_path / "run")["tokens_seen"] < BUDGET
    train(tmp_path / "run")
    assert state_in(tmp_path / "run")["tokens_seen"] == BUDGET


def test_a_folder_that_is_removed_after_a_save_gets_the_weights(text, eager, tmp_path, monkeypatch):
    """While milestones, evaluation or samples take their time: no step was taken since."""
    taken = []

    def take_away(trainer: Trainer) -> None:
        if trainer.saved_at == trainer.state.tokens_seen >= 5_000 and not taken:
            taken.append(trainer.saved_at)
            trainer.wait_for_save()
            shutil.rmtree(trainer.folder)

    monkeypatch.setattr("lm.train.events.keep_milestones", take_away)
    preset = tiny_preset(text, train=SELDOM | {"save_every_tokens": 5_000})
    with pytest.raises(UserError, match="was removed, moved or emptied"):
        main.train(preset, token_budget=BUDGET, checkpoint_dir=tmp_path / "run")
    assert taken == [state_in(tmp_path / "run")["tokens_seen"]]


def test_a_lock_that_is_deleted_is_taken_again(train, after, tmp_path):
    after(5_000, lambda trainer: (trainer.folder / ".lock").unlink())
    assert train(tmp_path / "run")
    assert state_in(tmp_path / "run")["tokens_seen"] == BUDGET


def test_a_folder_that_another_run_has_by_now_is_not_written_into(train, after, tmp_path):
    def exchange(trainer: Trainer) -> None:
        trainer.folder.rename(tmp_path / "moved")
        trainer.folder.mkdir()
        (trainer.folder / CURRENT).write_text("another run's")

    after(5_000, exchange)
    with pytest.raises(UserError, match="another run"):
        train(tmp_path / "run")
    assert (tmp_path / "run" / CURRENT).read_text() == "another run's"
