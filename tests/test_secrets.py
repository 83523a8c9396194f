"""A token and a signature that must be found nowhere: not on the screen, not in anything that a run leaves behind.

Whole runs against the stand-in for the Hub, which sends files from presigned addresses as the Hub does, with the
environment variables that make the libraries talk. What is searched: every byte of stdout, stderr and the program's
folder, archives unpacked.
"""

import zipfile

import pytest

from configs.errors import SourceError
from configs.sources import HFSource
from data.sources.hub_client import connect, origin
from data.sources.opening import open_source
from data.sources.probe import probe
from tests.hub import HubStandIn, parquet
from tests.program import Ended, Program

TOKEN, SIGNATURE = "hf_canaryTokenCanaryTokenCanary", "canary0signature1canary2"
TALKATIVE = {"HF_DEBUG": "1", "HF_HUB_VERBOSITY": "info", "DATASETS_VERBOSITY": "debug"}
BUDGET = 4_000


@pytest.fixture
def program(text, hub, tmp_path):
    """One that may read the datasets of the stand-in, all its files from presigned addresses."""
    hub.signature = SIGNATURE
    for name in ("good", "gated", "page", "broken", "expired", "gone"):
        texts = [path.read_text() for path in sorted((text / "small").iterdir())[:200]]
        hub.add(f"some/{name}", {"data/train.parquet": parquet(text=texts)})
    program = Program(tmp_path / "program", text, token_budget=BUDGET)
    for name in ("TMPDIR", "HF_HOME"):
        (program.folder / name).mkdir()
        program.environment[name] = str(program.folder / name)
    program.environment |= {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN + "\n"}  # as a file mounted as a secret has it
    yield program
    program.close()


def add(program: Program, stem: str, *names: str) -> None:
    sources = [{"type": "hf", "dataset": f"some/{name}"} for name in names]
    program.add(stem, name=stem, data={"sources": sources})


def contents(program: Program, result: Ended) -> dict[str, bytes]:
    """All that was said and written, by where."""
    found = {"stdout": result.out.encode(), "stderr": result.err.encode()}
    for path in program.folder.rglob("*"):
        name = str(path.relative_to(program.folder))
        if path.is_file() and not name.startswith("configs/"):
            found[name] = path.read_bytes()
            if zipfile.is_zipfile(path):
                with zipfile.ZipFile(path) as archive:
                    found |= {f"{name}: {record}": archive.read(record) for record in archive.namelist()}
    return found


def check(program: Program, result: Ended, hub) -> dict[str, bytes]:
    """The token was sent, and neither canary is anywhere."""
    assert f"Bearer {TOKEN}" in hub.tokens
    found = contents(program, result)
    leaks = [
        (where, canary) for where, text in found.items() for canary in (TOKEN, SIGNATURE) if canary.encode() in text
    ]
    print(
        f"\n{len(found)} places, {sum(map(len, found.values())):,} bytes, {len(hub.requests)} requests: {leaks or 'none'}"
    )
    assert not leaks
    return found


@pytest.mark.slow
def test_a_whole_run_with_every_library_talking(program, hub):
    add(program, "00_good", "good")
    program.environment |= TALKATIVE
    result = program.run("0\n")
    assert result.code == 0, result.out + result.err
    found = check(program, result, hub)
    assert any(request.startswith("GET /stored/some/good") for request in hub.requests)
    assert "/stored/some/good/data/train.parquet?..." in result.err  # they do talk, and are heard
    assert "some/good" in found["checkpoints/report.md"].decode()
    for place in ("metrics.jsonl", "report.png", "hf/README.md", "hf/model.safetensors", "stream/stream.json"):
        assert f"checkpoints/{place}" in found
    assert any(place.startswith("checkpoints/lm_current.pth: ") and place.endswith("/data.pkl") for place in found)


@pytest.mark.slow
def test_a_run_is_quiet_unless_asked_to_talk(program, hub):
    add(program, "00_good", "good")
    result = program.run("0\n")
    assert result.code == 0, result.out + result.err
    check(program, result, hub)
    assert "http" not in result.out + result.err


@pytest.mark.slow
def test_every_way_in_which_a_source_fails(program, hub):
    add(program, "00_failing", "page", "broken", "expired", "gone")
    add(program, "01_gated", "gated")
    program.environment |= TALKATIVE

    def fault(method, path, number):
        faults = {
            "/stored/some/page": "page",
            "/stored/some/broken": 500,
            "/stored/some/expired": 403,
            "/stored/some/gone": 404,
        }
        return next((fault for prefix, fault in faults.items() if path.startswith(prefix)), None)

    hub.gated, hub.fault = ("some/gated",), fault
    result = program.run("0\n")
    print(result.err[-1500:])
    assert result.code == 2, result.out + result.err
    check(program, result, hub)
    for name in ("page", "broken", "expired", "gone"):
        assert f"source some/{name}: " in result.err
    result = program.run("1\n")
    assert result.code == 2, result.out + result.err
    check(program, result, hub)
    assert "with the account of the token in HF_TOKEN" in result.err  # the menu's


@pytest.mark.slow
@pytest.mark.parametrize("status", [401, 403, 404, 500, "page", "drop"])
def test_every_way_in_which_the_menu_is_refused(status, program, hub):
    add(program, "00_good", "good")
    hub.fault = lambda *_: status
    result = program.run("0\n")
    assert (result.code, "Traceback" in result.err) == (2, False), result.out + result.err
    check(program, result, hub)


@pytest.mark.slow
def test_a_crash_with_a_traceback(program, hub):
    """A defect of the producer, with every library's log before it."""
    add(program, "00_good", "good")
    program.environment |= TALKATIVE
    program.change(
        "data/producer.py", "self.first_row = self.journal.num_rows", "self.first_row = self.journal.a_defect"
    )
    result = program.run("0\n")
    assert result.code == 1, result.out + result.err
    assert result.err.count("Traceback") >= 4  # of three producers and of the trainer
    check(program, result, hub)


@pytest.mark.parametrize("token", ["hf_canary\x0bx", "hf_canaryé"])
def test_a_token_that_cannot_be_sent_is_said_and_not_shown(token, hub, monkeypatch):
    hub.add("some/data", {"data/train.parquet": parquet(text=["row"])})
    monkeypatch.setenv("HF_TOKEN", token)
    spec = HFSource(type="hf", dataset="some/data", label="data")
    with pytest.raises(SourceError) as caught:
        open_source(spec, cache_dir=None, seed=1)
    assert str(caught.value) == "HF_TOKEN holds characters that cannot be sent: set it again"
    assert probe([spec]) == [("data", False, str(caught.value))]


def test_a_token_goes_to_no_other_host_even_if_the_hub_says_that_a_list_goes_on_there(hub, monkeypatch):
    from huggingface_hub import HfApi

    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.add("some/paged", {"one": b"1"})
    with HubStandIn({"some/paged": {"two": b"2"}}) as other:
        hub.next_page = f"{other.url}/api/datasets/some/paged/tree/main"
        connect()
        found = [entry.path for entry in HfApi().list_repo_tree("some/paged", repo_type="dataset")]
    assert found == ["README.md", "one", "README.md", "two"]
    assert hub.tokens[-1] == f"Bearer {TOKEN}"  # the library also asks for something of its own
    assert other.tokens == [None]
    assert origin("https://Hub.org/x") == origin("https://hub.org:443") != origin("http://hub.org/x")
