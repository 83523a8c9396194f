"""The menu's question to every source: right answers, and never later than promised."""

import contextlib
import socket
import subprocess
import sys
import threading
import time

from configs.sources import HFSource, PDFSource, PythonSource, TextSource
from data.sources.probe import probe


def hf(dataset: str) -> HFSource:
    return HFSource(type="hf", dataset=dataset, label=dataset)


def test_each_kind_answers_for_itself(hub, tmp_path):
    (tmp_path / "a.TXT").touch()
    (tmp_path / "b.Pdf").touch()
    hub.add("some/data", {})
    specs = [
        PythonSource(type="python", label="python"),
        TextSource(type="text", path=str(tmp_path), glob="*.TXT", label="text"),
        TextSource(type="text", path=str(tmp_path), glob="*.md", label="no text"),
        PDFSource(type="pdf", path=str(tmp_path), label="pdf"),
        PDFSource(type="pdf", path=str(tmp_path / "gone"), label="no pdf"),
        hf("some/data"),
        hf("no/where"),
        HFSource(type="hf", dataset="json", data_files=str(tmp_path / "a.TXT"), label="json"),
        hf(str(tmp_path)),
        hf(str(tmp_path / "gone")),
    ]
    answers = probe(specs, seconds=60)
    assert [answer.label for answer in answers] == [spec.label for spec in specs]
    assert [answer.ok for answer in answers] == [True, True, False, True, False, True, False, True, True, False]
    assert "matches *.md" in answers[2].detail
    assert "does not exist" in answers[4].detail
    assert "check the name, or set HF_TOKEN" in answers[6].detail


def test_a_network_that_hangs_costs_no_more_than_promised(monkeypatch):
    """One connection is never answered; the other gets a byte now and then, which no socket timeout notices."""

    def drip(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection, contextlib.suppress(OSError):
            connection.send(b"HTTP/1.1 200 OK\r\n")
            while True:
                connection.send(b"x")
                time.sleep(0.1)

    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        threading.Thread(target=drip, args=(server,), daemon=True).start()
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        began = time.monotonic()
        answers = probe([hf("a/b"), hf("c/d"), PythonSource(type="python", label="python")], seconds=0.5)
        assert time.monotonic() - began < 9
    assert [answer.ok for answer in answers] == [False, False, True]
    assert "no answer within 0.5 s" in {answer.detail for answer in answers}


def test_no_connection_is_said_at_once(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    (answer,) = probe([hf("a/b")], seconds=60)
    assert not answer.ok
    assert "cannot be reached" in answer.detail


def test_probing_imports_nothing_heavy():
    code = "import sys, data.sources.probe; print({'datasets', 'huggingface_hub', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
