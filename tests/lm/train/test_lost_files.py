"""A run that has lost files, and a new one that cannot begin: nothing is written over, and what can be made again is."""

import re
import shutil
from pathlib import Path

import pytest

import main
from configs.errors import UserError
from data import tokenizer as bpe
from data.journal import JournalReader, read_header
from data.packing import row_dtype
from lm.checkpoint.store import ALIAS, CURRENT
from lm.report.metrics import read_metrics
from lm.train.trainer import Trainer
from tests.program import BUDGET, fingerprint, state_in, tiny_preset

pytestmark = pytest.mark.slow


def train(text: Path, folder: Path, *, tokens: int = BUDGET, budget: int = BUDGET, fresh: bool = False, **data) -> None:
    """As far as `tokens`, and then as if stopped."""
    next_step = Trainer.next_step

    def until_then(trainer: Trainer, on_status):
        return next_step(trainer, on_status) if trainer.state.tokens_seen < tokens else None

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_COMPILE_DISABLE", "1")
        patch.setattr(Trainer, "next_step", until_then)
        main.train(tiny_preset(text, data=data), token_budget=budget, checkpoint_dir=folder, fresh=fresh)


@pytest.fixture(scope="module")
def whole(text, tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("whole")
    train(text, folder)
    return fingerprint(state_in(folder))


@pytest.fixture(scope="module")
def stopped(text, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("stopped")
    train(text, folder, tokens=BUDGET // 2)
    assert BUDGET // 2 <= state_in(folder)["tokens_seen"] < BUDGET
    return folder


@pytest.fixture
def run(stopped, tmp_path) -> Path:
    return shutil.copytree(stopped, tmp_path / "run")


def test_a_stream_that_is_gone_is_made_again(run, text, whole):
    shutil.rmtree(run / "stream")
    train(text, run)
    assert fingerprint(state_in(run)) == whole


def damage(run: Path, *names: str) -> None:
    """In the middle of each file, which is not as long as it was then."""
    for name in names:
        content = (run / name).read_bytes()
        (run / name).write_bytes(content[: len(content) // 2] + b"damage" + bytes(len(content) // 4))


@pytest.mark.parametrize(
    "names",
    [
        ["stream/rows.bin"],
        ["tokenizer.json", *(f"stream/{name}" for name in ("stream.json", "states.jsonl", "rows.bin", "heldout.npz"))],
    ],
)
def test_a_stream_that_is_damaged_is_made_again_and_this_is_said(names, run, text, whole, capsys):
    damage(run, *names)
    train(text, run)
    assert fingerprint(state_in(run)) == whole
    [said] = [line for line in capsys.readouterr().out.splitlines() if "Made again" in line]
    assert "stream was damaged or incomplete. Made again: " in said
    assert all(Path(name).name in said for name in names if name not in ("stream/rows.bin", "stream/states.jsonl"))
    assert re.search(r"rows from [\d,]+ on", said)


@pytest.mark.parametrize("sources_changed", [False, True])
def test_damage_during_a_run_is_noticed_before_it_is_trained_on(
    sources_changed, text, whole, tmp_path, monkeypatch, capsys
):
    mine = shutil.copytree(text, tmp_path / "text") if sources_changed else text
    next_step, damaged_at = Trainer.next_step, []

    def and_damage(trainer: Trainer, on_status):
        if trainer.state.tokens_seen > BUDGET // 3 and not damaged_at:
            damaged_at.append(trainer.state.tokens_seen)
            damage(tmp_path / "run", "stream/rows.bin")
            if sources_changed:
                for path in (mine / "large").iterdir():
                    path.write_text(path.read_text().upper())
        return next_step(trainer, on_status)

    monkeypatch.setattr(Trainer, "next_step", and_damage)
    if sources_changed:
        with pytest.raises(UserError, match="does not hold the text"):
            train(mine, tmp_path / "run")
        assert state_in(tmp_path / "run")["tokens_seen"] >= damaged_at[0]
        shutil.rmtree(mine)
        shutil.copytree(text, mine)
    train(mine, tmp_path / "run")
    said = capsys.readouterr()
    assert re.search(r"rows\.bin is damaged: rows [\d,]+ to [\d,]+ are not those", said.out + said.err)
    if sources_changed:
        assert state_in(tmp_path / "run")["tokens_seen"] == BUDGET
    else:
        assert fingerprint(state_in(tmp_path / "run")) == whole


def test_text_that_was_moved_is_the_same_text_and_other_text_is_not(run, text, whole, tmp_path, capsys):
    moved = shutil.copytree(text, tmp_path / "elsewhere")
    for name in ("small", "large"):
        (moved / name).rename(moved / f"{name} text")
    sources = [{"type": "text", "path": str(moved / f"{name} text")} for name in ("small", "large")]

    first = min((moved / "large text").iterdir())
    content = first.read_bytes()
    first.write_bytes(content.upper())
    with pytest.raises(UserError, match=r"source large: this run began .*/large, and .*/large text holds other text"):
        train(text, run, sources=sources)
    first.write_bytes(content)
    train(text, run, sources=sources)
    assert f"data.sources.0.path: '{text / 'small'}' -> '{moved / 'small text'}'" in capsys.readouterr().out
    assert set(read_metrics(run / "metrics.jsonl")[-1]["eval"]["per_source"]) == {"small", "large"}
    assert fingerprint(state_in(run)) == whole


def test_a_model_that_is_all_there_is_of_a_run_is_resumed(run, text, whole, tmp_path):
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(run / ALIAS, alone)
    train(text, alone)
    assert fingerprint(state_in(alone)) == whole
    assert read_metrics(alone / "metrics.jsonl")[0]["tokens"] >= BUDGET // 2  # resumed, not begun anew


def trained_on(text: Path, run: Path) -> Path:
    """Return a file that `run` has been trained on."""
    tokens = JournalReader(run / "stream", row_dtype(32, 300)).rows(0, 100)["tokens"][:, :32]
    read = bpe.load(run / "tokenizer.json").decode(tokens.ravel().tolist())
    return next(path for path in sorted((text / "large").iterdir()) if path.read_text() in read)


@pytest.mark.parametrize(
    ("fixed_tokenizer", "says"), [(False, "cannot be made again"), (True, "does not hold the text")]
)
def test_a_stream_that_is_gone_and_whose_sources_have_changed_is_refused_until_they_are_back(
    fixed_tokenizer, says, stopped, text, tmp_path
):
    mine, run = shutil.copytree(text, tmp_path / "text"), tmp_path / "run"
    data = {"tokenizer": str(stopped / "tokenizer.json")} if fixed_tokenizer else {}
    train(mine, run, tokens=BUDGET // 2, **data)
    # Without a fixed tokenizer all files: what it learns may not turn on a single one.
    for path in [trained_on(mine, run)] if fixed_tokenizer else (mine / "large").iterdir():
        path.write_text(path.read_text().upper())
    shutil.rmtree(run / "stream")
    before = (run / CURRENT).read_bytes(), (run / "tokenizer.json").read_bytes()
    for _ in range(2):
        with pytest.raises(UserError, match=says):
            train(mine, run, **data)
        assert ((run / CURRENT).read_bytes(), (run / "tokenizer.json").read_bytes()) == before
    shutil.rmtree(mine)
    shutil.copytree(text, mine)
    train(mine, run, **data)
    assert state_in(run)["tokens_seen"] == BUDGET


def test_a_new_run_that_cannot_begin_leaves_the_old_one_where_it_was(run, tmp_path):
    (tmp_path / "single").mkdir()
    (tmp_path / "single" / "one.txt").write_text("Nothing to cut.")
    files = {path.relative_to(run): path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="no document can be held out"):
        train(tmp_path, run, fresh=True, sources=[{"type": "text", "path": str(tmp_path / "single")}])
    now = {path.relative_to(run): path.read_bytes() for path in run.rglob("*") if path.is_file()}
    changed = {path for path in files | now if files.get(path) != now.get(path)}
    assert changed <= {Path("machine.json"), Path(".lock")}


def test_a_stream_without_a_checkpoint_is_taken_only_with_the_tokenizer_that_it_was_made_with(stopped, text, tmp_path):
    """Such a stream is left by a run that was killed early; the file at that path may have been changed since."""
    given, run = tmp_path / "tokenizer.json", tmp_path / "run"
    given.write_bytes((stopped / "tokenizer.json").read_bytes())
    train(text, run, tokens=4_000, tokenizer=str(given))
    for path in run.glob("*.pth"):
        path.unlink()
    small = bpe.train(["one two three"], 270)
    small.save(str(given))
    train(text, run, tokens=4_000, fresh=True, tokenizer=str(given))
    assert bpe.fingerprint(bpe.load(run / "tokenizer.json")) == bpe.fingerprint(small)
    assert [path.name for path in (run / "archive").iterdir()]
    assert 4_000 <= state_in(run)["tokens_seen"] < BUDGET


@pytest.mark.parametrize("fresh", [True, False])
def test_a_stream_without_a_checkpoint_is_for_its_number_of_tokens(fresh, text, tmp_path):
    """Its tokenizer was trained on as much text as so many tokens take."""
    run = tmp_path / "run"
    train(text, run, tokens=4_000, budget=BUDGET // 2)
    for path in run.glob("*.pth"):
        path.unlink()
    train(text, run, tokens=4_000, fresh=fresh)
    assert [path.name for path in (run / "archive").iterdir()]
    assert read_header(run / "stream")["token_budget"] == BUDGET


@pytest.mark.parametrize("left", [["hf", "report.md"], ["metrics.jsonl", "samples.md"]])
def test_what_a_run_has_left_without_its_checkpoints_is_archived_before_another_begins(left, stopped, text, tmp_path):
    run = tmp_path / "run"
    train(text, run)
    for path in [*run.glob("*.pth"), *run.iterdir()]:
        if path.exists() and path.name not in left:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    before = {path.relative_to(run): path.read_bytes() for path in run.rglob("*") if path.is_file()}
    train(text, run, tokens=4_000, fresh=True)
    [archived] = (run / "archive").iterdir()
    assert {path.relative_to(archived): path.read_bytes() for path in archived.rglob("*") if path.is_file()} == before
    assert 4_000 <= state_in(run)["tokens_seen"] < BUDGET


@pytest.mark.parametrize("asked", ["all", "0", "101", "1" * 5_000])
def test_a_wrong_number_of_profiled_steps_is_said_before_anything_is_written(
    asked, stopped, text, tmp_path, monkeypatch
):
    run = tmp_path / "run"
    shutil.copytree(stopped, run)
    before = {path.relative_to(run) for path in run.rglob("*")}
    monkeypatch.setenv("PROFILE_STEPS", asked)
    with pytest.raises(UserError, match="PROFILE_STEPS"):
        train(text, run, fresh=True)
    assert {path.relative_to(run) for path in run.rglob("*")} == before


def test_a_stream_without_a_checkpoint_of_text_elsewhere_is_in_no_new_runs_way(text, tmp_path):
    run = tmp_path / "run"
    train(text, run, tokens=1_000)
    for path in run.glob("*.pth"):
        path.unlink()
    other = tmp_path / "other"
    shutil.copytree(text, other)
    (other / "small" / "more.txt").write_text("more of it\n" * 100)
    train(other, run, tokens=1_000, fresh=True)
    assert state_in(run)["tokens_seen"] >= 1_000


def test_a_checkpoint_that_is_put_where_another_run_was_does_not_take_its_curves(run, text, tmp_path):
    other = tmp_path / "other"
    train(text, other, tokens=2_000)
    before = {name: (other / name).read_bytes() for name in ("metrics.jsonl", "samples.md")}
    for path in [*other.glob("*.pth"), other / "stream", other / "tokenizer.json"]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.copy(run / ALIAS, other / ALIAS)
    train(text, other)
    lines = read_metrics(other / "metrics.jsonl")
    assert len({line["run"] for line in lines if "run" in line}) == 1
    assert min(line["tokens"] for line in lines if "loss" in line) > BUDGET // 2
    assert {name: (other / f"{name}.bad-1").read_bytes() for name in before} == before
    train(text, other)  # and once is enough
    assert not list(other.glob("*.bad-2"))


def test_a_run_killed_before_its_first_checkpoint_leaves_no_curves(text, tmp_path):
    for _ in range(2):
        train(text, tmp_path, tokens=2_000)
        for path in tmp_path.glob("*.pth"):
            path.unlink()
    assert not list(tmp_path.glob("*.bad*"))
