"""`main.train`: a whole run in this process, what it leaves behind, and what it refuses."""

import io
import json
import math
import os
import random
import re
import shutil
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import main
from aux_heads.metrics import MEASURES
from configs.errors import PresetError, UserError
from configs.schema import AuxiliaryConfig, parse_preset
from data import tokenizer as bpe
from lm.checkpoint import file as checkpoint
from lm.cli.choose import gather_menu
from lm.report.metrics import read_metrics
from lm.report.samples import read_samples
from lm.runtime.estimate import record_speed
from lm.runtime.machine import measure_machine, save_machine
from lm.train.adaptation import decide
from lm.train.state import TrainState
from lm.train.trainer import Trainer
from tests.hub import parquet
from tests.program import ADAPTIVE, ALL_HEADS, BUDGET, NOT_A_RUN, fingerprint, state_in, tiny_preset

pytestmark = pytest.mark.usefixtures("eager")

CONTRACT = {
    "format_version", "preset", "tokens_seen", "model", "heads", "optimizer", "rng", "stream_position",
    "tokenizer_sha256", "world_size",
}  # fmt: skip


@pytest.fixture
def make(text):
    return lambda **changes: tiny_preset(text, **changes)


@contextmanager
def stop_at(tokens: int):
    """Asks the run to stop, as Ctrl-C does, once it has seen so many tokens."""
    train_on = Trainer.train_on

    def and_stop(trainer: Trainer, step):
        result = train_on(trainer, step)
        trainer.stop.asked |= trainer.state.tokens_seen >= tokens
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train_on", and_stop)
        yield


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in NOT_A_RUN)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.slow
def test_a_run_ends_at_its_budget_and_leaves_what_the_contract_says(make, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("lm.checkpoint.saver.REST", 0)  # three saves, however slow the disk
    preset = make()
    main.train(preset, token_budget=BUDGET, checkpoint_dir=tmp_path)
    state = state_in(tmp_path)
    assert state["tokens_seen"] == BUDGET
    assert BUDGET % preset.model.seq_length != 0  # the last row is used in part
    assert state.keys() >= CONTRACT
    assert state_in(tmp_path, "lm_prev.pth")["tokens_seen"] < BUDGET
    assert state_in(tmp_path, "lm_prev2.pth")["tokens_seen"] < state_in(tmp_path, "lm_prev.pth")["tokens_seen"]
    assert (tmp_path / "simple_lm_trained.pth").samefile(tmp_path / "lm_current.pth")
    assert not list(tmp_path.glob("*.tmp")) + list(tmp_path.glob(".*.tmp"))

    lines = read_metrics(tmp_path / "metrics.jsonl")
    steps = [line for line in lines if "loss" in line]
    keys = {"tokens", "step", "loss", "bits_per_byte", "lr", "tokens_per_second", "data_wait_fraction", "grad_norm"}
    assert all(line.keys() >= keys for line in steps)
    assert steps[-1]["tokens"] == BUDGET
    assert [line["time"] for line in steps] == sorted(line["time"] for line in steps)
    assert steps[0]["learning_rates"]["matrix"] == steps[0]["lr"] < steps[0]["learning_rates"]["embedding"]
    assert steps[-1]["loss"] < steps[0]["loss"] - 0.5
    evaluations = [line for line in lines if "eval" in line]
    assert [line["tokens"] for line in evaluations] == [1024, 2048, 4096, 8192, 16384, BUDGET]
    for line in evaluations:
        assert line["eval"].keys() >= {"loss", "bits_per_byte", "per_source"}
        assert set(line["eval"]["per_source"]) == {"small", "large"}
        assert set(line["mixture"]) == {"small", "large"}
        assert sum(line["mixture"].values()) == pytest.approx(1)
        assert sum(source["realised"] for source in line["sources"].values()) == pytest.approx(1)
        assert sum(source["tokens"] for source in line["sources"].values()) > 0.9 * line["tokens"]

    [speed] = json.loads((tmp_path / "machine.json").read_text())["speeds"].values()
    assert speed == pytest.approx(BUDGET / state_in(tmp_path)["seconds"])  # that of the run, not of the dry run
    assert [section.tokens for section in read_samples(tmp_path / "samples.md")] == [10240, BUDGET]
    assert f"{BUDGET:,}" in (tmp_path / "report.md").read_text()
    assert list(tmp_path.glob("report*.png"))
    assert (tmp_path / "stream" / "rows.bin").stat().st_size > 0
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(os.listdir(tmp_path / "hf"))
    assert json.loads((tmp_path / "tokenizer.json").read_text())["model"]["type"] == "BPE"

    capsys.readouterr()
    before = contents(tmp_path)
    main.train(preset, token_budget=BUDGET, checkpoint_dir=tmp_path)
    assert contents(tmp_path) == before
    assert capsys.readouterr().out == ""
    with pytest.raises(UserError, match=rf"ended with its budget of {BUDGET:,} tokens, within a row.* to 30,000"):
        main.train(preset, token_budget=30_000, checkpoint_dir=tmp_path)
    assert contents(tmp_path) == before


@pytest.mark.slow
def test_the_last_step_counts_the_bytes_of_its_own_tokens_alone(make, tmp_path):
    preset = make()
    whole_steps = 2 * preset.train.rows_per_process * preset.model.seq_length
    main.train(preset, token_budget=whole_steps + 1, checkpoint_dir=tmp_path)
    *_, last = (line for line in read_metrics(tmp_path / "metrics.jsonl") if "loss" in line)
    assert last["tokens"] == whole_steps + 1
    longest = max(bpe.token_bytes(bpe.load(tmp_path / "tokenizer.json")))
    assert last["loss"] / math.log(2) / last["bits_per_byte"] <= longest < preset.model.seq_length


def test_every_move_of_the_mixture_has_its_reason():
    aux = AuxiliaryConfig(enable_adaptive_sources=True, adaptive_smoothing=0.0)
    before, now = {"a": [2.5, 0.01], "b": [1.1, 0.01]}, {"a": [2.0, 0.01], "b": [1.0, 0.5]}
    labels, ones = ["a", "b", "c"], [1.0, 1.0, 1.0]
    factors, reasons = decide(aux, labels, ones, before, now)
    assert factors == pytest.approx([2 / 1.5, 1 / 1.5, 1])
    assert reasons == ["2.000 bits per byte", "1.000 bits per byte", "nothing held out"]
    aux = aux.model_copy(update={"adaptive_rule": "loss_slope"})
    assert decide(aux, labels, ones, {}, now) == (ones, ["nothing to compare with yet"] * 3)
    factors, reasons = decide(aux, labels, ones, before, now)
    assert factors == pytest.approx([1.25, 0.8, 1])  # only a fall beyond two standard errors counts
    assert reasons == ["fell by 0.5000 ± 0.0141", "fell by 0.1000 ± 0.5001", "nothing held out"]


def test_a_fall_whose_error_is_not_known_moves_nothing():
    """Of a single held-out row: the checkpoint between the two decisions holds that it is not known."""
    aux = AuxiliaryConfig(enable_adaptive_sources=True, adaptive_rule="loss_slope", adaptive_smoothing=0.0)
    labels, ones = ["one row", "rows"], [1.0, 1.0]
    state = TrainState.new(2, 2, 8)
    state.adapted_on = {"one row": (3.0, None), "rows": (2.0, 0.01)}
    file = io.BytesIO()
    torch.save(state.to_checkpoint(32), file)
    file.seek(0)
    before = TrainState.from_checkpoint(torch.load(file, weights_only=True), 2, 2).adapted_on
    factors, reasons = decide(aux, labels, ones, before, {"one row": (1.0, None), "rows": (1.5, 0.01)})
    assert factors == [1.0, 1.0]  # against the mean of those that are known
    assert reasons[0] == "fell by 2.0000, with an error that a single held-out row does not tell"
    assert reasons[1].startswith("fell by 0.5000 ± ")


class Killed(BaseException):
    """As SIGKILL: nobody catches it."""


@pytest.mark.slow
def test_a_move_of_the_mixture_that_a_crash_undid_is_made_again_and_recorded_once(make, tmp_path, monkeypatch):
    preset = make(auxiliary=ADAPTIVE | {"adaptive_interval_tokens": 4_000})
    next_step = Trainer.next_step

    def crash_after_the_first_move(trainer: Trainer, on_status):
        if trainer.state.weight_changes:
            raise Killed
        return next_step(trainer, on_status)

    monkeypatch.setattr(Trainer, "next_step", crash_after_the_first_move)
    with pytest.raises(Killed):
        main.train(preset, token_budget=9_000, checkpoint_dir=tmp_path / "killed")
    assert state_in(tmp_path / "killed")["tokens_seen"] == 4_096  # saved before the move
    assert not state_in(tmp_path / "killed")["stream_position"]["weight_changes"]
    monkeypatch.setattr(Trainer, "next_step", next_step)
    moves = []
    for name in ("killed", "whole"):
        main.train(preset, token_budget=9_000, checkpoint_dir=tmp_path / name)
        moves.append([line for line in read_metrics(tmp_path / name / "metrics.jsonl") if "adapted" in line])
    assert [line["tokens"] for line in moves[0]] == [4_096, 8_192]
    assert moves[0] == moves[1]


@pytest.mark.slow
def test_heads_that_may_not_touch_the_trunk_do_not(make, tmp_path, capsys):
    model = {"seq_length": 64}
    with_heads = ALL_HEADS | {"span_mask_fraction": 0.5}  # four spans a row: one alone has no others beside it
    states = []
    for name, auxiliary in (("without", {}), ("with", with_heads)):
        main.train(make(model=model, auxiliary=auxiliary), token_budget=6_000, checkpoint_dir=tmp_path / name)
        states.append(state_in(tmp_path / name))
    assert fingerprint({**states[0], "optimizer": (), "heads": ()}) == fingerprint(
        {**states[1], "optimizer": (), "heads": ()}
    )
    assert states[1]["heads"]
    assert not states[0]["heads"]
    lines = [line for line in read_metrics(tmp_path / "with" / "metrics.jsonl") if "heads" in line]
    for measure in MEASURES:  # on held-out text
        value, baseline = measure.values(lines[-1]["heads"])
        assert value is not None
        assert baseline is not None
    said = capsys.readouterr()
    assert re.search(r"heads, with their baselines: dynamics \d\S* \(mean 1\), policy ", said.out)
    assert re.search(r"loss \d\.\d+, (dynamics|policy|value|span) [-.\d]+[<=>]?", said.err)
    assert "\x1b" not in said.out
    report, without = ((tmp_path / name / "report.md").read_text() for name in ("with", "without"))
    assert "| policy | " in report
    assert re.search("how hard .*```text.*[▁▂▃▄▅▆▇█]{3}", report, re.DOTALL)
    assert "how hard" not in without
    assert (tmp_path / "with" / "heads.png").exists()
    assert not (tmp_path / "without" / "heads.png").exists()


@pytest.mark.slow
def test_an_edited_learning_rate_is_said_and_in_force(make, tmp_path, capsys):
    with stop_at(6_000):
        main.train(make(), token_budget=BUDGET, checkpoint_dir=tmp_path)
    assert 6_000 <= state_in(tmp_path)["tokens_seen"] < BUDGET
    out = capsys.readouterr().out
    assert f"Saved at {state_in(tmp_path)['tokens_seen']:,} tokens" in out

    edited = make(train={"matrix_learning_rate": 0.0123})
    main.train(edited, token_budget=BUDGET, checkpoint_dir=tmp_path)
    assert "train.matrix_learning_rate: None -> 0.0123" in capsys.readouterr().out
    assert state_in(tmp_path)["tokens_seen"] == BUDGET
    steps = [line for line in read_metrics(tmp_path / "metrics.jsonl") if "loss" in line]
    assert max(line["lr"] for line in steps if line["tokens"] > 7_000) == pytest.approx(0.0123)
    assert parse_preset(state_in(tmp_path)["preset"], "checkpoint") == edited


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"hidden_size": 64}},
        {"train": {"seed": 1}},
        {"data": {"mix_strategy": "weighted"}},
        {"model": {"seq_length": 64}, "auxiliary": {"enable_value": True}},
    ],
)
def test_a_run_whose_weights_do_not_fit_the_preset_is_left_alone(changes, unfinished, make):
    before = contents(unfinished)
    with pytest.raises(PresetError, match="cannot be continued"):
        main.train(make(**changes), token_budget=BUDGET, checkpoint_dir=unfinished)
    assert contents(unfinished) == before


