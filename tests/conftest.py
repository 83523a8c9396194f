"""No test reaches the real Hugging Face Hub: the libraries are pointed at a stand-in before anything imports them."""

import gc
import os
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.hub import HubStandIn, no_fault
from tests.warm_start import start_data_warm

settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


def pytest_configure(config: pytest.Config) -> None:
    gc.disable()  # while a million objects are made that stay
    for name in ("SIGHUP", "SIGINT", "SIGQUIT"):
        # Under nohup, or behind a shell's &: we go on ignoring it, but programs that we start do not.
        number = getattr(signal, name, None)
        if number and signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
    config.hub = HubStandIn({})
    config.hf_home = tempfile.mkdtemp()
    os.environ |= {"HF_ENDPOINT": config.hub.url, "HF_HOME": config.hf_home}
    os.environ["OMP_NUM_THREADS"] = "1"  # on shared cores, threads that wait for each other take four times as long
    if sys.platform == "linux":
        start_data_warm()


def pytest_unconfigure(config: pytest.Config) -> None:
    config.hub.close()
    shutil.rmtree(config.hf_home, ignore_errors=True)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Of the tests of pure logic alone (-m core), only the files that have some are imported."""
    if config.option.markexpr != "core" or not collection_path.name.startswith("test_"):
        return None
    return "mark.core" not in collection_path.read_text(encoding="utf-8") or None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slowest files first: a worker that begins one last would be alone with it for minutes."""
    seconds = Counter()
    for item in items:
        if marker := item.get_closest_marker("slow"):
            seconds[item.path] += next(iter(marker.args), 10)
    items.sort(key=lambda item: -seconds[item.path])


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folders of text for the presets of tests/program.py."""
    from tests.program import write_text  # imports torch, which most tests do without

    return write_text(tmp_path_factory.mktemp("text"))


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is compiled."""
    monkeypatch.setenv("TORCH_COMPILE_DISABLE", "1")


@pytest.fixture
def compiler() -> Iterator[None]:
    """torch.compile compiles, also if a test that switched it off was the first to import it: it looks only then."""
    import torch._dynamo

    with torch._dynamo.config.patch(disable=False):
        yield


@pytest.fixture
def hub(request: pytest.FixtureRequest) -> HubStandIn:
    """The stand-in, serving nothing yet: `hub.add(name, files, configs)`. Use a name of its own in each test."""
    stand_in = request.config.hub
    stand_in.repos.clear()
    stand_in.requests.clear()
    stand_in.tokens.clear()
    stand_in.models.clear()
    stand_in.branches.clear()
    stand_in.hidden.clear()
    stand_in.objects.clear()
    stand_in.bytes_sent = 0
    stand_in.gated, stand_in.private, stand_in.fault = (), (), no_fault
    stand_in.signature = stand_in.next_page = ""
    return stand_in
