"""The report holds the figures of the last evaluation, the samples and a picture that can be opened."""

import pytest

from aux_heads.metrics import Measure
from lm.report import figures
from lm.report.metrics import MetricsLog, read_metrics
from lm.report.report import before_and_after, held_out_table, write_report
from lm.report.samples import Sample, SampleLog

MEASURES = (
    Measure("value/correlation", "value/trailing", "trailing", "how well", "the past"),
    Measure("dynamics/error", 1.0, "copy", "how badly", "a copy", less_is_better=True),
    Measure("policy/acceptance", "policy/copy", "copy", "how often", "a copy"),
)


@pytest.fixture
def run_folder(tmp_path):
    metrics, samples = MetricsLog(tmp_path / "metrics.jsonl"), SampleLog(tmp_path / "samples.md")
    metrics.write({"tokens": 100, "step": 1, "loss": None, "tokens_per_second": 10.0})
    metrics.write({"tokens": 100, "resumed": "on the 2nd | machine"})
    for tokens, loss in ((200, 3.25), (300, 2.125)):
        per_source = {
            "wiki|en": {"loss": loss, "bits_per_byte": loss / 2, "tokens": 7, "stderr": 0.0125},
            "$math_$": {"loss": loss, "bits_per_byte": loss / 4, "tokens": 1234, "answer_bits_per_byte": 0.8765},
        }
        metrics.write(
            {
                "tokens": tokens, "step": 2, "loss": loss, "tokens_per_second": 11.0,
                "eval": {"loss": loss, "bits_per_byte": loss / 3, "tokens": 1241, "per_source": per_source},
                "mixture": {"wiki|en": 0.75, "$math_$": 0.25},
                "sources": {
                    "wiki|en": {
                        "documents": 4321, "tokens": 99999, "bytes": 3 * 10**6, "epoch": 2, "retries": 5,
                        "skipped": {"too short": 17, "empty": 1}, "asked": 0.8, "realised": 0.75,
                    }
                },
                "heads": {"value/correlation": 0.4321, "value/trailing": 0.5, "dynamics/error": 0.75, "value/loss": loss},
            }
        )  # fmt: skip
        samples.write(tokens, [Sample("wiki|en", "Once", f"at {tokens}")])
    metrics.close()
    return tmp_path


def test_a_run_that_started_from_a_model_shows_what_it_changed(tmp_path):
    metrics = MetricsLog(tmp_path / "metrics.jsonl")
    for tokens, measured, bits in ((0, 100, 1.5), (900, 100, 1.2), (1000, 100, 1.0), (1000, 5000, 1.1)):
        per_source = {"old": {"bits_per_byte": 2.0 - bits, "tokens": 40}, "new": {"bits_per_byte": bits, "tokens": 60}}
        evaluation = {"loss": 1.0, "bits_per_byte": bits, "tokens": measured, "per_source": per_source}
        metrics.write({"tokens": tokens, "step": 1, "eval": evaluation})
    metrics.close()
    unfinished = read_metrics(tmp_path / "metrics.jsonl")[:1]
    assert before_and_after(unfinished) == []
    text = write_report(tmp_path, "{}", {}).read_text(encoding="utf-8")
    assert "## Bits per byte before the first step, and after 1,000 tokens" in text
    for row in ("| all | 1.5000 | 1.0000 | -33.3% |", "| old | 0.5000 | 1.0000 | +100.0% |"):  # on the same text
        assert row in text


def test_report_of_a_run(run_folder, monkeypatch):
    monkeypatch.setattr("lm.report.report.MEASURES", MEASURES)
    facts = {"preset": "tiny", "machine": "2 cores | 8 GB"}
    path = write_report(run_folder, '{"name": "tiny"}', facts)
    text = path.read_text(encoding="utf-8")
    assert path == run_folder / "report.md"
    assert "## Held-out text after 300 tokens" in text
    assert r"| wiki\|en | 1.0625 | 0.0125 | 2.1250 |" in text
    assert "0.8765" in text
    assert "1,234" in text
    assert "| value | how well | 0.4321 | the past | 0.5000 | **no** |" in text
    assert "| dynamics | how badly | 0.7500 | a copy | 1.0000 | yes |" in text
    assert "policy" not in text  # it measured nothing
    assert "Also measured: value/loss 2.1250." in text
    assert r"| wiki\|en | 80.0% | 75.0% | 4,321 | 99,999 | 3 | 2 | 5 | 17 too short, 1 empty |" in text
    assert r"| 100 | on the 2nd \| machine |" in text
    assert r"2 cores \| 8 GB" in text
    assert "at 200" in text
    assert "at 300" in text
    assert '{"name": "tiny"}' in text
    assert "(report.png)" in text
    assert not list(run_folder.glob("*.tmp"))
    from matplotlib.image import imread

    for name, height in (("report.png", 800), ("heads.png", 500)):
        picture = imread(run_folder / name)
        assert picture.shape[0] > height
        assert picture.shape[1] > 1200
        assert picture.std() > 0.01  # not blank


