"""p in the menu: the export of a run in a private repository of the Hub, or one message and nothing changed."""

import os
import sys
from pathlib import Path

import pytest

import main
from configs.errors import UserError
from data.sources import hub_client
from lm.cli import use
from lm.cli.menu import Choice


@pytest.fixture
def run(tmp_path, monkeypatch, hub) -> Path:
    """The folder of a run with an export, of whose files one is a large one for the stand-in."""
    monkeypatch.setenv("HF_TOKEN", "good")
    monkeypatch.setattr(hub_client, "RETRY_DELAYS", (0, 0))
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setattr(use.store, "load", lambda folder: ({"preset": '{"name": "my library, 2"}'}, ""))
    monkeypatch.setattr(use, "is_export_of", lambda folder, state: folder.exists())
    exported = tmp_path / "hf"
    exported.mkdir()
    (exported / "README.md").write_text("---\nlicense: mit\n---\n# mine")
    (exported / "model.safetensors").write_bytes(os.urandom(5_000))
    return tmp_path


def files(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (run / "hf").iterdir()}


def push(run: Path, monkeypatch, answer: str = "") -> None:
    monkeypatch.setattr(use, "read_line", lambda prompt: answer)
    monkeypatch.setattr(main, "CHECKPOINTS", run)
    main.start(Choice("push"))


def test_enter_pushes_to_a_private_repository_named_like_the_preset(run, hub, monkeypatch, capsys):
    push(run, monkeypatch)
    assert hub.models == {"me/my-library-2": files(run)}
    assert hub.hidden == {"me/my-library-2"}
    assert f"pushed to {hub.url}/me/my-library-2" in capsys.readouterr().out
    assert [request for request in hub.requests if "/commit/" in request] == [
        "POST /api/models/me/my-library-2/commit/main"
    ]


@pytest.mark.parametrize("answer", ["q", "quit", "No", EOFError])
def test_who_does_not_want_to_push_pushes_nothing(answer, run, hub, monkeypatch, capsys, milestones):
    def ended(prompt):
        raise EOFError

    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    if answer is EOFError:
        monkeypatch.setattr(use, "read_line", ended)
        monkeypatch.setattr(main, "CHECKPOINTS", run)
        main.start(Choice("push"))
    else:
        push(run, monkeypatch, answer)
    assert (hub.models, hub.branches) == ({}, {})
    assert "nothing was pushed" in capsys.readouterr().out


def test_a_second_push_adds_what_is_new(run, hub, monkeypatch):
    for text in ("# first", "# second"):
        (run / "hf/README.md").write_text(text)
        push(run, monkeypatch, "other")
    assert hub.models == {"me/other": files(run)}
    assert sum(request.startswith("PUT") for request in hub.requests) == 1  # the weights are the same


def test_a_second_push_leaves_nothing_of_another_export(run, hub, monkeypatch):
    for name in ("tiny-F16.gguf", "chat_template.jinja"):
        (run / "hf" / name).write_text("of the first")
    push(run, monkeypatch, "other")
    for name in ("tiny-F16.gguf", "chat_template.jinja"):
        (run / "hf" / name).unlink()
    (run / "hf" / "README.md").write_text("# second")
    push(run, monkeypatch, "other")
    assert hub.models == {"me/other": files(run)}


def test_an_export_that_is_not_there_is_made(run, hub, monkeypatch):
    (run / "hf").rename(run / "made")
    monkeypatch.setattr(use, "load_tokenizer", lambda state, folder: None)
    monkeypatch.setattr(use, "gguf_obstacle", lambda path: "")
    monkeypatch.setattr(use, "export", lambda state, folder, gguf: (run / "made").rename(run / "hf"))
    push(run, monkeypatch, "me/x")
    assert hub.models == {"me/x": files(run)}


@pytest.fixture
def milestones(run) -> dict[str, dict[str, bytes]]:
    """Those of the run, by the branches that they belong to; the export has a file more."""
    (run / "hf" / "model.gguf").write_bytes(b"of the whole run")
    found = {}
    for name in ("chck_1M", "chck_2M", "chck_10M"):
        folder = run / "milestones" / name
        folder.mkdir(parents=True)
        (folder / "README.md").write_text(f"# {name}")
        (folder / "model.safetensors").write_bytes(os.urandom(5_000))
        found[f"me/x@{name}"] = {path.name: path.read_bytes() for path in folder.iterdir()}
    (run / "milestones" / ".chck_20M.tmp").mkdir()  # whose writing was interrupted
    (run / "milestones" / "tokens_5").write_text("not a folder")
    return found


