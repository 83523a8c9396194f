"""A run that has lost files, and a new one that cannot begin: nothing is written over, and what can be made again is."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import torch._dynamo  # reads TORCH_COMPILE_DISABLE when first imported: before `train` sets it, for the tests after these

import main
from configs.errors import UserError
from configs.schema import Preset, parse_preset
from lm.checkpoint.store import ALIAS, CURRENT
from lm.report.metrics import read_metrics
from lm.train.trainer import Trainer
from tests.program import BUDGET, fingerprint, preset_json

pytestmark = pytest.mark.slow


def preset_of(text: Path, **data) -> Preset:
    return parse_preset(json.dumps(preset_json(text, data=data)), "test")


def train(text: Path, folder: Path, *, tokens: int = BUDGET, fresh: bool = False, **data) -> None:
    """As far as `tokens`, and then as if stopped."""
    next_step = Trainer.next_step

    def until_then(trainer: Trainer, on_status):
        return next_step(trainer, on_status) if trainer.state.tokens_seen < tokens else None

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_COMPILE_DISABLE", "1")
        patch.setattr(Trainer, "next_step", until_then)
        main.train(preset_of(text, **data), token_budget=BUDGET, checkpoint_dir=folder, fresh=fresh)


def state_in(folder: Path) -> dict:
    return torch.load(folder / CURRENT, weights_only=True)


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


def test_a_model_that_is_all_there_is_of_a_run_is_resumed(run, text, whole, tmp_path):
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(run / ALIAS, alone)
    train(text, alone)
    assert fingerprint(state_in(alone)) == whole
    assert read_metrics(alone / "metrics.jsonl")[0]["tokens"] >= BUDGET // 2  # resumed, not begun anew


def other_text(text: Path, place: Path) -> Path:
    """The same files but for one, and in the same place as far as a preset knows."""
    changed = shutil.copytree(text, place)
    first = min((changed / "large").iterdir())
    first.write_text(first.read_text().upper())
    return changed


@pytest.mark.parametrize(
    ("fixed_tokenizer", "says"), [(False, "cannot be made again"), (True, "does not hold the text")]
)
def test_a_stream_that_is_gone_and_whose_sources_have_changed_is_refused_every_time(
    fixed_tokenizer, says, stopped, text, tmp_path
):
    mine, run = shutil.copytree(text, tmp_path / "text"), tmp_path / "run"
    data = {"tokenizer": str(stopped / "tokenizer.json")} if fixed_tokenizer else {}
    train(mine, run, tokens=BUDGET // 2, **data)
    shutil.rmtree(run / "stream")
    shutil.rmtree(mine)
    other_text(text, mine)
    before = (run / CURRENT).read_bytes(), (run / "tokenizer.json").read_bytes()
    for _ in range(2):
        with pytest.raises(UserError, match=says):
            train(mine, run, **data)
        assert ((run / CURRENT).read_bytes(), (run / "tokenizer.json").read_bytes()) == before


def test_a_new_run_that_cannot_begin_leaves_the_old_one_where_it_was(run, tmp_path):
    (tmp_path / "single").mkdir()
    (tmp_path / "single" / "one.txt").write_text("too little to hold any of it out\n" * 40)
    files = {path.relative_to(run): path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="no document can be held out"):
        train(tmp_path, run, fresh=True, sources=[{"type": "text", "path": str(tmp_path / "single")}])
    now = {path.relative_to(run): path.read_bytes() for path in run.rglob("*") if path.is_file()}
    changed = {path for path in files | now if files.get(path) != now.get(path)}
    assert changed <= {Path("machine.json"), Path(".lock")}
