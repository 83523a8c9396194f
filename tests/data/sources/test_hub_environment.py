"""The Hub in the environments that users have: the menu's probe and the reader say the same, or both work.

Variables that the libraries read when they are imported are tried in a process of their own.
"""

import contextlib
import errno
import json
import os
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import datasets  # before a test sets variables that it reads when it is imported
import huggingface_hub
import pytest

from configs.errors import Retryable, SourceError
from configs.sources import HFSource
from data.sources import hub_client, hub_environment
from data.sources.hub_client import find, without_secrets
from data.sources.hub_environment import prepare_environment, token_in_use
from data.sources.opening import open_source
from data.sources.probe import probe
from tests.anybody import AS_ANYBODY
from tests.constants import ROOT
from tests.hub import parquet

BOTH = """
import json, sys
from configs.errors import SourceError
from configs.sources import HFSource
from data.sources.opening import open_source
from data.sources.probe import probe
spec = HFSource(type="hf", dataset="some/data", label="data")
(menu,) = probe([spec], seconds=60)
try:
    source = open_source(spec, cache_dir=None, seed=1)
    said = [document.text for document, _ in source.documents(0)]
except SourceError as error:
    said = str(error).removeprefix("source data: some/data ")
print(json.dumps([menu.detail or "ready", said]))
"""


def both(environment: dict[str, str], **options) -> tuple[str, str | list[str]]:
    """What the menu and the reader make of the dataset some/data in a process with this environment."""
    done = subprocess.run(
        [*AS_ANYBODY, sys.executable, "-c", BOTH],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=600,
        **options,
    )
    assert done.returncode == 0, done.stderr
    menu, reader = json.loads(done.stdout.splitlines()[-1])
    return menu, reader


assert not datasets.config.HF_HUB_OFFLINE


def hf(dataset: str) -> HFSource:
    return HFSource(type="hf", dataset=dataset, label="data")


@pytest.fixture
def served(hub):
    hub.add("some/data", {"data/train.parquet": parquet(text=["one", "two"])})
    return hub


