"""SIGKILL at any instant leaves no trace: a run killed again and again ends as one that never was, to the last bit.

The real program with its real producer, every head and adaptive sources on, from random weights and from a model. Chains
of kills, each chain one run: the trainer (with all it started) at a random instant from its first line of code on, while
it saves, while a checkpoint takes its names, between the last step and the report; or the producer alone.
FULL_COUNTS=1 goes on until 220 have fallen where they were meant to, a quarter of them on the producer alone: half an
hour on two cores. `-s` shows the figures:

    FULL_COUNTS=1 python -m pytest -n 0 -s tests/test_kills.py
"""

import os
import random
import signal
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

from data.journal import run_ahead_rows
from lm.checkpoint.store import ALIAS, CURRENT, PREVIOUS, PREVIOUS_2
from lm.report.metrics import read_metrics
from lm.runtime.files import same_file
from tests.constants import FULL_COUNTS
from tests.hf_models import save, transformers_model
from tests.program import (
    ADAPTIVE,
    ALL_HEADS,
    BUDGET,
    Program,
    check_logs,
    ended,
    fingerprint,
    preset_json,
    producer_of,
    write_text,
)

KILLS = {"any instant": 100, "a save": 60, "rotation": 40, "the end": 20}
if not FULL_COUNTS:
    KILLS = {"any instant": 3, "a save": 1, "rotation": 1, "the end": 1}
NUM_ALONE = sum(KILLS.values()) // 4  # of them on the producer alone
CHANCE_ALONE = 0.4  # at any instant and inside a save: some find no producer
CHAIN = 10 if FULL_COUNTS else 4
START_SECONDS = 3.0  # about as long as a start takes, in which a kill may fall as well
END_SECONDS = 1.5  # so are evaluation, export and report

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="finds the producer in /proc")]


def temporary(folder: Path, name: str, process) -> Path:
    """The file that will have this name: of `process`, not of one that was killed before."""
    return folder / f".{Path(name).stem}.{process.pid}.tmp"


def is_saving(folder: Path, process) -> bool:
    return temporary(folder, CURRENT, process).exists()


def is_rotating(folder: Path, process) -> bool:
    """Between the first new name and the last."""
    links = (temporary(folder, name, process) for name in (PREVIOUS_2, PREVIOUS, ALIAS))
    with suppress(FileNotFoundError):  # it got its last name while we looked
        return any(link.exists() for link in links) or same_file(temporary(folder, CURRENT, process), folder / ALIAS)
    return False


def wait_until(there, process, seconds: float = 300.0) -> None:
    """Looks without a pause: what is waited for lasts a thousandth of a second."""
    deadline = time.monotonic() + seconds
    while not there() and process.poll() is None:
        assert time.monotonic() < deadline, "no progress within five minutes"


def strike(program: Program, process, where: str, tokens: int, rng: random.Random) -> tuple[str, bool] | None:
    """Kills once, when about `tokens` are trained on; returns where that fell in truth, and whether it was the producer
    alone. None if the run was over before."""
    folder = program.checkpoints
    if where == "the end":
        program.wait_for(BUDGET, process)
        time.sleep(rng.uniform(0.0, END_SECONDS))
    elif where == "any instant" and rng.random() < 0.2:
        time.sleep(rng.uniform(0.0, START_SECONDS))
    else:
        program.wait_for(tokens, process)
        if where == "any instant":
            time.sleep(rng.uniform(0.0, 0.05))
        else:
            there = is_saving if where == "a save" else is_rotating
            wait_until(lambda: there(folder, process), process)
            if where == "a save":
                time.sleep(rng.uniform(0.0, 0.002))
    producer = producer_of(process) if where in ("any instant", "a save") and rng.random() < CHANCE_ALONE else None
    if process.poll() is not None:
        return None
    if producer:
        os.kill(producer, signal.SIGKILL)
    else:
        with suppress(ProcessLookupError):  # it was over just then
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if where in ("a save", "rotation"):
        saving = "a save" if is_saving(folder, process) else "just after a save"
        where = "rotation" if is_rotating(folder, process) else saving
    return where, producer is not None


