"""Several processes under a real torchrun (gloo, CPU): killed, stopped, signalled, and left without torchrun.

Every run ends at its budget with the state of one that was never disturbed. FULL_COUNTS=1 kills a rank 10 times and
torchrun 5 times, and sends 5 signals of each of three kinds; `-s` shows the figures:

    FULL_COUNTS=1 python -m pytest -n 0 -s tests/test_torchrun.py
"""

import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from data.order import finish_row
from lm.report.metrics import read_metrics
from tests.anybody import AS_ANYBODY
from tests.constants import FULL_COUNTS
from tests.program import (
    ADAPTIVE,
    ALL_HEADS,
    ENVIRONMENT,
    ROOT,
    Program,
    check_logs,
    ended,
    fingerprint,
    preset_json,
    torchrun,
    workers_of,
)
from tests.warm_start import WarmPopen

BUDGET = 50_009  # room for all that is done to one run
STEP, SAVE_EVERY = 1_024, 4_000  # tokens: of two processes with the preset of `whole`
FINISH = 0.3
STALL_SECONDS, HEAD_START = 6, 5  # for the first in place of two minutes; the second as it is in lm/runtime/watch.py
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="finds the workers in /proc"),
]


def two_sources(program: Program) -> Program:
    """Its preset, all heads, a finish and adaptive weights on: as long as there are two ranks, losses are the same to the
    bit."""
    finish = {"share": FINISH, "sources": preset_json(program.text)["data"]["sources"], "source_weights": [3.0, 1.0]}
    data = {"mix_strategy": "weighted", "source_weights": [1.0, 3.0], "finish": finish}
    program.add(model={"seq_length": 64}, data=data, auxiliary=ALL_HEADS | ADAPTIVE)
    return program


@pytest.fixture(scope="module")
def whole(text, tmp_path_factory):
    """The run that nothing happened to, by two processes."""
    program = two_sources(Program(tmp_path_factory.mktemp("whole"), text, token_budget=BUDGET))
    result = program.run(launcher=torchrun(2))  # stdin is /dev/null
    assert result.code == 0, result.err
    evaluations = [line for line in read_metrics(program.checkpoints / "metrics.jsonl") if "eval" in line]
    once = ("Small language models", "no input: using the default, as with Enter", f"Done: {BUDGET:,} tokens")
    assert [result.out.count(said) for said in (*once, "held out: ")] == [1, 1, 1, len(evaluations)]
    position = program.state()["stream_position"]
    changes = position["weight_changes"]
    assert changes[0][0] * 64 < BUDGET // 2  # in force for much of the run
    assert changes[0][1] != pytest.approx([1.0, 3.0, 3.0, 1.0], rel=0.01)
    assert finish_row(FINISH, 64, BUDGET) in position["windows_begun"]
    check_logs(program, BUDGET)
    assert evaluations[-1]["finish_from"] == finish_row(FINISH, 64, BUDGET) * 64
    yield program
    program.close()


@pytest.fixture
def make(text, whole, tmp_path):
    """Programs that have measured this machine, with the preset of `whole`."""
    made = []

    def program(name: str) -> Program:
        made.append(two_sources(Program(tmp_path / name, text, token_budget=BUDGET)))
        return made[-1]

    yield program
    for one in made:
        for worker in workers_of(one).values():
            with suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
        one.close()


