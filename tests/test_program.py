"""`python main.py` as its user meets it: the menu, the choices, the mistakes."""

import os
import re
import shutil
import signal
import sys

import pytest

from lm.checkpoint.store import inspect
from lm.report.metrics import read_metrics
from tests.anybody import AS_ANYBODY
from tests.lm.report.test_tensorboard import curves
from tests.program import BUDGET, Program, check_logs, ended, torchrun

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(text, tmp_path_factory) -> Program:
    """A program whose only preset was trained to the end, by a start that cannot be answered."""
    program = Program(tmp_path_factory.mktemp("program"), text)
    program.add()
    program.first = program.run()
    yield program
    program.close()


@pytest.fixture
def program(text, finished, tmp_path) -> Program:
    """One that has measured this machine and trained nothing."""
    program = Program(tmp_path, text)
    yield program
    program.close()


def test_without_anybody_to_ask_enter_is_taken_and_said(finished):
    assert finished.first.code == 0, finished.first.err
    assert "no input: using the default, as with Enter" in finished.first.out
    assert "Enter: start 00_tiny" in finished.first.out
    assert f"Done: {BUDGET:,} tokens" in finished.first.out
    assert "✓ small  ✓ large" in finished.first.out
    assert re.search(
        r"\n20\.0k of 20\.0k tokens, \S+ tokens/s, 0 s left, loss \S+, MFU \d+%, \S+ TFLOP/s, \S+ [MG]B\n",
        "\n" + finished.first.err,
    )
    assert all(line.isprintable() for line in finished.first.err.split("\n"))  # a log: nothing moves a cursor
    assert finished.state()["tokens_seen"] == BUDGET
    assert not list(finished.elsewhere.iterdir())


def test_a_finished_run_is_left_by_enter_and_offers_more(finished):
    before = finished.state()["tokens_seen"], (finished.checkpoints / "report.md").read_bytes()
    result = finished.run()
    assert result.code == 0, result.err
    for offer in ("n  new run", "t  talk to the model", "e  export it", "q  quit", "Enter: leave; tiny is finished"):
        assert offer in result.out
    assert (finished.state()["tokens_seen"], (finished.checkpoints / "report.md").read_bytes()) == before


def test_talking_to_the_model(finished):
    result = finished.run("t\nimport os\n/temperature 0.1\n\n")
    assert result.code == 0, result.err
    assert re.search(r"\[\d+ tokens?, \d+ tokens/s, seed \d+\]", result.out)
    assert "temperature = 0.1" in result.out


def test_exporting_the_model(finished):
    shutil.rmtree(finished.checkpoints / "hf")
    result = finished.run("e\n")
    assert result.code == 0, result.err
    exported = finished.checkpoints / "hf"
    assert (exported / "model.safetensors").exists()
    assert (exported / "model.gguf").exists()
    card = (exported / "README.md").read_text()
    for part in (
        f"{BUDGET:,} in ",
        "| small | local files",
        f"## Held-out text after {BUDGET:,}",
        f"## Samples after {BUDGET:,}",
    ):
        assert part in card
    assert "unfinished" not in card
    assert list((finished.checkpoints / "tensorboard").iterdir())


def test_a_report_that_was_interrupted_is_made_by_the_next_enter(finished):
    (finished.checkpoints / "report.md").unlink()
    result = finished.run("\n")
    assert result.code == 0, result.err
    assert (finished.checkpoints / "report.md").exists()
    assert finished.state()["tokens_seen"] == BUDGET
    check_logs(finished)