@pytest.fixture
def new_client(monkeypatch):
    """The client is made anew in the test, which may set its variables, and again after it."""
    for name in ("ALL_PROXY", "HTTP_PROXY", "NO_PROXY", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    huggingface_hub.close_session()
    yield
    monkeypatch.undo()
    huggingface_hub.close_session()


@pytest.mark.slow
def test_an_endpoint_with_a_slash_and_empty_variables(served):
    environment = {"HF_ENDPOINT": served.url + "/", "HF_HUB_CACHE": "", "HF_HUB_DOWNLOAD_TIMEOUT": "", "HF_TOKEN": ""}
    assert both(environment) == ("ready", ["one", "two"])


@pytest.mark.slow
def test_a_private_dataset_and_the_token_of_hf_auth_login(served, tmp_path):
    served.private = ("some/data",)
    (tmp_path / "token").write_text("good\n")
    for environment in ({"HF_HOME": str(tmp_path)}, {"HF_TOKEN_PATH": str(tmp_path / "token")}):
        assert both(environment) == ("ready", ["one", "two"])


@pytest.mark.slow
def test_a_home_that_cannot_be_written(served, tmp_path):
    home = tmp_path / "home"
    (home / ".cache/huggingface").mkdir(parents=True)
    (home / ".cache/huggingface/token").write_text("good")
    served.private = ("some/data",)
    home.chmod(0o555)
    assert both({"HOME": str(home), "HF_HOME": ""}) == ("ready", ["one", "two"])


@pytest.mark.slow
def test_a_home_that_is_no_folder(served, tmp_path):
    """Whatever is below cannot be created."""
    (tmp_path / "home").touch()
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    environment = {"HOME": str(tmp_path / "home"), "HF_HOME": "", "HF_DATASETS_CACHE": str(tmp_path / "home/cache")}
    assert both({**environment, "TMPDIR": str(temporary)}) == ("ready", ["one", "two"])
    assert list(temporary.iterdir()) == []  # what was needed is gone


@pytest.mark.parametrize("name", ["HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"])
def test_a_cache_that_only_looks_as_if_it_could_be_written(name, monkeypatch, tmp_path):
    """As on a full disk, where folders can be made but nothing fits into a file."""

    def full(file: int) -> None:
        if str(tmp_path) in os.readlink(f"/proc/self/fd/{file}"):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.delenv("HF_HOME")
    monkeypatch.setenv(name, str(tmp_path / "cache"))
    monkeypatch.setattr(hub_environment, "_cache", None)
    prepare_environment()
    assert "HF_HUB_CACHE" not in os.environ
    if name != "HF_HUB_CACHE":
        assert os.environ["HF_HOME"] == hub_environment._cache.name
    assert list(tmp_path.iterdir()) == []


def test_a_user_without_a_home_gets_no_folder_named_tilde(monkeypatch, tmp_path):
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as for a number that no name belongs to
    monkeypatch.setenv("HF_HOME", "")
    monkeypatch.delenv("HF_TOKEN_PATH", raising=False)
    monkeypatch.chdir(tmp_path)
    prepare_environment()
    assert Path(os.environ["HF_HOME"]).is_absolute()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("HF_DATASETS_OFFLINE", "1", "is on the Hugging Face Hub, but HF_DATASETS_OFFLINE is set; unset it"),
        ("HF_HUB_OFFLINE", "yes", "is on the Hugging Face Hub, but HF_HUB_OFFLINE is set; unset it"),
        ("TRANSFORMERS_OFFLINE", "True", "but TRANSFORMERS_OFFLINE is set"),
        ("HF_ENDPOINT", "hf-mirror.com", "HF_ENDPOINT is 'hf-mirror.com' in the environment: write an address such as"),
        (
            "HF_ENDPOINT",
            "https://me:hunter2@hub.local/?x",
            "HF_ENDPOINT is an address with a password in the environment: write an",
        ),
        ("HF_ENDPOINT", "https://", "HF_ENDPOINT is 'https:' in the environment: write an address"),
        ("HF_ENDPOINT", "http://127.0.0.1:99999", "HF_ENDPOINT is 'http://127.0.0.1:99999' in the environment: write"),
        ("HF_ENDPOINT", "http://[::1", "HF_ENDPOINT is 'http://[::1' in the environment: write an address"),
        (
            "HF_ENDPOINT",
            "https://huggingface.co/?a=b",
            "HF_ENDPOINT is 'https://huggingface.co/?a=b' in the environment",
        ),
        ("HF_HUB_DOWNLOAD_TIMEOUT", "ten", "HF_HUB_DOWNLOAD_TIMEOUT is 'ten' in the environment: give a number"),
        ("HF_HUB_ETAG_TIMEOUT", "²", "HF_HUB_ETAG_TIMEOUT is '²' in the environment: give a number of seconds"),
        ("HF_DATASETS_IN_MEMORY_MAX_SIZE", "1GB", "HF_DATASETS_IN_MEMORY_MAX_SIZE is '1GB' in the environment: give"),
        ("HF_TOKEN_PATH", "{folder}", "the token of the Hub, cannot be read (Is a directory)"),
        ("ALL_PROXY", "socks4://user:secret@127.0.0.1:7890", "ALL_PROXY cannot be used (Unknown scheme for proxy URL"),
        ("SSL_CERT_FILE", "{folder}/none.pem", "SSL_CERT_FILE cannot be used ([Errno 2] No such file"),
    ],
)
def test_a_wrong_variable_is_named(name, value, says, served, new_client, monkeypatch, tmp_path):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # one that is in order, and used by no test here
    monkeypatch.setenv(name, value.format(folder=tmp_path))
    with pytest.raises(SourceError) as caught:
        open_source(hf("some/data"), cache_dir=None, seed=1)
    assert says in str(caught.value)
    assert "secret" not in str(caught.value)
    assert probe([hf("some/data")]) == [("data", False, str(caught.value))]
    assert served.requests == []


def test_a_wrong_variable_does_not_matter_for_files_on_this_disk(new_client, monkeypatch, tmp_path):
    monkeypatch.setenv("SSL_CERT_FILE", "/no/such/file.pem")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n')
    spec = HFSource(type="hf", dataset="json", data_files=str(tmp_path / "a.jsonl"), label="local")
    assert [document.text for document, _ in open_source(spec, cache_dir=None, seed=1).documents(0)] == ["one"]


