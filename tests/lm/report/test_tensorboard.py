"""TensorBoard shows what metrics.jsonl holds, at tokens, whatever was cut; without it a run is none the wiser."""

import sys
from types import ModuleType

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lm.report.metrics import MetricsLog, NullLog, read_metrics
from lm.report.tensorboard import event_log

EVALUATED = {
    "tokens": 30,
    "eval": {"loss": 1.5, "bits_per_byte": 0.75, "per_source": {"wiki": {"bits_per_byte": 0.5}, "qa/x": {"loss": 1.0}}},
    "mixture": {"wiki": 0.25, "qa/x": 0.75},
    "heads": {"value/loss": 0.125},
}


def curves(folder) -> dict[str, list[tuple[int, float]]]:
    """As TensorBoard reads them."""
    events = EventAccumulator(str(folder))
    events.Reload()
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_every_measure_is_a_curve_over_tokens(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.mirrors = [event_log(tmp_path / "tensorboard", [])]
    log.write({"tokens": 10, "step": 1, "loss": 2.5, "lr": 0.5, "grad_norm": float("nan")})
    log.write({"tokens": 20, "step": 2, "loss": 2.25, "lr": 0.25, "tokens_per_second": 1000.0})
    log.write(EVALUATED)
    log.write({"tokens": 30, "resumed": "today, here"})
    log.close()
    assert curves(tmp_path / "tensorboard") == {
        "training/loss": [(10, 2.5), (20, 2.25)],
        "training/lr": [(10, 0.5), (20, 0.25)],
        "training/tokens_per_second": [(20, 1000.0)],
        "held out/loss": [(30, 1.5)],
        "held out/bits_per_byte": [(30, 0.75)],
        "held-out bits per byte/wiki": [(30, 0.5)],
        "mixture/wiki": [(30, 0.25)],
        "mixture/qa/x": [(30, 0.75)],
        "heads/value/loss": [(30, 0.125)],
    }


def test_resuming_leaves_exactly_the_curves_of_metrics_jsonl(tmp_path):
    """Also those that have no point after the cut, and those from before TensorBoard was there."""
    path, folder = tmp_path / "metrics.jsonl", tmp_path / "tensorboard"
    log = MetricsLog(path)
    log.write({"tokens": 10, "loss": 4.0})
    log.mirrors = [event_log(folder, [])]
    log.write({"tokens": 20, "loss": 3.0})
    log.write(EVALUATED)
    log.close()
    resumed = MetricsLog(path)
    resumed.keep(lambda line: line["tokens"] <= 20)
    resumed.mirrors = [event_log(folder, read_metrics(path))]
    resumed.write({"tokens": 40, "loss": 2.0})
    resumed.close()
    assert curves(folder) == {"training/loss": [(10, 4.0), (20, 3.0), (40, 2.0)]}


@pytest.mark.parametrize("missing", ["tensorboard", "torch.utils.tensorboard"])
def test_without_tensorboard_nothing_is_written_or_said(tmp_path, monkeypatch, capsys, missing):
    for name in [name for name in sys.modules if name.startswith(missing)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, missing, None)
    assert isinstance(event_log(tmp_path / "tensorboard", [EVALUATED]), NullLog)
    assert not (tmp_path / "tensorboard").exists()
    assert capsys.readouterr() == ("", "")


def test_a_tensorboard_that_cannot_be_imported_is_done_without_and_said(tmp_path, monkeypatch, caplog):
    class Unfit(ModuleType):
        def __getattr__(self, name):
            raise TypeError("Descriptors cannot be created directly")

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", Unfit("torch.utils.tensorboard"))
    assert isinstance(event_log(tmp_path / "tensorboard", [EVALUATED]), NullLog)
    assert "TensorBoard cannot be imported (Descriptors cannot be created directly)" in caplog.text