@pytest.fixture(scope="module")
def unfinished(text, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("unfinished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_COMPILE_DISABLE", "1")
        patch.setattr(Trainer, "next_step", lambda trainer, on_status: None)  # asked to stop before the first step
        main.train(tiny_preset(text), token_budget=BUDGET, checkpoint_dir=folder)
    return folder


def without_shape(preset: str) -> str:
    return json.dumps({**json.loads(preset), "model": {"init_from": "a/b", "seq_length": 64}})


MISFITS = {
    "norm.weight": lambda state: state["model"].update({"norm.weight": torch.ones(7)}),
    "extra": lambda state: state["model"].update(extra=torch.ones(1)),
    "embed.weight": lambda state: state["model"].pop("embed.weight"),
    "optimizer": lambda state: state["optimizer"].pop(),
    "optimizer's momentum": lambda state: state["optimizer"][0]["state"].update({0: {"momentum": torch.ones(3)}}),
    "the preset": lambda state: state.update(preset=without_shape(state["preset"])),
}


@pytest.mark.parametrize("name", MISFITS)
def test_a_checkpoint_of_another_shape_is_refused_and_left_alone(name, unfinished, make, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(unfinished, folder)
    state = state_in(folder)
    MISFITS[name](state)
    checkpoint.write_file(folder / "lm_current.pth", state)
    before = (folder / "lm_current.pth").read_bytes()
    with pytest.raises(UserError, match=f"not what its own preset makes: {name} does not fit"):
        main.train(make(), token_budget=BUDGET, checkpoint_dir=folder)
    assert (folder / "lm_current.pth").read_bytes() == before


@pytest.mark.slow
def test_a_run_of_a_version_without_the_norm_behind_the_embedding_goes_on_without_it(make, tmp_path):
    with stop_at(1_000):
        main.train(make(model={"embedding_norm": False}), token_budget=2_048, checkpoint_dir=tmp_path)
    state = state_in(tmp_path)
    preset = json.loads(state["preset"])
    del preset["model"]["embedding_norm"]
    checkpoint.write_file(tmp_path / "lm_current.pth", state | {"preset": json.dumps(preset)})
    assert main.train(make(), token_budget=2_048, checkpoint_dir=tmp_path)
    assert json.loads(state_in(tmp_path)["preset"])["model"]["embedding_norm"] is False


@pytest.mark.slow
def test_sources_used_up_before_the_budget_end_the_run_for_good(make, text, tmp_path, capsys):
    sources = [{"type": "text", "label": "small", "path": str(text / "small"), "repeat": 1}]
    preset = make(data={"sources": sources}, train={"per_gpu_batch_size": 32})
    main.train(preset, token_budget=10_000_000, checkpoint_dir=tmp_path)
    state = state_in(tmp_path)
    assert state["exhausted"]
    assert 10_000 < state["tokens_seen"] < 10_000_000
    assert "used up before the budget" in (tmp_path / "report.md").read_text()
    before = contents(tmp_path)
    main.train(preset, token_budget=10_000_000, checkpoint_dir=tmp_path)
    assert contents(tmp_path) == before
    assert gather_menu(tmp_path, main.CONFIGS).current.finished


@pytest.mark.slow
def test_a_run_continued_to_a_larger_budget_is_not_finished_by_the_report_of_the_smaller(make, tmp_path):
    def train(token_budget: int) -> bool:
        return main.train(make(), token_budget=token_budget, checkpoint_dir=tmp_path)

    def last_of_the_smaller() -> list[dict]:
        return [line for line in read_metrics(tmp_path / "metrics.jsonl") if "eval" in line and line["tokens"] == 2_048]

    report = tmp_path / "report.md"
    assert train(2_048)
    assert report.exists()
    [measured] = last_of_the_smaller()
    with stop_at(3_000):
        assert train(6_144) is False
    assert not report.exists()
    assert last_of_the_smaller() == [measured]
    assert train(6_144)
    assert "6,144" in report.read_text()


@pytest.mark.slow
def test_a_run_needs_the_tokenizer_that_it_was_given_only_at_its_beginning(make, text, tmp_path):
    given = tmp_path / "given.json"
    bpe.train([path.read_text() for path in (text / "large").glob("*.txt")], 350).save(str(given))
    preset = make(data={"tokenizer": str(given)})
    with stop_at(1_000):
        assert not main.train(preset, token_budget=2_048, checkpoint_dir=tmp_path / "run")
    given.unlink()
    assert main.train(preset, token_budget=2_048, checkpoint_dir=tmp_path / "run")
    assert len(state_in(tmp_path / "run")["model"]["embed.weight"]) == 350


def test_the_menu_knows_which_time_was_measured(make, tmp_path):
    tried, other = make(), make(model={"num_layers": 3})
    (tmp_path / "00_tried.json").write_text(tried.to_json())
    (tmp_path / "01_other.json").write_text(other.to_json())
    save_machine(tmp_path, record_speed(measure_machine(), tried, 50_000.0))
    entries = gather_menu(tmp_path, tmp_path).entries
    assert [entry.measured for entry in entries] == [True, False]
    assert entries[0].seconds == 2_000


@pytest.mark.slow
def test_an_outage_that_outlasts_the_rows_is_shown_while_waiting_and_a_stop_saves(
    hub, make, tmp_path, monkeypatch, capsys
):
    text = [random.Random(row).randbytes(200).hex() for row in range(2000)]
    hub.add("some/text", {f"data/{n:02}.parquet": parquet(10, text=text[n::20]) for n in range(20)})
    hub.fault = lambda *_: time.sleep(0.02)  # so slow that few rows are there when it goes away
    next_step = Trainer.next_step

    def and_an_outage(trainer: Trainer, on_status):
        if trainer.state.tokens_seen:
            hub.fault = lambda *_: "drop"

        def stop_when_told(message: str):
            on_status(message)
            trainer.stop.asked |= "retrying" in message

        return next_step(trainer, stop_when_told)

    monkeypatch.setattr(Trainer, "next_step", and_an_outage)
    preset = make(
        data={"sources": [{"type": "hf", "dataset": "some/text", "label": "hub"}]},
        train={"per_gpu_batch_size": 64, "eval_every_tokens": 10**8, "sample_every_tokens": 10**8},
    )
    main.train(preset, token_budget=500_000, checkpoint_dir=tmp_path)
    assert 0 < state_in(tmp_path)["tokens_seen"] < 500_000
    said = capsys.readouterr()
    assert re.search(r"hub: 127.0.0.1: .*, retrying in \d+ s", said.err)
    assert "Saved at" in said.out


def test_a_full_disk_is_refused_before_anything_is_written(make, tmp_path, monkeypatch):
    full = shutil.disk_usage(tmp_path)._replace(free=1_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    with pytest.raises(UserError, match=r"needs 0\.\d+ GB more .* free"):
        main.train(make(), token_budget=BUDGET, checkpoint_dir=tmp_path)
    assert not contents(tmp_path)


def test_a_last_save_that_fails_is_not_called_saved(make, tmp_path, capsys):
    (tmp_path / "simple_lm_trained.pth").mkdir()  # no file can be renamed over it
    with stop_at(500), pytest.raises(UserError, match=r"Saving .* failed: .* directory"):
        main.train(make(), token_budget=BUDGET, checkpoint_dir=tmp_path)
    assert "Saved at" not in capsys.readouterr().out


def test_a_model_that_no_memory_holds_is_refused_before_it_is_built(make, tmp_path):
    huge = make(model={"hidden_size": 8192, "num_layers": 128, "num_heads": 64})
    with pytest.raises(UserError, match="No batch size fits"):
        main.train(huge, token_budget=BUDGET, checkpoint_dir=tmp_path)
    assert not contents(tmp_path)
