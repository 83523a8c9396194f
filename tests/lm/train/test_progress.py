"""The lines of a log: when they come, and what they say."""

from lm.train import progress
from lm.train.progress import LogLines


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