LOCAL_BESIDE_THE_HUB = """
import json, sys
from configs.sources import HFSource
from data.sources.opening import open_source
from data.sources.probe import probe
(menu,) = probe([HFSource(type="hf", dataset="some/data", label="data")], seconds=60)
source = open_source(HFSource(type="hf", dataset="json", data_files=sys.argv[1], label="local"), cache_dir=None, seed=1)
print(json.dumps([menu.detail, [document.text for document, _ in source.documents(0)]]))
"""


@pytest.mark.slow
def test_values_that_the_libraries_cannot_read_end_no_import(tmp_path):
    """They read these when they are imported, as they are here in a process of its own."""
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n')
    wrong = {
        "HF_ENDPOINT": "http://127.0.0.1:abc",
        "HF_HUB_DOWNLOAD_TIMEOUT": "ten",
        "HF_HUB_ETAG_TIMEOUT": "²",
        "HF_DATASETS_IN_MEMORY_MAX_SIZE": "1GB",
    }
    done = subprocess.run(
        [sys.executable, "-c", LOCAL_BESIDE_THE_HUB, str(tmp_path / "a.jsonl")],
        env={**os.environ, "PYTHONPATH": str(ROOT), **wrong},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    says, texts = json.loads(done.stdout)
    assert says.startswith("HF_ENDPOINT is 'http://127.0.0.1:abc' in the environment: write an address")
    assert texts == ["one"]


@pytest.mark.parametrize(("given", "seconds"), [("10.5", "11"), (" 7 ", "7"), ("9" * 400, "86400"), ("0", "0")])
def test_a_timeout_becomes_whole_seconds_that_the_system_can_wait(given, seconds, monkeypatch):
    monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", given)
    prepare_environment()
    assert os.environ["HF_HUB_DOWNLOAD_TIMEOUT"] == seconds


def pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while part := source.recv(1 << 16):
            target.sendall(part)
        target.shutdown(socket.SHUT_WR)


@pytest.fixture
def socks_proxy():
    """A SOCKS5 proxy that lists where it was asked to connect to; yields (port, that list)."""
    asked: list[str] = []

    def serve(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.recv(2 + connection.recv(2)[1])
            connection.sendall(b"\x05\x00")
            kind = connection.recv(4)[3]
            host = (
                connection.recv(connection.recv(1)[0]).decode() if kind == 3 else socket.inet_ntoa(connection.recv(4))
            )
            port = int.from_bytes(connection.recv(2), "big")
            asked.append(f"{host}:{port}")
            with socket.create_connection((host, port)) as target:
                connection.sendall(b"\x05\x00\x00\x01" + bytes(6))
                threading.Thread(target=pump, args=(connection, target), daemon=True).start()
                pump(target, connection)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=accept, daemon=True).start()
        yield server.getsockname()[1], asked


def test_a_socks_proxy_works(served, new_client, monkeypatch, socks_proxy):
    port, asked = socks_proxy
    monkeypatch.setenv("ALL_PROXY", f"socks5h://127.0.0.1:{port}")
    source = open_source(hf("some/data"), cache_dir=None, seed=1)
    assert sorted(document.text for document, _ in source.documents(0)) == ["one", "two"]
    assert probe([hf("some/data")]) == [("data", True, "")]
    assert set(asked) == {served.url.removeprefix("http://")}


def test_a_proxy_that_does_not_answer_is_named(served, new_client, monkeypatch):
    monkeypatch.setattr(hub_client, "RETRY_DELAYS", (0, 0))
    monkeypatch.setenv("HTTP_PROXY", "http://user:secret@127.0.0.1:9")
    says = "127.0.0.1: [Errno 111] Connection refused, through the proxy in HTTP_PROXY"
    with pytest.raises(Retryable) as caught:
        open_source(hf("some/data"), cache_dir=None, seed=1)
    assert str(caught.value) == says
    assert probe([hf("some/data")]) == [("data", False, f"the Hub cannot be reached ({says})")]


@pytest.fixture
def something_else(monkeypatch):
    """Requests are answered by what is no Hub; set `answer`: its status, type of content and content."""

    class Handler(BaseHTTPRequestHandler):
        answer = (200, "text/plain", b"hello")

        def do_GET(self):
            status, kind, content = self.answer
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("HF_ENDPOINT", url)
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
        monkeypatch.setattr(hub_client, "RETRY_DELAYS", (0, 0))
        yield Handler
        server.shutdown()


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (
            (200, "text/plain", b"hello"),
            "an answer that is not the Hub's (HTTP status 200), at the address in HF_ENDPOINT",
        ),
        ((200, "application/json", b"{}"), "an answer that is not the Hub's (HTTP status 200), at the address in"),
        (
            (404, "text/html", b"<html>"),
            "an answer that is not the Hub's (HTTP status 404), at the address in HF_ENDPOINT",
        ),
        (
            (451, "text/plain", b"no"),
            "an answer that is not the Hub's (HTTP status 451), at the address in HF_ENDPOINT",
        ),
        ((403, "text/html", b"<html>"), "a web page in place of data (HTTP status 403), at the address in HF_ENDPOINT"),
    ],
)
def test_an_answer_that_is_not_the_hubs_blames_the_way_to_it(answer, says, something_else, new_client, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "good")  # it must not be accused
    something_else.answer = answer
    with pytest.raises(Retryable) as caught:
        open_source(hf("some/data"), cache_dir=None, seed=1)
    assert str(caught.value).startswith(f"127.0.0.1: {says}")
    assert probe([hf("some/data")]) == [("data", False, f"the Hub cannot be reached ({caught.value})")]


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (400, "some/data: the Hub refuses it (not this one)"),
        (404, "source data: some/data does not exist on the Hub or is private: check the name"),
    ],
)
def test_a_refusal_in_json_is_the_hubs(status, says, something_else, new_client):
    something_else.answer = (status, "application/json", b'{"error": "not this one"}')
    with pytest.raises(SourceError) as caught:
        open_source(hf("some/data"), cache_dir=None, seed=1)
    assert str(caught.value).startswith(says)
    (menu,) = probe([hf("some/data")])
    assert menu.detail == str(caught.value).removeprefix("source data: some/data ")