def test_milestones_become_branches_of_nothing_else(run, hub, monkeypatch, capsys, milestones):
    asked = []
    monkeypatch.setattr(use, "read_line", lambda prompt: asked.append(prompt) or ("me/x" if len(asked) == 1 else ""))
    monkeypatch.setattr(main, "CHECKPOINTS", run)
    main.start(Choice("push"))
    assert "push its 3 milestones too, 15.0 kB, each to a branch such as chck_1M? Enter: yes, n: no > " in asked
    assert hub.models == {"me/x": files(run)}
    assert hub.branches == milestones
    commits = [request.rpartition("/")[2] for request in hub.requests if "/commit/" in request]
    assert commits == ["main", "chck_1M", "chck_2M", "chck_10M"]
    assert "and 3 milestones to branches there" in capsys.readouterr().out


def test_a_branch_has_nothing_of_another_run_left(run, hub, monkeypatch, milestones):
    push(run, monkeypatch, "me/x")
    hub.branches["me/x@chck_1M"]["aux_heads/model.safetensors"] = b"of another run"
    push(run, monkeypatch, "me/x")
    assert hub.branches == milestones


@pytest.mark.parametrize("answer", ["n", "NO", "\xe9"])
def test_milestones_that_are_not_wanted_stay_here(answer, run, hub, monkeypatch, milestones):
    answers = iter([b"me/x", answer.encode("latin-1")])
    monkeypatch.setattr(use, "read_line", lambda prompt: next(answers).decode())
    monkeypatch.setattr(main, "CHECKPOINTS", run)
    main.start(Choice("push"))
    assert (hub.models, hub.branches) == ({"me/x": files(run)}, {})


@pytest.mark.parametrize("where", ["/branch/chck_2M", "/tree/chck_2M", "/preupload/chck_2M", "/commit/chck_2M"])
def test_a_network_that_is_gone_at_a_milestone_is_one_message_and_the_rest_comes_later(
    run, hub, monkeypatch, milestones, where
):
    hub.fault = lambda method, path, number: 503 if where in path else None
    with pytest.raises(UserError, match="The Hub does not answer about the branch chck_2M of me/x"):
        push(run, monkeypatch, "me/x")
    assert hub.models == {"me/x": files(run)}
    assert hub.branches["me/x@chck_1M"] == milestones["me/x@chck_1M"]
    assert hub.branches.get("me/x@chck_2M", {}) == {}
    assert "me/x@chck_10M" not in hub.branches
    hub.fault = lambda method, path, number: None
    push(run, monkeypatch, "me/x")
    assert hub.branches == milestones


@pytest.mark.parametrize(
    ("token", "answer", "says"),
    [
        ("", "", "Nobody is logged in to the Hugging Face Hub: run `hf auth login`"),
        ("expired", "", "The Hub does not know the token in HF_TOKEN"),
        ("good", "them/model", r"The token in HF_TOKEN may not write to them/model .*rights.*is unchanged"),
        ("good", "a model", "'me/a model' is no name of a repository"),
        ("good", "me/x/y", "'me/x/y' is no name of a repository"),
    ],
)
def test_what_the_hub_refuses_is_one_message(run, hub, monkeypatch, token, answer, says):
    monkeypatch.setenv("HF_TOKEN", token)
    before = files(run)
    with pytest.raises(UserError, match=says) as raised:
        push(run, monkeypatch, answer)
    assert "expired" not in str(raised.value)
    assert hub.models == {}
    assert files(run) == before


@pytest.mark.parametrize("fault", ["drop", 503])
@pytest.mark.parametrize("where", ["/api/whoami-v2", "/api/repos/create", "/preupload/", "/objects/", "/commit/"])
def test_a_network_that_is_gone_loses_nothing(run, hub, monkeypatch, where, fault):
    hub.fault = lambda method, path, number: fault if where in path else None
    with pytest.raises(UserError, match="The Hub does not answer"):
        push(run, monkeypatch, "x")
    assert hub.models.get("me/x", {}) == {}
    hub.fault = lambda method, path, number: None
    push(run, monkeypatch, "x")
    assert hub.models == {"me/x": files(run)}


def test_a_large_file_whose_connection_breaks_is_sent_again_from_its_beginning(run, hub, monkeypatch):
    puts = []

    def fault(method: str, path: str, number: int) -> str | None:
        puts.extend([path] * (method == "PUT"))
        return "drop" if method == "PUT" and len(puts) < 3 else None

    hub.fault = fault
    push(run, monkeypatch)
    assert len(puts) == 3
    assert hub.models == {"me/my-library-2": files(run)}