def test_another_preset_puts_the_run_aside_and_a1_takes_it_up(program):
    budget = 3 * BUDGET  # not over before the signal comes
    program.change("configs/schema.py", f"TOKEN_BUDGET = {BUDGET}", f"TOKEN_BUDGET = {budget}")
    program.add()
    program.add("01_other", name="other", model={"hidden_size": 48})
    process = program.start("0\n")
    program.wait_for(5_000, process)
    process.send_signal(signal.SIGINT)
    assert ended(process).code == 0
    seen = program.state()["tokens_seen"]

    result = program.run("other\n")
    assert result.code == 0, result.err
    (aside,) = (program.checkpoints / "archive").iterdir()
    assert f"is archived in checkpoints/archive/{aside.name}." in result.out
    assert (inspect(aside).name, inspect(aside).tokens_seen) == ("tiny", seen)
    assert inspect(program.checkpoints).name == "other"

    preset_file = next((program.checkpoints.parent / "configs").glob("00_*.json"))
    preset_file.write_text(preset_file.read_text().replace("{", "", 1))
    result = program.run("a1\n")
    assert result.code == 0, result.err
    goes_on = (
        f"No preset in configs/ is named 'tiny' ({preset_file.name}: broken): the run resumes with its own settings."
    )
    assert goes_on in result.out
    assert "The run that was here is archived in checkpoints/archive/other" in result.out
    assert inspect(program.checkpoints).name == "tiny"
    assert program.state()["tokens_seen"] == budget
    (aside,) = (program.checkpoints / "archive").iterdir()
    assert (inspect(aside).name, inspect(aside).tokens_seen) == ("other", budget)
    for run in (program.checkpoints, aside):
        steps = [
            (line["tokens"], pytest.approx(line["loss"]))
            for line in read_metrics(run / "metrics.jsonl")
            if "loss" in line
        ]
        assert curves(run / "tensorboard")["training/loss"] == steps

    shutil.rmtree(program.checkpoints / "hf")
    result = program.run("e\n1\n")
    assert result.code == 0, result.err
    assert "# other" in (aside / "hf" / "README.md").read_text()
    assert not (program.checkpoints / "hf").exists()
    result = program.run("e\n2\n")
    assert (result.code, "there is no run '2': answer with 0 to 1" in result.err) == (2, True)


def test_a_run_killed_before_its_first_checkpoint_is_in_nobodys_way(program):
    program.add(train={"save_every_tokens": 10**9})
    program.add("01_other", name="other", model={"seq_length": 16}, train={"per_gpu_batch_size": 64})
    process = program.start("0\n")
    program.wait_for(1, process)
    os.killpg(process.pid, signal.SIGKILL)
    assert ended(process).code == -signal.SIGKILL
    assert not (program.checkpoints / "lm_current.pth").exists()
    result = program.run("1\n")
    assert result.code == 0, result.err
    assert inspect(program.checkpoints).name == "other"


def refused(program: Program, answer: str = "0\n", **how) -> str:
    """What is said to a user who must change something."""
    result = program.run(answer, **how)
    assert result.code == 2, result.out + result.err
    assert "Traceback" not in result.err
    assert not program.written()
    return result.err


def test_without_what_must_be_installed_the_command_that_installs_it_is_said(program):
    program.add()
    message = refused(program, launcher=(sys.executable, "-S"))  # no site-packages
    assert message == "torch is not installed. In the folder of this file: python -m pip install -e .\n"


def test_a_flag_starts_nothing(program):
    result = program.run(None, "--preset", "2")
    assert result.code == 2
    assert "--preset 2? There are no flags: `python main.py` asks what to do" in result.err
    assert not program.written()


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_is_how_to_start_it(flag, program):
    result = program.run(None, flag)
    assert result.code == 0
    assert "    python main.py  " in result.out
    assert "There are no flags" in result.out
    assert result.err == ""
    assert not program.written()


def test_what_needs_a_model_says_so_before_there_is_one(program):
    program.add()
    assert "there is no trained model to talk to yet" in refused(program, "t\n")
    assert "there is no trained model to export yet" in refused(program, "e\n")


def test_a_name_that_does_not_exist(program):
    program.add()
    assert "there is no 'tinny'; the nearest is 'tiny'" in refused(program, "tinny\n")


def test_sources_that_do_not_answer(program):
    sources = [{"type": "hf", "dataset": "nobody/nothing"}]
    program.add(data={"sources": sources})
    program.add("01_other", name="other")
    said = refused(program, "tiny\n")
    assert "nobody/nothing is not available" in said
    assert "the Hub cannot be reached" in said