def test_what_the_hub_refuses_is_said_alike(served, monkeypatch):
    """A gated dataset's description may be read by everyone: the menu must ask for its files."""
    served.add("some/gated", {"data/train.parquet": parquet(text=["x"])})
    served.gated, served.private = ("some/gated",), ("some/data",)
    monkeypatch.setenv("HF_TOKEN", "another")
    page = f"{served.url}/datasets/some/gated"
    gated = f"is gated: accept its terms at {page} with the account of the token in HF_TOKEN"
    private = "does not exist on the Hub or is private: check the name, or use a token that may read it (not that in HF_TOKEN)"
    for dataset, says in (("some/gated", gated), ("some/data", private)):
        assert probe([hf(dataset)]) == [("data", False, says)]
        with pytest.raises(SourceError) as caught:
            open_source(hf(dataset), cache_dir=None, seed=1)
        assert str(caught.value) == f"source data: {dataset} {says}"


def test_a_token_that_is_not_sent_is_not_accused(served, monkeypatch):
    served.private = ("some/data",)
    monkeypatch.setenv("HF_TOKEN", "good")
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    (menu,) = probe([hf("some/data")])
    assert menu.detail.endswith("check the name, or unset HF_HUB_DISABLE_IMPLICIT_TOKEN, with which no token is sent")
    assert set(served.tokens) == {None}


def test_a_revision_is_asked_for_by_its_name(served):
    assert find("dataset", "some/data", "refs/convert/parquet")["sha"] == served.revision("some/data")
    assert served.requests == ["GET /api/datasets/some/data/revision/refs/convert/parquet"]


def test_no_token_is_shown_wherever_it_is_kept(monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    (tmp_path / "token").write_text("hf_in_a_file\n")
    assert token_in_use() == (str(tmp_path / "token"), "hf_in_a_file")
    assert without_secrets("Bearer hf_in_a_file") == "Bearer (token)"
    monkeypatch.setenv("HF_TOKEN", "hf_in_a_variable\n")
    assert token_in_use() == ("HF_TOKEN", "hf_in_a_variable")
    shown = without_secrets("hf_in_a_variable, socks5://user:password@host:1, https://host/file?Signature=x")
    assert shown == "(token), socks5://...@host:1, https://host/file?..."
