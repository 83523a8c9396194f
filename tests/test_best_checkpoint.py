"""A tiny text that is read many times: the best checkpoint is kept through kills, and is what the run exports.

The real program. A small model knows the text by heart after a while, and its held-out loss rises.
"""

import heapq
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import main
from configs.schema import load_preset
from lm.checkpoint.archive import archive_run
from lm.checkpoint.store import BEST, CURRENT
from lm.inference.load import load_state
from lm.report.metrics import read_metrics
from lm.runtime.files import same_file
from tests.constants import ROOT
from tests.program import Program, fingerprint

pytestmark = pytest.mark.slow

BUDGET = 45_000
MODEL = {"hidden_size": 64, "num_layers": 2, "seq_length": 32, "vocab_size": 280}
TRAIN = {
    "per_gpu_batch_size": 8, "accumulation_steps": 1, "eval_every_tokens": 10_000, "save_every_tokens": 4_000,
    "sample_every_tokens": 10**6, "warmup_fraction": 0.0, "decay_fraction": 0.0, "matrix_learning_rate": 0.05,
    "embedding_learning_rate": 0.3, "output_learning_rate": 0.01,
}  # fmt: skip


@pytest.fixture
def program(tmp_path):
    text = tmp_path / "text"
    text.mkdir()
    (text / "mine.txt").write_text(Path(heapq.__file__).read_text()[:3_000])
    made = Program(tmp_path / "program", text, token_budget=BUDGET)
    made.add(model=MODEL, train=TRAIN, data={"sources": [{"type": "text", "label": "mine", "path": str(text)}]})
    yield made
    made.close()


def saved_best(program: Program, tokens: int) -> bool:
    return (program.checkpoints / BEST).exists() and program.state(BEST)["tokens_seen"] == tokens


def evaluations(program: Program) -> dict[int, float]:
    lines = read_metrics(program.checkpoints / "metrics.jsonl")
    return {line["tokens"]: line["eval"]["loss"] for line in lines if line.get("eval")}


def test_the_best_checkpoint_survives_kills_and_is_exported(program, monkeypatch):
    whole = program.run("\n")
    assert whole.code == 0, whole.err
    losses = evaluations(program)
    best = min(losses, key=losses.get)
    assert list(losses)[:4] == [
        1_280,
        2_560,
        5_120,
        10_240,
    ]  # an eighth, a quarter, a half of the interval; whole steps
    assert best < 40_000, "the text is not known by heart yet: this test shows nothing"
    assert losses[BUDGET] > 1.1 * losses[best]
    state = program.state(BEST)
    assert (state["tokens_seen"], state["best_loss"]) == (best, losses[best])
    check_that_it_is_exported(program, best)
    assert f"lm_best.pth, after {best:,} tokens: on held-out text it is " in whole.out
    assert "some tens and the model knows it by heart" in " ".join(whole.out.split())
    assert '"repeat": 4' in whole.out

    first = program.checkpoints.rename(program.folder / "first")
    for tokens in (best + 500, best + 15_000):
        process = program.start("\n")
        program.wait_for(tokens, process)
        while process.poll() is None and not saved_best(program, best):
            time.sleep(0.002)  # it is written in the background
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert saved_best(program, best)
    assert program.run("\n").code == 0
    assert evaluations(program) == losses
    assert fingerprint(program.state(BEST)) == fingerprint(torch.load(first / BEST, weights_only=True))
    check_that_it_is_exported(program, best)

    # The report is made again: by an improvement within its error the last checkpoint stays the one.
    monkeypatch.setenv("TORCH_COMPILE_DISABLE", "1")
    monkeypatch.setattr("lm.train.best.improvement", lambda *_: (0.1, 0.2))
    (first / "report.md").unlink()
    main.train(load_preset(program.folder / "configs" / "00_tiny.json"), token_budget=BUDGET, checkpoint_dir=first)
    assert "by no more than the error (0.1000 ± 0.2000 bits per byte)" in (first / "report.md").read_text()
    assert load_state(first)[0]["tokens_seen"] == BUDGET

    archived = archive_run(program.checkpoints)
    assert not (program.checkpoints / BEST).exists()
    assert load_state(archived)[0]["tokens_seen"] == best


def test_a_last_checkpoint_that_is_the_best_is_exported_and_nothing_is_recorded_twice(program, tmp_path, monkeypatch):
    """Also by a run that was killed before its report: the end of a run is measured again as a whole."""
    monkeypatch.setenv("TORCH_COMPILE_DISABLE", "1")
    preset, run = load_preset(program.folder / "configs" / "00_tiny.json"), tmp_path / "run"
    main.train(preset, token_budget=5_000, checkpoint_dir=run)
    for _ in range(2):
        lines = read_metrics(run / "metrics.jsonl")
        assert [line["tokens"] for line in lines if "eval" in line] == [1_280, 2_560, 5_000]
        assert [line["best"] for line in lines if "best" in line] == [{"tokens": 5_000, "exported": False}]
        assert same_file(run / BEST, run / CURRENT)
        assert "Exported is the last checkpoint: no earlier one has" in (run / "report.md").read_text()
        assert load_state(run)[0]["tokens_seen"] == 5_000
        (run / "report.md").unlink()
        main.train(preset, token_budget=5_000, checkpoint_dir=run)


def check_that_it_is_exported(program: Program, best: int) -> None:
    """The export, the model card, the report and what `t` loads are of the best checkpoint; the last one is kept."""
    folder = program.checkpoints
    weights, last = load_file(folder / "hf" / "model.safetensors"), program.state(CURRENT)
    assert torch.equal(weights["lm_head.weight"], program.state(BEST)["model"]["output.weight"])
    assert last["tokens_seen"] == BUDGET
    assert not torch.equal(weights["lm_head.weight"], last["model"]["output.weight"])
    card = (folder / "hf" / "README.md").read_text()
    assert f"that of {best:,} tokens, whose held-out loss is the lowest of the run" in card
    assert "unfinished" not in card
    assert f"Exported is lm_best.pth, after {best:,} tokens" in (folder / "report.md").read_text()
    assert load_state(folder)[0]["tokens_seen"] == best


def test_no_best_checkpoint_is_kept_of_text_that_is_read_once(program):
    text = Path(program.text)
    shutil.rmtree(text)
    for number, path in enumerate(sorted((ROOT / "lm").rglob("*.py"))):
        text.mkdir(exist_ok=True)
        (text / f"{number}.txt").write_text(path.read_text())
    source = {"type": "text", "label": "mine", "path": str(text), "repeat": 1}
    program.add(model=MODEL, train=TRAIN | {"eval_every_tokens": 5_000}, data={"sources": [source]})
    ended = program.run("\n")
    assert ended.code == 0, ended.err
    assert "heart" not in ended.out
    assert not (program.checkpoints / BEST).exists()
