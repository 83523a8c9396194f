"""Models on the Hub: whole at one commit or not at all, through our own client, and from the cache without a network."""

import json
from pathlib import Path

import huggingface_hub.constants
import pytest

from configs.errors import StartPointError
from data.sources import hub_client
from data.sources.hub_model import find_model

FILES = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{}",
    "model.safetensors": bytes(range(256)) * 400,
    "pytorch_model.bin": b"never asked for",
    "onnx/model.onnx": b"nor this",
}


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub_client, "RETRY_DELAYS", (0.01, 0.01))
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    return tmp_path / "hub"


def test_files_are_those_of_one_commit_and_stay_in_the_cache(hub, cache):
    hub.add("some/model", FILES)
    model = find_model("some/model")
    assert model.commit == hub.revision("some/model")
    assert "onnx/model.onnx" not in model.sizes
    model.path("config.json")
    path = model.path("model.safetensors")
    assert path.read_bytes() == FILES["model.safetensors"]
    assert model.commit in str(path)
    assert str(path).startswith(str(cache))
    sent = hub.bytes_sent
    assert find_model("some/model", "main").path("model.safetensors") == path
    assert hub.bytes_sent < sent + 5_000
    assert not [request for request in hub.requests if "pytorch_model.bin" in request or "onnx" in request]

    hub.fault = lambda *_: "drop"
    again = find_model("some/model")
    assert (again.commit, again.path("model.safetensors")) == (model.commit, path)
    with pytest.raises(StartPointError, match=r"some/model: tokenizer.json cannot be downloaded now"):
        model.path("tokenizer.json")
    with pytest.raises(StartPointError, match=r"other/model: the Hub cannot be reached .*not in its cache"):
        find_model("other/model")


def test_offline_by_choice_the_cache_is_used(hub, cache, monkeypatch):
    hub.add("some/offline", FILES)
    find_model("some/offline").path("config.json")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    asked = len(hub.requests)
    assert find_model("some/offline").sizes == {"config.json": 23}
    with pytest.raises(StartPointError, match="HF_HUB_OFFLINE is set; unset it, and the model is not in its cache"):
        find_model("other/offline")
    assert len(hub.requests) == asked


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (
            lambda hub: setattr(hub, "gated", ("some/closed",)),
            "some/closed is gated: accept its terms at http://.*/some/closed",
        ),
        (lambda hub: setattr(hub, "private", ("some/closed",)), "some/closed does not exist on the Hub or is private"),
        (lambda hub: hub.repos.clear(), "some/closed does not exist on the Hub or is private"),
    ],
    ids=["gated", "private", "missing"],
)
def test_what_the_hub_refuses_is_said(hub, cache, prepare, message):
    hub.add("some/closed", FILES)
    prepare(hub)
    with pytest.raises(StartPointError, match=message) as refused:
        find_model("some/closed")
    assert "/datasets/" not in str(refused.value)


def test_a_download_that_breaks_off_is_resumed_and_never_taken_for_whole(hub, cache, monkeypatch):
    monkeypatch.setattr(hub_client, "SMALL_BODY", 10_000)  # larger ones are read by the library
    hub.add("some/broken", FILES)
    model = find_model("some/broken")
    halves = iter(["truncate"] * 2 + ["drop"] * 100)
    hub.fault = lambda method, path, number: next(halves) if method == "GET" and "model.safetensors" in path else None
    with pytest.raises(StartPointError, match=r"model.safetensors cannot be downloaded now .*start again"):
        model.path("model.safetensors")
    assert not list(cache.rglob("*model.safetensors*"))
    assert not list(cache.rglob("*.incomplete"))
    halves = iter(["truncate", *[None] * 100])
    assert model.path("model.safetensors").read_bytes() == FILES["model.safetensors"]


def test_a_model_that_changes_during_the_download_is_not_mixed(hub, cache):
    hub.add("some/moving", FILES)
    model = find_model("some/moving")
    model.path("config.json")
    hub.add("some/moving", FILES | {"model.safetensors": b"of another commit"})
    with pytest.raises(StartPointError, match="some/moving was changed on the Hub while it was being downloaded"):
        model.path("model.safetensors")


def test_a_file_of_the_cache_that_was_changed_is_named(hub, cache):
    hub.add("some/changed", FILES)
    model = find_model("some/changed")
    for damage in (lambda content: content[:-1], lambda content: content[:-1] + b"x"):
        path = model.path("model.safetensors")
        whole = path.read_bytes()
        path.resolve().write_bytes(damage(whole))
        with pytest.raises(
            StartPointError, match=r"is not the model.safetensors of some/changed at commit .*: delete it"
        ):
            model.path("model.safetensors")
        path.resolve().write_bytes(whole)


def test_the_listing_is_json_of_the_hub(hub, cache):
    hub.add("some/listed", FILES)
    model = find_model("some/listed", "v1.0")
    assert {name: model.sizes[name] for name in FILES if "/" not in name} == {
        name: len(content) for name, content in FILES.items() if "/" not in name
    }
    assert json.loads(model.path("config.json").read_text())["model_type"] == "llama"
    assert model.digests.keys() == {"model.safetensors"}