def test_kills_leave_no_trace(tmp_path):
    text, rng, killed = write_text(tmp_path / "text"), random.Random(1), Counter()
    sources = preset_json(text)["data"]["sources"]
    start = save(
        transformers_model("llama"), tmp_path / "model", texts=[path.read_text() for path in text.glob("large/*")]
    )
    finish = {"share": 0.3, "sources": sources, "source_weights": [1.0, 2.0]}
    weighted_data = {"source_weights": [1.0, 3.0], "finish": finish}
    made: list[Program] = []

    def program(strategy: str) -> Program:
        made.append(Program(tmp_path / f"{len(made)}", text))
        weighted = strategy == "weighted"
        made[-1].add(
            model={"seq_length": 64} | ({} if weighted else {"init_from": str(start)}),
            train={"save_every_tokens": 1_500},
            data={"mix_strategy": strategy} | (weighted_data if weighted else {}),
            auxiliary=ALL_HEADS | ADAPTIVE | {"adaptive_rule": "loss_slope" if weighted else "relative_loss"},
        )
        return made[-1]

    whole = {strategy: program(strategy) for strategy in ("round_robin", "weighted")}
    for strategy, uninterrupted in whole.items():
        assert uninterrupted.run(warm=False).code == 0  # with another hash seed than all that are killed
        changes = uninterrupted.state()["stream_position"]["weight_changes"]
        base = [1.0, 3.0, 1.0, 2.0] if strategy == "weighted" else [1.0, 1.0]
        moved = [row * 64 for row, weights in changes if weights != pytest.approx(base, rel=0.01)]
        assert moved[0] < BUDGET - 5_000  # adapted weights are in force well before the end
        for line in read_metrics(uninterrupted.checkpoints / "metrics.jsonl"):
            if "adapted" in line:  # and behind every row that can be there, however slow the producer
                assert line["adapted"]["from_tokens"] >= line["tokens"] // 64 * 64 + run_ahead_rows(64, BUDGET) * 64
        check_logs(uninterrupted)

    left, alone = Counter(KILLS), 0
    try:
        while +left or (FULL_COUNTS and alone < NUM_ALONE):
            strategy = rng.choice(list(whole))
            run, process = program(strategy), None
            for number in range(CHAIN):
                if process is None or process.poll() is not None:
                    process = run.start()
                trained = run.state()["tokens_seen"] if (run.checkpoints / CURRENT).exists() else 0
                tokens = trained + rng.randrange(1, max(2, (BUDGET - 4_000 - trained) // (CHAIN - number)))
                where = rng.choice([where for where in left.elements() if where != "the end"] or ["any instant"])
                if number == CHAIN - 1 and left["the end"] > 0:
                    where = "the end"
                if struck := strike(run, process, where, tokens, rng):
                    fell, on_producer = struck
                    killed[fell] += 1
                    alone += on_producer
                    left[fell if FULL_COUNTS else where] -= 1
                if process.poll() is not None:
                    process.communicate()
                    assert not trained or run.state()  # lm_current.pth is there and loads
            if process.poll() is None or not (run.checkpoints / "report.md").exists():
                result = ended(process if process.poll() is None else run.start())
                assert result.code == 0, result.err
            assert (run.checkpoints / "report.md").exists()
            assert fingerprint(run.state()) == fingerprint(whole[strategy].state())
            rows = "stream/rows.bin"
            assert (run.checkpoints / rows).read_bytes() == (whole[strategy].checkpoints / rows).read_bytes()
            check_logs(run)
            assert not list(run.checkpoints.rglob("*.tmp"))
            told = f"{sum(killed.values())} kills {dict(killed)}, {alone} of them on the producer alone"
            print(f"after {told}: equal to the last bit", flush=True)
    finally:
        for one in made:
            one.close()