def processes_of(program: Program, word: bytes = b"") -> list[int]:
    """Its torchrun, its workers, its producer and their children: all whose command has `word` in it."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            command, environment = (path / "cmdline").read_bytes(), (path / "environ").read_bytes()
            if str(program.folder).encode() in command + environment and word in command:
                found.append(int(path.name))
    return found


def seconds_until(condition, limit: float) -> float:
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < limit, f"not within {limit} s"
        time.sleep(0.02)
    return time.monotonic() - began


def assert_same_as(whole: Program, program: Program) -> None:
    assert program.state()["tokens_seen"] == BUDGET
    assert fingerprint(program.state()) == fingerprint(whole.state())
    rows = "stream/rows.bin"
    assert (program.checkpoints / rows).read_bytes() == (whole.checkpoints / rows).read_bytes()
    check_logs(program, BUDGET)


# What is done, and to whom: torchrun itself, or a worker.
INTERRUPTIONS = [
    (signal.SIGKILL, "rank 0"),
    (signal.SIGKILL, "torchrun"),
    (signal.SIGINT, "torchrun"),
    (signal.SIGHUP, "session"),  # as a closed terminal does; its workers are in sessions of their own
]
if FULL_COUNTS:
    INTERRUPTIONS += [
        (signal.SIGKILL, "rank 1"),
        (signal.SIGTERM, "torchrun"),
        (signal.SIGHUP, "torchrun"),
        (signal.SIGTERM, "rank 1"),
    ]


@pytest.mark.parametrize("chain", range(5 if FULL_COUNTS else 1))
def test_interrupted_in_every_way_it_ends_the_same_and_leaves_no_orphan(chain, whole, make):
    program, rng = make("program"), random.Random(chain)
    for number, target in rng.sample(INTERRUPTIONS, len(INTERRUPTIONS)):
        process = program.start(launcher=torchrun(2))
        seconds_until(lambda: len(workers_of(program)) == 2, 300)
        program.wait_for(program.tokens_in_metrics() + rng.randrange(1, 3_000), process)
        time.sleep(rng.uniform(0.0, 0.1))
        assert process.poll() is None, "the run was over before it was disturbed"
        before = program.tokens_in_metrics()
        if target == "session":
            os.killpg(process.pid, number)
        else:
            os.kill(process.pid if target == "torchrun" else workers_of(program)[int(target[-1])], number)
        seconds = seconds_until(lambda p=process: p.poll() is not None, 90)
        orphaned = seconds_until(lambda: not processes_of(program), 20)
        result = ended(process)
        seen = program.state()["tokens_seen"] if (program.checkpoints / "lm_current.pth").exists() else 0
        print(
            f"{number.name} to {target} at {before:,} tokens: torchrun ended after {seconds:.1f} s, the last of its "
            f"processes {orphaned:.1f} s later; {seen:,} tokens are saved"
        )
        if (number, target) != (signal.SIGKILL, "rank 0"):  # which alone can save
            was_due = seen // SAVE_EVERY > (seen - STEP) // SAVE_EVERY  # such a save is not said
            assert f"Saved at {seen:,} tokens" in result.out or was_due
            assert seen >= before
        if number != signal.SIGKILL:
            assert result.err.count("Stopping as soon as it is safe") == 1
        elif target != "torchrun":
            other = 1 - int(target[-1])
            assert f"Rank {other} ends: another process of this job has ended" in result.err
        assert "This is a defect" not in result.err
    result = program.run(launcher=torchrun(2))
    assert result.code == 0, result.err
    assert_same_as(whole, program)


@pytest.mark.parametrize("after", [0.0, 0.1, 0.5, 1.0, 3.0] if FULL_COUNTS else [0.0])
def test_workers_that_just_began_do_not_outlive_torchrun(after, make):
    program = make("program")
    process = program.start(launcher=torchrun(2))
    seconds_until(lambda: len(workers_of(program)) == 2, 300)
    time.sleep(after)
    process.kill()
    print(f"the last worker ended {seconds_until(lambda: not processes_of(program), 20):.1f} s after torchrun")


def test_ctrl_c_at_the_menu_ends_all_at_once(make):
    program = make("program")
    launcher = ("/bin/sh", "-c", f'sleep 1000 | exec {" ".join(torchrun(2))} "$0"')  # a user who does not answer
    process = program.start(launcher=launcher)
    while "Enter: start" not in process.stdout.readline():
        assert process.poll() is None
    (agent,) = (
        pid
        for pid in processes_of(program, b"torch.distributed.run")
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1] == str(process.pid)
    )
    time.sleep(1)  # the other rank is waiting for the answer by now
    os.kill(agent, signal.SIGINT)
    print(f"ended after {seconds_until(lambda: not workers_of(program), 20):.1f} s")
    os.killpg(process.pid, signal.SIGKILL)


def test_a_stalled_rank_ends_the_job_and_a_waiting_one_does_not(whole, make):
    program = make("program")
    program.change("lm/runtime/watch.py", "timedelta(minutes=2)", f"timedelta(seconds={STALL_SECONDS})")
    for rank in (1, 0):
        process = program.start(launcher=torchrun(2))
        program.wait_for(program.tokens_in_metrics() + 3_000, process)
        workers = workers_of(program)
        os.kill(workers[rank], signal.SIGSTOP)
        limit = STALL_SECONDS + HEAD_START + 60
        seconds = seconds_until(lambda w=workers, r=1 - rank: w[r] not in processes_of(program), limit)
        if not FULL_COUNTS:  # torchrun would wait 30 s more for it
            os.kill(workers[rank], signal.SIGCONT)
        result = ended(process)
        said = rf"Rank {rank} \(process {workers[rank]} on .*\) has not answered for 6 s: .*"
        [message] = re.findall(said, result.err)  # the other, once it is continued, may say the same of this one
        print(f"rank {rank} stopped; the other left after {seconds:.1f} s: {message}")
        assert "This is a defect" not in result.err
        assert result.code == 1
        if rank:  # the first rank saves the steps that both have taken
            assert program.state()["tokens_seen"] >= program.tokens_in_metrics()
        assert not processes_of(program)

    process = program.start(launcher=torchrun(2))
    seconds_until(lambda: producers(program), 300)
    (producer,) = producers(program)
    os.kill(producer, signal.SIGSTOP)  # sources that do not answer: the first rank waits, and the other for it
    time.sleep(STALL_SECONDS + HEAD_START + 2)
    os.kill(producer, signal.SIGCONT)
    result = ended(process)
    assert result.code == 0, result.err
    assert_same_as(whole, program)


def test_a_rank_needs_no_disk_and_no_presets_of_its_own(whole, make):
    program, second = make("program"), make("second")
    second.add(model={"hidden_size": 64}, train={"seed": 9})  # not the run's
    shutil.rmtree(second.checkpoints)
    second.folder.chmod(0o555)
    there = f'exec {shlex.join(AS_ANYBODY)} "$1" {second.folder}/main.py'
    each = f'if [ "$RANK" = 1 ]; then {there}; fi; umask 077; exec "$@"'
    result = program.run(launcher=(*torchrun(2), "--no-python", "/bin/sh", "-c", each, "sh", sys.executable))
    assert result.code == 0, result.err
    assert "Traceback" not in result.err
    assert_same_as(whole, program)
    assert not second.written()
    second.folder.chmod(0o755)


def producers(program: Program) -> list[int]:
    return processes_of(program, b"data.producer")


# ---- budgets, batches and numbers of processes that do not divide each other -----------------------------------------

RAGGED_BUDGET, RAGGED_BATCH, RAGGED_LENGTH = 20_011, 7, 37


def report_of_this_rank(preset: Path, folder: Path, stop_at: int) -> None:
    """One run in this process, asked to stop at `stop_at` tokens; what it then knows is left beside the preset."""
    import main
    from configs.schema import load_preset
    from lm.train.trainer import Trainer

    runs: list[Trainer] = []
    train_on = Trainer.train_on

    def and_stop(run: Trainer, step):
        runs[:] = [run]
        result = train_on(run, step)
        run.stop.asked |= run.state.tokens_seen >= stop_at
        return result

    Trainer.train_on = and_stop
    main.train(load_preset(preset), token_budget=RAGGED_BUDGET, checkpoint_dir=folder)
    known = {
        "tokens_seen": runs[0].state.tokens_seen,
        "text": runs[0].state.text_digest,
        "rows_per_step": runs[0].state.global_batch_rows,
        "steps": runs[0].state.num_steps,
    }
    (folder.parent / f"{folder.name}.{os.environ['RANK']}.json").write_text(json.dumps(known))


@pytest.fixture
def ragged(text, tmp_path):
    """Trains (or goes on) in a folder with so many processes and micro-batches; what each rank then knows."""

    def train(name: str, num_processes: int, accumulation_steps: int, stop_at: int = 10**9) -> list[dict]:
        preset = tmp_path / f"{name}.json"
        train = {"per_gpu_batch_size": RAGGED_BATCH, "accumulation_steps": accumulation_steps}
        preset.write_text(json.dumps(preset_json(text, model={"seq_length": RAGGED_LENGTH}, train=train)))
        result = ended(
            WarmPopen(
                [*torchrun(num_processes), __file__, str(preset), str(tmp_path / name), str(stop_at)],
                env=os.environ | ENVIRONMENT | {"PYTHONPATH": str(ROOT)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        assert result.code == 0, result.err
        return [json.loads((tmp_path / f"{name}.{rank}.json").read_text()) for rank in range(num_processes)]

    return train


def test_every_rank_ends_at_exactly_the_budget_with_the_same_text(ragged):
    assert all(RAGGED_BUDGET % number for number in (2, 3, RAGGED_BATCH, RAGGED_LENGTH))
    (alone,) = ragged("alone", 1, 6)
    assert alone["tokens_seen"] == RAGGED_BUDGET
    # Other numbers of processes take the same steps, also where rows cannot be shared out evenly.
    for size, stop_at in ((3, 8_000), (4, 10**9)):
        ranks = ragged("changing", size, 2, stop_at)
        assert len(ranks) == size
        assert all(known == ranks[0] for known in ranks)
        assert min(stop_at, RAGGED_BUDGET) <= ranks[0]["tokens_seen"]
        assert ranks[0]["rows_per_step"] == 6 * RAGGED_BATCH
    assert ranks[0] == alone


if __name__ == "__main__":
    report_of_this_rank(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
