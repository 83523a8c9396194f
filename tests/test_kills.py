"""SIGKILL at any instant leaves no trace: a run killed again and again ends as one that never was, to the last bit.

The real program with its real producer, every head and adaptive sources on. Chains of kills, each chain one run: the
trainer (with all it started) at a random instant from its first line of code on, while it saves, while a checkpoint
takes its names; or the producer alone. FULL_COUNTS=1 makes it 200 kills, a quarter of an hour on two cores; `-s` shows
the figures:

    FULL_COUNTS=1 python -m pytest -n 0 -s tests/test_kills.py
"""

import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from data.batches import run_ahead_rows
from lm.checkpoint import ALIAS, CURRENT, GENERATIONS, PREVIOUS
from lm.files import same_file
from lm.metrics import read_metrics
from tests.program import (
    ADAPTIVE,
    ALL_HEADS,
    BUDGET,
    Program,
    check_logs,
    ended,
    fingerprint,
    producer_of,
    write_text,
)

FULL_COUNTS = os.environ.get("FULL_COUNTS") == "1"
KILLS = {"any instant": 100, "a save": 60, "rotation": 40}
if not FULL_COUNTS:
    KILLS = {"any instant": 4, "a save": 2, "rotation": 2}
PRODUCER_ALONE = (
    0.45  # of the kills at any instant and inside a save: some find no producer; it comes to a quarter of all
)
CHAIN = 10 if FULL_COUNTS else 4
START_SECONDS = 6.0  # about as long as a start takes, in which a kill may fall as well

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="finds the producer in /proc")]


def is_saving(folder: Path) -> bool:
    return any(folder.glob(".lm_current.*.tmp"))


def is_rotating(folder: Path) -> bool:
    """Between the first new name and the last."""
    stems = {Path(name).stem for name in (*GENERATIONS, ALIAS)} - {Path(CURRENT).stem}
    links = any(path.name.split(".")[1] in stems for path in folder.glob(".*.tmp"))
    return links or same_file(folder / PREVIOUS, folder / CURRENT)


def wait_until(there, process, seconds: float = 60.0) -> None:
    """Looks without a pause: what is waited for lasts a thousandth of a second."""
    deadline = time.monotonic() + seconds
    while not there() and process.poll() is None:
        assert time.monotonic() < deadline, "no progress within a minute"


def strike(program: Program, process, where: str, tokens: int, rng: random.Random) -> str | None:
    """Kills once, when about `tokens` are trained on; says where it was, or None if the run was over before."""
    folder = program.checkpoints
    if where == "any instant" and rng.random() < 0.2:
        time.sleep(rng.uniform(0.0, START_SECONDS))
    else:
        program.wait_for(tokens, process)
        if where == "any instant":
            time.sleep(rng.uniform(0.0, 0.05))
        else:
            wait_until(lambda: is_saving(folder) if where == "a save" else is_rotating(folder), process)
            time.sleep(rng.uniform(0.0, 0.002) if where == "a save" else rng.uniform(0.0, 0.0001))
    if where != "rotation" and rng.random() < PRODUCER_ALONE and (producer := producer_of(process)):
        os.kill(producer, signal.SIGKILL)
        return "the producer alone"
    if process.poll() is not None:
        return None
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return "rotation" if is_rotating(folder) else "a save" if is_saving(folder) else "any instant"


def test_kills_leave_no_trace(tmp_path):
    text, rng, killed = write_text(tmp_path / "text"), random.Random(1), Counter()
    made: list[Program] = []

    def program(strategy: str) -> Program:
        made.append(Program(tmp_path / f"{len(made)}", text))
        weighted = strategy == "weighted"
        made[-1].add(
            model={"seq_length": 64},
            train={"save_every_tokens": 1_500},
            data={"mix_strategy": strategy} | ({"source_weights": [1.0, 3.0]} if weighted else {}),
            auxiliary=ALL_HEADS | ADAPTIVE | {"adaptive_rule": "loss_slope" if weighted else "relative_loss"},
        )
        return made[-1]

    whole = {strategy: program(strategy) for strategy in ("round_robin", "weighted")}
    for strategy, uninterrupted in whole.items():
        assert uninterrupted.run().code == 0
        changes = uninterrupted.state()["stream_position"]["weight_changes"]
        base = [1.0, 3.0] if strategy == "weighted" else [1.0, 1.0]
        moved = [row * 64 for row, weights in changes if weights != pytest.approx(base, rel=0.01)]
        assert moved[0] < BUDGET - 5_000  # adapted weights are in force well before the end
        for line in read_metrics(uninterrupted.checkpoints / "metrics.jsonl"):
            if "adapted" in line:  # and behind every row that can be there, however slow the producer
                assert line["adapted"]["from_tokens"] >= line["tokens"] // 64 * 64 + run_ahead_rows(64, BUDGET) * 64
        check_logs(uninterrupted)

    planned = [where for where, count in KILLS.items() for _ in range(count)]
    rng.shuffle(planned)
    try:
        while planned:
            strategy = rng.choice(list(whole))
            run, process = program(strategy), None
            chain, planned = planned[:CHAIN], planned[CHAIN:]
            for number, where in enumerate(chain):
                if process is None or process.poll() is not None:
                    process = run.start()
                trained = run.state()["tokens_seen"] if (run.checkpoints / CURRENT).exists() else 0
                tokens = trained + rng.randrange(1, max(2, (BUDGET - 4_000 - trained) // (CHAIN - number)))
                if struck := strike(run, process, where, tokens, rng):
                    killed[struck] += 1
                else:
                    planned.append(where)  # the run was over before: once more in another
                if process.poll() is not None:
                    process.communicate()
                    assert not trained or run.state()  # lm_current.pth is there and loads
            if process.poll() is not None:
                process = run.start()
            result = ended(process)
            assert result.code == 0, result.err
            assert fingerprint(run.state()) == fingerprint(whole[strategy].state())
            rows = "stream/rows.bin"
            assert (run.checkpoints / rows).read_bytes() == (whole[strategy].checkpoints / rows).read_bytes()
            check_logs(run)
            print(f"after {sum(killed.values())} kills {dict(killed)}: equal to the last bit", flush=True)
    finally:
        for one in made:
            one.close()
    assert killed["a save"] + killed["rotation"] > 0.2 * sum(killed.values())