MISTAKES = {
    "unknown key": ({"train": {"batch_size": 4}}, r"train\.batch_size.*\n.*per_gpu_batch_size"),
    "wrong type": ({"model": {"num_layers": "two"}}, r"model\.num_layers.*'?two"),
    "heads do not divide": ({"model": {"num_heads": 5}}, r"model\.num_heads[\s\S]*allowed: \[1, 2, 4, 8, 16\]"),
    "wrong number of weights": (
        {"data": {"source_weights": [1.0]}},
        r"data\.source_weights[\s\S]*each of 2 sources",
    ),
    "format reaches attributes": (
        {"data": {"sources": [{"type": "hf", "dataset": "a/b", "fields": ["q"], "format": "{q.__class__}"}]}},
        r"data\.sources\[0\]\.format[\s\S]*not a bare name",
    ),
    "no such folder": ({"data": {"sources": [{"type": "text", "path": "/no/such/folder"}]}}, "does not exist"),
    "absurd batch": (
        {"model": {"hidden_size": 512, "num_layers": 24, "num_heads": 8}, "train": {"per_gpu_batch_size": 4096}},
        r"set train\.per_gpu_batch_size to \d+ and train\.accumulation_steps to \d+",
    ),
    "heads without room": ({"auxiliary": {"enable_value": True}}, r"model\.seq_length is 32.*at least 64"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_message(mistake, program):
    changes, message = MISTAKES[mistake]
    program.add(**changes)
    assert re.search(message, refused(program))


def test_a_file_that_is_not_json(program):
    program.add_text("00_tiny", '{"name": "tiny",\n "model": {]}')
    assert "line 2" in refused(program)


def test_an_empty_folder(program, tmp_path):
    (tmp_path / "empty").mkdir()
    program.add(data={"sources": [{"type": "text", "path": str(tmp_path / "empty")}]})
    assert f"no file in {tmp_path / 'empty'} matches" in refused(program)


def test_a_file_that_may_not_be_read(program, tmp_path):
    (tmp_path / "secret.txt").write_text("a few words")
    (tmp_path / "secret.txt").chmod(0)
    program.add(data={"sources": [{"type": "text", "path": str(tmp_path / "secret.txt")}]})
    message = refused(program, launcher=(*AS_ANYBODY, sys.executable))
    assert f"(1 unreadable), {tmp_path / 'secret.txt'} among them; allow this user to read them" in message


def test_a_folder_that_may_not_be_written(program):
    program.add()
    program.checkpoints.chmod(0o555)
    message = refused(program, launcher=(*AS_ANYBODY, sys.executable))
    assert f"{program.checkpoints / '.lock'} cannot be written (Permission denied)" in message


def test_files_of_another_user_are_made_again_or_named(program):
    stream = program.checkpoints / "stream"
    as_another = (*AS_ANYBODY, sys.executable)
    program.add()
    process = program.start()
    program.wait_for(5_000, process)
    process.send_signal(signal.SIGTERM)
    assert ended(process).code == 0
    seen = inspect(program.checkpoints).tokens_seen
    (stream / "rows.bin").chmod(0)
    result = program.run(launcher=as_another)
    assert (result.code, "Traceback" in result.err) == (2, False), result.err
    assert f"cannot write {stream / 'rows.bin'}: Permission denied; see to that disk or folder" in result.err
    (stream / "rows.bin").chmod(0o600)
    for name in ("stream/heldout.npz", "stream/stream.json", "tokenizer.json", "machine.json"):
        (program.checkpoints / name).chmod(0)
    result = program.run(launcher=as_another)
    assert (result.code, "Traceback" in result.err) == (0, False), result.err
    assert "Made again: tokenizer.json, heldout.npz, stream.json" in result.out
    assert seen < inspect(program.checkpoints).tokens_seen == BUDGET


def test_of_two_starts_at_one_instant_one_trains(program):
    program.add()
    results = [ended(process) for process in [program.start(), program.start()]]
    assert sorted(result.code for result in results) in ([0, 2], [0, 0])  # one that comes late finds a finished run
    for result in results:
        assert "Traceback" not in result.err
        assert (result.code == 2) == ("Another run" in result.err)
    check_logs(program)


@pytest.mark.skipif(sys.platform != "linux", reason="macOS has no such limit")
def test_a_limit_of_memory_that_is_too_low_is_said(program):
    program.add()
    message = refused(program, launcher=("/bin/sh", "-c", 'ulimit -v 300000; exec "$@"', "sh", sys.executable))
    assert "There is not enough memory, or a limit" in message


@pytest.mark.parametrize("launcher", [(sys.executable,), torchrun(2)])
def test_the_last_words_of_the_data_process_are_passed_on(launcher, program):
    """And not taken for those of a rank that has lost another."""
    program.add()
    last_words = 'raise ConnectionResetError("Connection reset by peer, says the Hub")'
    preparation = "prepared, lost = prepare(preset, stream_dir, header, sources, budget)"
    program.change("data/producer.py", preparation, last_words)
    result = program.run("0\n", launcher=launcher)
    assert result.code == 1
    assert "the data process ended 3 times, code 1; its last output:" in result.err
    assert "This is a defect, or a lost machine." in result.err
    assert "another process of this job has ended" not in result.err
