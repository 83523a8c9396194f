"""The weights that a run keeps on its way."""

import re

import pytest
import torch
from safetensors.torch import load_file

import main
from configs.schema import Preset
from lm.checkpoint.archive import archive_run
from lm.export.huggingface import export
from lm.report.metrics import read_metrics
from lm.train.start_card import render_card
from lm.train.trainer import Trainer
from tests.lm.cli.test_menu import card
from tests.program import state_in, tiny_preset

pytestmark = pytest.mark.usefixtures("eager")

BUDGET = 5_000
POINTS = [1_000, 1_001, 3_000, BUDGET, BUDGET + 1]


class Killed(BaseException):
    """As SIGKILL: nobody catches it."""


def preset(text, **train) -> Preset:
    return tiny_preset(text, train={"save_every_tokens": 1_500} | train)


def exported(folder) -> dict:
    return {path.name: load_file(path / "model.safetensors") for path in (folder / "milestones").iterdir()}


@pytest.mark.slow
def test_a_killed_run_keeps_what_an_uninterrupted_one_does(text, tmp_path, monkeypatch, capsys):
    kept = preset(text, keep_at_tokens=POINTS)
    main.train(kept, token_budget=BUDGET, checkpoint_dir=tmp_path / "whole")
    whole = exported(tmp_path / "whole")
    assert set(whole) == {f"tokens_{point}" for point in POINTS if point <= BUDGET}
    assert re.search(r"milestones +4, each of \d+ kB, in checkpoints/milestones/", capsys.readouterr().out)
    last = state_in(tmp_path / "whole")
    assert torch.equal(whole[f"tokens_{BUDGET}"]["lm_head.weight"], last["model"]["output.weight"])
    assert not torch.equal(whole["tokens_3000"]["lm_head.weight"], last["model"]["output.weight"])
    readme = (tmp_path / "whole" / "milestones" / "tokens_1000" / "README.md").read_text()
    assert "taken from the run at 1,024 of 5,000 tokens" in readme  # after the step that reaches the point

    train_on = Trainer.train_on

    def die_at(tokens: int):
        def and_die(trainer: Trainer, step):
            result = train_on(trainer, step)
            trainer._saver.wait()
            if trainer.state.tokens_seen >= tokens:
                raise Killed
            return result

        return and_die

    def die_at_a_milestone(state, folder, out_dir):
        assert out_dir.name == "tokens_3000"
        raise Killed

    for tokens in (1_200, 2_500):  # before any save; after one
        monkeypatch.setattr(Trainer, "train_on", die_at(tokens))
        with pytest.raises(Killed):
            main.train(kept, token_budget=BUDGET, checkpoint_dir=tmp_path / "killed")
    monkeypatch.setattr(Trainer, "train_on", train_on)
    monkeypatch.setattr("lm.checkpoint.saver.REST", 0)
    monkeypatch.setattr("lm.train.milestones.export", die_at_a_milestone)
    with pytest.raises(Killed):  # after the save of the same step
        main.train(kept, token_budget=BUDGET, checkpoint_dir=tmp_path / "killed")
    monkeypatch.setattr("lm.train.milestones.export", export)
    saved = state_in(tmp_path / "killed")
    assert saved["tokens_seen"] == 3_072
    main.train(kept, token_budget=BUDGET, checkpoint_dir=tmp_path / "killed")
    killed = exported(tmp_path / "killed")
    assert killed.keys() == whole.keys()
    assert all(torch.equal(killed[name][key], whole[name][key]) for name in whole for key in whole[name])

    words = [{line["tokens"]: line["words"] for line in read_metrics(tmp_path / run / "metrics.jsonl") if "words" in line}
             for run in ("whole", "killed")]  # fmt: skip
    assert words[0][BUDGET] == words[1][BUDGET] > 100
    assert words[1].items() <= words[0].items()
    assert (
        f"| words | {words[0][BUDGET]:,}, counted at white space |" in (tmp_path / "killed" / "report.md").read_text()
    )

    archived = archive_run(tmp_path / "whole")
    assert exported(archived).keys() == whole.keys()
    assert not (tmp_path / "whole" / "milestones").exists()


@pytest.mark.parametrize(
    ("points", "rows"),
    [
        ([], []),
        ([1_000, 5_000], ["2, each of 60.0 MB, in checkpoints/milestones/"]),
        ([1_000, 5_001, 9_000], ["1, each of 60.0 MB, in checkpoints/milestones/", "not kept: 2 points beyond 5,000 tokens"]),
        ([5_001], ["none: all points are beyond 5,000 tokens"]),
        ("babylm", ["none: all points are beyond 5,000 tokens"]),
    ],
)  # fmt: skip
def test_the_start_card_says_which_points_the_budget_reaches(points, rows):
    plain = card().preset
    kept = plain.model_copy(update={"train": plain.train.model_copy(update={"keep_at_tokens": points})})
    shown = render_card(card(preset=kept, token_budget=BUDGET)).splitlines()
    first = next((number for number, line in enumerate(shown) if line.startswith("milestones")), 0)
    assert [line[10:].strip() for line in shown[first : first + len(rows)]] == rows
    assert any("milestones" in line for line in shown) == bool(rows)


def test_a_milestone_that_cannot_be_written_is_said_and_the_run_goes_on(text, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("configs.schema.TrainConfig.milestones", property(lambda _: {"chck_1M": 50, "chck_2M": 1_000}))
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "milestones").write_text("in the way, as a full disk is")
    main.train(preset(text, keep_at_tokens="babylm"), token_budget=2_500, checkpoint_dir=folder)
    out = capsys.readouterr().out
    assert re.search(r"Milestone chck_1M is not kept: writing it to .*milestones failed: .*\. The run goes on\.", out)
    words = [line["words"] for line in read_metrics(folder / "metrics.jsonl") if "words" in line]
    assert 50 <= words[-1] < 1_000
    assert "chck_2M" not in out  # by words, of which there are fewer than tokens
    assert (folder / "report.md").exists()
