"""A tracker is sent what metrics.jsonl holds, at tokens; whatever it does, the run goes on, and says so once.

The trackers here have the three functions that wandb and trackio share: neither is among the test dependencies.
"""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from lm.report.metrics import MetricsLog
from lm.report.tracker import tracker_log
from tests.lm.report.test_tensorboard import EVALUATED
from tests.program import tiny_preset


class Tracker(ModuleType):
    Settings = SimpleNamespace

    def __init__(self, name: str, fails: str = ""):
        super().__init__(name)
        self.fails, self.calls = fails, []

    def _called(self, name: str, *args) -> None:
        self.calls.append((name, *args))
        if name == self.fails:
            raise RuntimeError("no network\nand more")

    def init(self, *, project, group, config, dir=None, settings=None) -> None:
        self._called("init", project, group, config["name"], dir)

    def log(self, points, step) -> None:
        self._called("log", step, points)

    def finish(self) -> None:
        self._called("finish")


class Unfit(ModuleType):
    """A package that raises what it likes while it is imported."""

    def __getattr__(self, name: str):
        raise TypeError("Descriptors cannot be created directly")


def preset(tmp_path, package):
    return tiny_preset(tmp_path, train={"report_to": package})


def run(folder, package) -> None:
    """A run that wrote a line before, and writes two."""
    log = MetricsLog(folder / "metrics.jsonl")
    log.mirrors = [tracker_log(preset(folder, package), folder, [{"tokens": 10, "loss": 4.0}])]
    log.write({"tokens": 20, "resumed": "today, here"})
    log.write(EVALUATED)
    log.close()


@pytest.mark.parametrize("package", ["wandb", "trackio"])
def test_the_whole_curve_is_sent(tmp_path, monkeypatch, package, caplog):
    monkeypatch.setitem(sys.modules, package, tracker := Tracker(package))
    run(tmp_path, package)
    begun, first, second, finished = tracker.calls
    assert begun == ("init", "small-lm-trainer", "tiny", "tiny", str(tmp_path) if package == "wandb" else None)
    assert first == ("log", 10, {"training/loss": 4.0})
    assert second[:2] == ("log", 30)
    assert second[2]["held-out bits per byte/wiki"] == 0.5
    assert finished == ("finish",)
    assert caplog.messages == []


@pytest.mark.parametrize("fails", ["init", "log", "finish"])
def test_a_tracker_that_fails_is_named_once_and_left_alone(tmp_path, monkeypatch, fails, caplog):
    monkeypatch.setitem(sys.modules, "trackio", tracker := Tracker("trackio", fails))
    run(tmp_path, "trackio")
    assert caplog.messages == [
        "trackio has failed (no network). The run goes on without it; metrics.jsonl has everything."
    ]
    assert tracker.calls[-1][0] == fails
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("found", [None, ModuleType("wandb")], ids=["nothing", "a folder of that name"])
def test_one_that_is_not_installed_names_the_command(tmp_path, monkeypatch, found, caplog):
    monkeypatch.setitem(sys.modules, "wandb", found)
    run(tmp_path, "wandb")
    assert len(caplog.messages) == 1
    assert "python -m pip install wandb" in caplog.text


def test_one_that_does_not_fit_its_neighbours_is_done_without(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "wandb", Unfit("wandb"))
    run(tmp_path, "wandb")
    assert len(caplog.messages) == 1
    assert "wandb cannot be imported (Descriptors cannot be created directly). The run goes on" in caplog.text


def test_without_report_to_nothing_is_sent(tmp_path, monkeypatch, caplog):
    for package in ("wandb", "trackio"):
        monkeypatch.setitem(sys.modules, package, Tracker(package, "init"))
    run(tmp_path, None)
    assert caplog.messages == []
