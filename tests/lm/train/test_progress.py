"""The lines of a log: when they come, and what they say."""

import json
from types import SimpleNamespace

from configs.schema import parse_preset
from data.producer_client import SourceInfo
from lm.train import progress
from lm.train.progress import LogLines, progress_bar
from tests.program import preset_json


def test_a_log_has_a_line_now_and_then_and_says_trouble_at_once(capsys, monkeypatch):
    now = 1_000.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with LogLines(100_000_000, 50_000_000) as lines:
        for _ in range(3 * progress.LOG_SECONDS):
            now += 1.0
            lines.set_postfix_str("loss 2.345", refresh=False)
            lines.update(10_000)
        assert capsys.readouterr().err.splitlines() == [
            f"{seen}M of 100M tokens, 10.0k tokens/s, {left} left, loss 2.345"
            for seen, left in (("50.3", "1 h 23 min"), ("50.6", "1 h 22 min"), ("50.9", "1 h 22 min"))
        ]
        lines.set_postfix_str("wiki: retrying in 1 s")
        assert capsys.readouterr().err == "wiki: retrying in 1 s\n"
        now += 1.0
        lines.update(10_000)
        assert capsys.readouterr().err == ""
    assert capsys.readouterr().err == "50.9M of 100M tokens, 10.0k tokens/s, 1 h 22 min left, wiki: retrying in 1 s\n"


def test_the_time_left_is_that_until_the_last_reading(tmp_path):
    notes = {"type": "text", "path": str(tmp_path), "repeat": 4}
    trainer = SimpleNamespace(
        world=SimpleNamespace(is_first=True),
        preset=parse_preset(json.dumps(preset_json(tmp_path, data={"sources": [notes]})), "test"),
        stream=SimpleNamespace(sources=[SourceInfo("notes", "a file", "Dear", [], 1_000_000)]),
        token_budget=100_000_000,
        state=SimpleNamespace(tokens_seen=0),
    )
    assert progress_bar(trainer).total == int(4 * 1_000_000 / 3.5)
    trainer.state.tokens_seen = 2_000_000  # the text has more tokens than was reckoned
    assert progress_bar(trainer).total == 100_000_000