def test_report_of_a_run_that_has_only_just_begun(tmp_path):
    text = write_report(tmp_path, "{}", {"preset": "tiny"}).read_text()
    assert "report.png" not in text
    MetricsLog(tmp_path / "metrics.jsonl").write({"tokens": 1, "step": 1, "loss": 9.0, "tokens_per_second": 1.0})
    assert "report.png" in write_report(tmp_path, "{}", {"preset": "tiny"}).read_text()
    assert "never interrupted" in (tmp_path / "report.md").read_text()


def drawn(monkeypatch, records, draw=figures.draw):
    """The visible panels, by their titles."""
    kept = []
    monkeypatch.setattr(figures, "_png", lambda figure: kept.append(figure) or b"")
    monkeypatch.setattr(figures, "write_atomically", lambda path, content: None)
    figures._curves.cache_clear()
    draw(records, None, "tiny, 36k parameters")
    assert kept[0].get_suptitle() == "tiny, 36k parameters"
    return {panel.get_title(loc="left"): panel for panel in kept[0].axes if panel.get_visible()}


def evaluated(tokens: int, loss: float, measured: int) -> dict:
    found = {"loss": loss, "bits_per_byte": loss / 3, "tokens": measured}
    return {"tokens": tokens, "eval": {**found, "per_source": {"wiki": found}}, "mixture": {"wiki": 1.0}}


def test_a_picture_has_no_panel_without_content(monkeypatch):
    step = {"tokens": 1, "step": 1, "loss": 9.0, "tokens_per_second": 1.0}
    assert list(drawn(monkeypatch, [step])) == ["Loss, nats per token", "Tokens per second"]
    with_evaluation = drawn(monkeypatch, [step, evaluated(1, 9.0, 100)])  # a single source is the whole mixture
    assert list(with_evaluation) == ["Loss, nats per token", "Held-out bits per byte, per source", "Tokens per second"]


def test_evaluations_alone_have_no_speed_and_no_training_curve(monkeypatch):
    panels = drawn(monkeypatch, [evaluated(1, 9.0, 100)])
    assert list(panels) == ["Loss, nats per token", "Held-out bits per byte, per source"]
    assert [line.get_label() for line in panels["Loss, nats per token"].lines] == ["held-out"]


def test_a_label_that_begins_with_an_underscore_is_in_the_legend(monkeypatch):
    record = evaluated(1, 9.0, 100)
    record["eval"]["per_source"]["_notes"] = record["eval"]["per_source"]["wiki"]
    legend = drawn(monkeypatch, [record])["Held-out bits per byte, per source"].get_legend()
    assert [text.get_text().strip() for text in legend.get_texts()] == ["wiki", "_notes"]


def test_labels_in_every_script_are_drawn_without_a_warning(tmp_path, recwarn, caplog):
    record = evaluated(1, 9.0, 100)
    record["eval"]["per_source"]["数据"] = record["eval"]["per_source"]["wiki"]
    figures.draw([record], tmp_path / "report.png", "模型")
    assert [str(warning.message) for warning in recwarn] == []
    assert caplog.messages == []


def test_an_evaluation_of_more_text_is_not_joined_to_those_before(monkeypatch):
    records = [evaluated(10, 4.0, 100), evaluated(20, 3.0, 100), evaluated(20, 3.5, 900)]
    panel = drawn(monkeypatch, records)["Held-out bits per byte, per source"]
    line, star = panel.lines
    assert list(line.get_ydata()) == [4.0 / 3, 1.0]
    assert list(star.get_ydata()) == [3.5 / 3]


def test_the_mixture_shows_where_the_finish_begins_and_not_what_is_only_watched(monkeypatch):
    record = evaluated(20, 3.0, 100) | {"mixture": {"wiki": 0.75, "chats": 0.25}, "finish_from": 15}
    record["eval"]["per_source"] |= {"old": record["eval"]["per_source"]["wiki"]}
    panels = drawn(monkeypatch, [record])
    shown = [line.get_label() for line in panels["Mixture, share of tokens"].lines[:-1]]
    assert shown == ["wiki", "chats"]
    assert list(panels["Mixture, share of tokens"].lines[-1].get_xdata()) == [15, 15]
    assert len(panels["Held-out bits per byte, per source"].lines) == 3
    both = {"bits_per_byte": 0.9, "plain": 1.0}
    record["overlapping"] = {"context": 24, "tokens": 50, **both, "per_source": {"wiki": both}}
    record["canonical"] = {"tokens": 50, "bits_per_byte": 1.0, "saved": 0.003}
    _, sources, explained, overlapping, canonical = held_out_table([record])
    assert "| old (only watched) |" in sources
    assert "at least 24 tokens" in explained
    assert "| wiki | 0.9000 | 1.0000 |" in overlapping
    assert "0.30% fewer bits per byte, on 50 of these" in canonical


def test_a_single_point_of_a_baseline_is_seen(monkeypatch):
    heads = [{"tokens": 10, "heads": {"value/correlation": 0.4, "value/trailing": 0.5}}]
    (panel,) = drawn(
        monkeypatch, heads, lambda records, path, title: figures.draw_heads(records, MEASURES, path, title)
    ).values()
    assert all(line.get_marker() in ("o", "_") for line in panel.lines)
    assert {tuple(line.get_ydata()) for line in panel.lines} == {(0.4,), (0.5,)}
