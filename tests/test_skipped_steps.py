"""Numbers that go wrong in a whole run: steps skipped are counted wherever it is told of, and nothing is saved after one.

The step itself, on all ranks: tests/lm/test_bad_numbers.py.
"""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import main
from aux_heads.joint import JointModel
from configs.errors import UserError
from configs.schema import Preset
from lm.checkpoint.saver import Saver
from lm.report.metrics import read_metrics
from lm.train.trainer import Trainer
from lm.train_step import TrainStep
from tests.program import BUDGET, tiny_preset, write_text

pytestmark = pytest.mark.slow
ROWS, TOKENS = 16, 512  # of a step; a checkpoint is due every 4,000 tokens


@pytest.fixture
def preset(tmp_path, eager) -> Preset:
    return tiny_preset(write_text(tmp_path / "text"))


@pytest.fixture
def poison(monkeypatch):
    """Makes the loss of these steps, and with it every gradient, NaN. The first is number 1."""
    run_micro_batch, forward = TrainStep.run_micro_batch, JointModel.forward
    number = 0

    def spoil(*steps: int) -> None:
        def count(step: TrainStep, batch, *how):
            nonlocal number
            number = batch.first_row // ROWS + 1
            return run_micro_batch(step, batch, *how)

        def spoilt(*inputs):
            output = forward(*inputs)
            return replace(output, total=output.total * math.nan) if number in steps else output

        monkeypatch.setattr(TrainStep, "run_micro_batch", count)
        monkeypatch.setattr(JointModel, "forward", spoilt)
        monkeypatch.setattr(Saver, "is_ready", lambda saver: True)  # a disk that is never behind

    return spoil


def seen(path: Path) -> int:
    return torch.load(path, weights_only=True)["tokens_seen"]


def test_skipped_steps_are_counted_and_a_save_waits_for_a_sound_one(preset, poison, tmp_path, capsys):
    due = 32
    assert (due - 1) * TOKENS < 16_000 <= due * TOKENS
    poison(20, due)
    main.train(preset, token_budget=BUDGET, checkpoint_dir=tmp_path)
    assert seen(tmp_path / "lm_current.pth") == BUDGET
    assert seen(tmp_path / "lm_prev.pth") == (due + 1) * TOKENS
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines if line.get("skipped_steps")] == [20, due]
    assert (
        "40 steps, 2 of them skipped (loss or gradients not finite, or too large)"
        in (tmp_path / "report.md").read_text()
    )
    assert "steps skipped: 2" in capsys.readouterr().err  # in the bar


def test_a_stop_after_a_skipped_step_saves_nothing(preset, poison, tmp_path, monkeypatch, capsys):
    poison(20)
    next_step = Trainer.next_step
    with monkeypatch.context() as patch:
        patch.setattr(
            Trainer,
            "next_step",
            lambda trainer, say: None if trainer.state.num_steps == 20 else next_step(trainer, say),
        )
        assert not main.train(preset, token_budget=BUDGET, checkpoint_dir=tmp_path)
    assert "Not saved: the last step was skipped" in capsys.readouterr().out
    assert seen(tmp_path / "lm_current.pth") == 16 * TOKENS
    assert main.train(preset, token_budget=BUDGET, checkpoint_dir=tmp_path)


def test_five_in_a_row_end_the_run_with_advice_and_leave_its_checkpoint(preset, poison, tmp_path):
    """A save is due in the midst of them."""
    poison(*range(15, 100))
    checkpoints = []
    for _ in ("a new run", "resumed"):
        with pytest.raises(UserError, match=r"5 steps in a row were skipped.*train\.matrix_learning_rate") as ended:
            main.train(preset, token_budget=BUDGET, checkpoint_dir=tmp_path)
        assert ended.value.exit_code == 2
        checkpoints.append((tmp_path / "lm_current.pth").read_bytes())
        lines = [line for line in read_metrics(tmp_path / "metrics.jsonl") if line.get("skipped_steps")]
        assert [line["step"] for line in lines] == [15, 16, 17, 18]  # the fifth ended it
    assert seen(tmp_path / "lm_current.pth") == 8 * TOKENS
    assert checkpoints[0] == checkpoints[1]
