"""A whole run with a finish and a watched source, in this process: what it shows and records, and how it is resumed."""

import re

import pytest

import main
from data.order import finish_row
from lm.report.metrics import read_metrics
from lm.train.trainer import Trainer
from tests.lm.train.test_trainer import make  # noqa: F401  # a fixture
from tests.program import ADAPTIVE, BUDGET, fingerprint, state_in

pytestmark = pytest.mark.usefixtures("eager")


class Killed(BaseException):
    """As SIGKILL: nobody catches it."""


@pytest.mark.slow
def test_a_run_killed_in_its_finish_ends_as_one_that_never_was(make, text, tmp_path, capsys, monkeypatch):  # noqa: F811
    small, large = ({"type": "text", "label": name, "path": str(text / name)} for name in ("small", "large"))
    old = text.parent / "old"
    old.mkdir(exist_ok=True)
    (old / "letters.txt").write_text("\n".join(f"Dear friend {n}, how are you?" for n in range(99)))
    data = {
        "sources": [large],
        "mix_strategy": "weighted",
        "finish": {"share": 0.25, "sources": [small, large | {"label": ""}], "source_weights": [3, 1]},
        "watch": [{"type": "text", "path": str(old)}],
    }
    preset = make(data=data, auxiliary=ADAPTIVE | {"adaptive_interval_tokens": 6_000})
    next_step = Trainer.next_step

    def crash(trainer: Trainer, on_status):
        if trainer.state.tokens_seen > 17_500:
            raise Killed
        return next_step(trainer, on_status)

    monkeypatch.setattr(Trainer, "next_step", crash)
    with pytest.raises(Killed):
        main.train(preset, token_budget=BUDGET, checkpoint_dir=tmp_path / "killed")
    card = capsys.readouterr().out
    assert "finish     from 15,008 tokens on, the last 25%: large 25%, small 75%" in card
    assert "watched    text:old: evaluated, never trained on" in card
    monkeypatch.setattr(Trainer, "next_step", next_step)
    for name in ("killed", "whole"):
        main.train(preset, token_budget=BUDGET, checkpoint_dir=tmp_path / name)
    assert fingerprint(state_in(tmp_path / "killed")) == fingerprint(state_in(tmp_path / "whole"))

    finish = finish_row(0.25, 32, BUDGET) * 32
    assert finish == 15_008
    position = state_in(tmp_path / "whole")["stream_position"]
    assert finish // 32 in position["windows_begun"]
    large_seen, small_seen, old_seen = position["source_tokens"]
    assert large_seen + small_seen == BUDGET  # without the rest of the last row
    assert old_seen == 0
    assert 0.75 < small_seen / (BUDGET - finish) < 0.9  # what is harder gets more than was asked at first
    # In the finish each source has a factor of its own; before it there is one source, of which nothing can move.
    _, weights = position["weight_changes"][-1]
    assert weights[:3] == [1.0, 0.0, 0.0]
    assert weights[5] == 0.0
    assert weights[3] != 1.0
    assert weights[4] != 3.0

    line = [line for line in read_metrics(tmp_path / "whole" / "metrics.jsonl") if "eval" in line][-1]
    assert set(line["eval"]["per_source"]) == {"large", "small", "text:old"}
    assert set(line["mixture"]) == set(line["sources"]) == {"large", "small"}
    assert line["finish_from"] == finish
    assert 0.75 * 0.25 < line["sources"]["small"]["asked"] < 0.25
    measured = line["eval"]["per_source"]
    sizes = {label: measured[label]["tokens"] for label in ("large", "small")}
    assert line["eval"]["loss"] == pytest.approx(
        sum(measured[label]["loss"] * size for label, size in sizes.items()) / sum(sizes.values())
    )
    overlapping = line["overlapping"]
    assert overlapping["context"] == 24
    assert overlapping["plain"] == line["eval"]["bits_per_byte"]  # all of the held-out text is little
    assert overlapping["tokens"] == line["eval"]["tokens"]
    assert overlapping["bits_per_byte"] != overlapping["plain"]
    assert set(overlapping["per_source"]) == set(measured)
    canonical = line["canonical"]
    assert canonical["tokens"] == line["eval"]["tokens"]
    assert canonical["bits_per_byte"] == pytest.approx(line["eval"]["bits_per_byte"])
    assert 0 < canonical["saved"] < canonical["bits_per_byte"]
    report = (tmp_path / "whole" / "report.md").read_text()
    assert re.search(r"\| text:old \(only watched\) \| \d", report)
    assert "| sources | large, small |" in report
    assert "text:old" not in (tmp_path / "whole" / "hf" / "README.md").read_text().split("## Data")[1].split("##")[0]
