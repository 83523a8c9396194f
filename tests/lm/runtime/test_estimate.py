"""Estimates against the real model, against measurements, and against each other."""

import dataclasses
import io
import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from aux_heads.joint import build_heads
from configs.errors import UserError
from configs.schema import ModelConfig, Preset, TrainConfig, load_preset, parse_preset
from lm.model import Transformer
from lm.optim import build_optimizers, peak_learning_rates
from lm.runtime import estimate, machine
from lm.runtime.compiler import compile_choice
from lm.runtime.files import has_hard_links
from tests.constants import ROOT

SHIPPED = [
    path
    for path in sorted((ROOT / "configs").glob("[0-9]*.json"))
    if not load_preset(path).model.unknown  # another model gives the shape
]
BUDGET = 100_000_000


@pytest.fixture
def preset() -> Preset:
    return load_preset(ROOT / "configs" / "02_offline_python.json")


def with_changes(preset: Preset, **train) -> Preset:
    return preset.model_copy(update={"train": preset.train.model_copy(update=train)})


GROUPED = ModelConfig(
    hidden_size=64, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=24, mlp_size=200, seq_length=64, vocab_size=300,
    qk_norm=False,
)  # fmt: skip


def small(tie: bool = False, heads: str = "{}") -> Preset:
    text = """{"name": "small", "model": {"hidden_size": 64, "num_layers": 2, "num_heads": 4, "seq_length": 64,
    "vocab_size": 300, "tie_embeddings": %s}, "train": {"per_gpu_batch_size": 2, "eval_tokens": 1000},
    "data": {"sources": [{"type": "python"}]}, "auxiliary": %s}"""
    return parse_preset(text % ("true" if tie else "false", heads), "test")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
@pytest.mark.parametrize("tie", [False, True])
def test_parameters_are_those_of_the_real_model(path, tie):
    preset = load_preset(path)
    model = preset.model.model_copy(update={"tie_embeddings": tie})
    with torch.device("meta"):
        trunk = Transformer(model, 5000)
    assert estimate.num_parameters(model, 5000) == sum(parameter.numel() for parameter in trunk.parameters())
    heads = build_heads(preset.auxiliary, model.hidden_size, model.seq_length)
    for ndim, expected in enumerate(reversed(estimate.num_head_parameters(model, preset.auxiliary)), start=1):
        assert expected == sum(parameter.numel() for parameter in heads.parameters() if parameter.ndim == ndim)


def test_parameters_of_grouped_queries_without_norms_too():
    trunk = Transformer(GROUPED, 300)
    assert estimate.num_parameters(GROUPED, 300) == sum(parameter.numel() for parameter in trunk.parameters())


@pytest.mark.parametrize("model", [None, GROUPED], ids=["plain", "grouped queries"])
def test_flops_are_those_that_torch_counts(monkeypatch, model):
    from torch.utils.flop_counter import FlopCounterMode

    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)  # a fused kernel is not counted
    preset = small()
    model = model or preset.model
    trunk = Transformer(model, 300)
    tokens = torch.randint(300, (2, model.seq_length))
    with FlopCounterMode(display=False) as counter:
        (trunk(tokens) @ trunk.output.weight.T).sum().backward()
    counted = counter.get_total_flops() / tokens.numel()
    # The row blocks of attention compute 5/8 of the scores, and the mask leaves half of them of use.
    expected = estimate.flops_per_token(model, 300, preset.auxiliary)
    assert expected < counted < 1.05 * expected


def test_the_offline_preset_keeps_its_promise_of_cost(preset):
    assert estimate.flops_per_token(preset.model, preset.model.vocab_size, preset.auxiliary) <= 17.5e6


@pytest.mark.parametrize("heads", ["{}", '{"enable_dynamics": true, "enable_policy": true, "enable_value": true}'])
@pytest.mark.parametrize("tie", [False, True])
def test_checkpoint_bytes_are_those_of_a_real_one(heads, tie):
    preset = small(tie, heads)
    trunk = Transformer(preset.model, 300)
    modules = build_heads(preset.auxiliary, 64, 64)
    optimizers = build_optimizers(trunk, modules, peak_learning_rates(TrainConfig(), preset.model, 128), 0.1)
    for parameter in [*trunk.parameters(), *modules.parameters()]:
        parameter.grad = torch.zeros_like(parameter)
    for optimizer in optimizers:
        optimizer.step()
    file = io.BytesIO()
    torch.save([trunk.state_dict(), modules.state_dict(), [optimizer.state_dict() for optimizer in optimizers]], file)
    overhead = len(file.getvalue()) - estimate.checkpoint_bytes(preset)
    assert 0 < overhead < 60_000  # the zip's own records


STEP = """
    import sys
    sys.path.insert(0, {root!r})
    import torch
    from configs.schema import load_preset
    from lm.model import Transformer
    from lm.loss import linear_cross_entropy
    from lm.runtime.machine import peak_memory
    from lm.optim import build_optimizers, peak_learning_rates
    torch.set_num_threads(2)
    preset = load_preset({path!r})
    model = Transformer(preset.model, preset.model.vocab_size)
    rates = peak_learning_rates(preset.train, preset.model, 4096)
    optimizers = build_optimizers(model, torch.nn.ModuleDict(), rates, preset.train.weight_decay)
    for _ in range(2):
        rows = torch.randint(4096, ({rows}, preset.model.seq_length + 1))
        hidden = model(rows[:, :-1])
        linear_cross_entropy(hidden.flatten(0, 1), model.output.weight, rows[:, 1:].flatten())[0].backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    print(peak_memory("cpu"))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the estimate is fitted to what torch takes on Linux")
def test_memory_is_near_what_a_process_really_takes(preset):
    rows = 8
    code = textwrap.dedent(
        STEP.format(root=str(ROOT), path=str(ROOT / "configs" / "02_offline_python.json"), rows=rows)
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=600)
    expected = estimate.memory_bytes(
        with_changes(preset, per_gpu_batch_size=rows), "cpu", low_precision=False, compiled=False
    )
    measured = int(done.stdout) + estimate.PRODUCER_BYTES
    assert 0.65 < expected / measured < 1.5, (expected, measured)


# ---- a large vocabulary ----------------------------------------------------------------------------------------

QWEN3_600M = {
    "hidden_size": 1024, "num_layers": 28, "num_heads": 16, "num_kv_heads": 8, "head_dim": 128, "mlp_size": 3072,
    "vocab_size": 151_936, "tie_embeddings": True, "rope_theta": 1_000_000, "seq_length": 1024,
}  # fmt: skip


def test_a_model_of_600_million_parameters_is_trained_on_a_card_of_24_gb(preset):
    model = ModelConfig(**QWEN3_600M)
    assert estimate.num_parameters(model, model.vocab_size) == 596_049_920  # as its own card says
    large = with_changes(preset.model_copy(update={"model": model}), per_gpu_batch_size=4, accumulation_steps=4)
    assert 14e9 < estimate.memory_bytes(large, "cuda") < 22e9


LARGE_VOCABULARY = """
    import sys
    sys.path.insert(0, {root!r})
    import torch
    from configs.schema import parse_preset
    from lm.learner import Learner
    from lm.runtime.distributed import World
    from lm.runtime.machine import peak_memory
    from lm.train.dry_run import dry_run
    torch.set_num_threads(2)
    preset = parse_preset({preset!r}, "test")
    learner = Learner(preset, World.start(), vocab_size=preset.model.vocab_size, end_of_text=0, tokens_per_step=1024)
    dry_run(learner, 8)
    print(peak_memory("cpu"))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the estimate is fitted to what torch takes on Linux")
@pytest.mark.parametrize("tied", [False, True])
def test_memory_with_a_large_vocabulary_is_near_what_a_process_really_takes(tied):
    model = {"hidden_size": 128, "num_layers": 2, "num_heads": 2, "seq_length": 128, "vocab_size": 151_936}
    given = {"name": "large", "model": model | {"tie_embeddings": tied}, "data": {"sources": [{"type": "python"}]}}
    text = json.dumps(given | {"train": {"per_gpu_batch_size": 8}})
    code = textwrap.dedent(LARGE_VOCABULARY.format(root=str(ROOT), preset=text))
    environment = os.environ | {"TORCH_COMPILE_DISABLE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=600, env=environment
    )
    preset = parse_preset(text, "test")
    expected = estimate.memory_bytes(preset, "cpu", low_precision=True, compiled=False)
    # While a step runs, no checkpoint is being copied, and the producer is another process.
    measured = int(done.stdout) + estimate.PRODUCER_BYTES + estimate.checkpoint_bytes(preset)
    assert 0.75 < expected / measured < 1.4, (expected, measured)


def test_the_largest_batch_fits_and_keeps_the_step(preset):
    preset = with_changes(preset, per_gpu_batch_size=48, accumulation_steps=2)
    for available in (10**9, 13 * 10**8, 2 * 10**9, 10**12):
        rows = estimate.largest_batch(preset, available)
        fitting = [n for n in range(1, 97) if 96 % n == 0 and
                   estimate.memory_bytes(with_changes(preset, per_gpu_batch_size=n)) <= available]  # fmt: skip
        assert rows == max(fitting, default=0)
    assert estimate.largest_batch(preset, 10**12) == 96
    assert estimate.largest_batch(preset, 10**6) == 0


def test_too_little_memory_is_said_with_a_batch_that_fits(preset, monkeypatch):
    estimate.check_memory(preset, "cpu")
    monkeypatch.setattr(estimate, "available_memory", lambda: 1_300_000_000)
    wide = with_changes(preset, per_gpu_batch_size=512, accumulation_steps=1)
    with pytest.raises(UserError, match=r"would fit: set train\.per_gpu_batch_size to") as caught:
        estimate.check_memory(wide, "cpu")
    rows, steps = map(int, re.findall(r"(?:size to|steps to) (\d+)", str(caught.value)))
    assert rows * steps == 512
    fitting = with_changes(wide, per_gpu_batch_size=rows, accumulation_steps=steps)
    estimate.check_memory(fitting, "cpu")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(UserError, match="GB are free here for each of 4 processes"):
        estimate.check_memory(fitting, "cpu")
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    monkeypatch.setattr(estimate, "available_memory", lambda: 10**8)
    with pytest.raises(UserError, match="choose a smaller model"):
        estimate.check_memory(preset, "cpu")


@pytest.mark.skipif(sys.platform != "linux", reason="files of Linux")
def test_memory_is_known_where_proc_is_imitated_in_part(monkeypatch):
    """As by WSL 1 and gVisor."""
    read = Path.read_text

    def without(path: Path, *how):
        lines = read(path, *how).splitlines(keepends=True)
        return "".join(line for line in lines if not line.startswith(("MemAvailable", "VmHWM")))

    whole = machine.available_memory(), machine.peak_memory("cpu")
    monkeypatch.setattr(Path, "read_text", without)
    assert machine.available_memory() > 0.2 * whole[0]
    assert 10**7 < machine.peak_memory("cpu") < 10 * whole[1]


@pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")
def test_available_memory_respects_the_limit_of_the_process():
    assert 0 < machine.available_memory() < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    code = f"""
        import resource, sys
        sys.path.insert(0, {str(ROOT)!r})
        resource.setrlimit(resource.RLIMIT_AS, (10**9, 10**9))
        from lm.runtime.machine import available_memory
        assert 0 < available_memory() < 10**9
        assert "torch" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=600)


def test_a_measured_speed_replaces_the_guess_for_that_shape_on_that_machine_only(tmp_path, preset, monkeypatch):
    assert machine.load_machine(tmp_path) is None
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 3)
    measured = machine.measure_machine()
    assert torch.get_num_threads() == threads + 3, "the machine may be measured while a run begins"
    torch.set_num_threads(threads)
    assert 1e9 < measured.matmul_flops < 1e16
    guess = estimate.seconds_to_budget(preset, measured, BUDGET)
    assert guess == pytest.approx(estimate.seconds_to_budget(preset, measured, BUDGET // 2) * 2)
    machine.save_machine(tmp_path, estimate.record_speed(measured, preset, 20_000.0))
    loaded = machine.load_machine(tmp_path)
    assert estimate.seconds_to_budget(preset, loaded, BUDGET) == 5000
    assert estimate.seconds_to_budget(preset, loaded, BUDGET, world_size=2) != 5000
    wider = with_changes(preset, per_gpu_batch_size=preset.train.per_gpu_batch_size * 2)
    assert estimate.seconds_to_budget(wider, loaded, BUDGET) != 5000
    elsewhere = {"CUDA_VISIBLE_DEVICES": "7", "OMP_NUM_THREADS": "7"} | (
        {"TORCH_COMPILE_DISABLE": "1"} if measured.compiled else {}
    )
    for name, value in elsewhere.items():
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert machine.load_machine(tmp_path) is None
    assert machine.load_machine(tmp_path)
    (tmp_path / "machine.json").write_text("{torn")
    assert machine.load_machine(tmp_path) is None


def test_a_disturbed_dry_run_does_not_replace_the_speed_that_a_run_reached(preset):
    here = machine.Machine("here", "cpu", "CPU", True, True, 7e11)
    reached = estimate.record_speed(here, preset, 28_000.0)
    disturbed = estimate.record_trial(reached, preset, 1_500.0)
    assert estimate.seconds_to_budget(preset, disturbed, BUDGET) == BUDGET / 28_000
    assert (
        estimate.seconds_to_budget(preset, estimate.record_trial(reached, preset, 30_000.0), BUDGET) < BUDGET / 29_000
    )
    guess = estimate.seconds_to_budget(preset, here, BUDGET)
    first = estimate.record_trial(here, preset, BUDGET / guess / 19)
    assert estimate.seconds_to_budget(preset, first, BUDGET) == pytest.approx(3 * guess)
    assert estimate.seconds_to_budget(preset, estimate.record_speed(first, preset, 1_500.0), BUDGET) == BUDGET / 1_500


def test_guesses_learn_from_the_runs_that_were_tried(preset):
    here = machine.Machine("here", "cpu", "CPU", True, True, 7e11)
    once, twice, wider = (with_changes(preset, accumulation_steps=steps) for steps in (1, 2, 3))
    guess = estimate.seconds_to_budget(wider, here, BUDGET)

    def tried(before, each, slower: float):
        return estimate.record_speed(before, each, BUDGET / estimate.seconds_to_budget(each, here, BUDGET) / slower)

    one = tried(here, once, 4)
    assert estimate.seconds_to_budget(wider, one, BUDGET) == pytest.approx(guess / ((1 + 1 / 4) / 2))
    two = tried(one, twice, 4)
    assert estimate.seconds_to_budget(wider, two, BUDGET) == pytest.approx(3 * guess)  # and never more
    again = tried(tried(two, once, 1), twice, 1)
    assert estimate.seconds_to_budget(wider, again, BUDGET) == pytest.approx(guess)


def test_a_small_step_costs_time_besides_its_tokens():
    cpu = machine.Machine("here", "cpu", "CPU", True, True, 7e11)
    seconds = {
        rows: estimate.seconds_to_budget(with_changes(small(), per_gpu_batch_size=rows), cpu, BUDGET)
        for rows in (2, 64)
    }
    assert seconds[2] > 5 * seconds[64]


def test_time_falls_with_gpus_and_grows_with_the_model(preset):
    gpu = machine.Machine("here", "cuda", "GPU", True, True, 1e15)
    assert estimate.seconds_to_budget(preset, gpu, BUDGET, 4) < estimate.seconds_to_budget(preset, gpu, BUDGET) / 3
    general = load_preset(ROOT / "configs" / "00_best_general.json")
    cpu = dataclasses.replace(gpu, device="cpu", matmul_flops=7e11)
    assert estimate.seconds_to_budget(general, cpu, BUDGET) > 2 * estimate.seconds_to_budget(preset, cpu, BUDGET)


def test_disk_covers_checkpoints_and_journal(preset):
    checkpoints = 4 * estimate.checkpoint_bytes(preset)
    rows = BUDGET / preset.model.seq_length
    journal = rows * (preset.model.seq_length + 1) * 3
    assert checkpoints + journal < estimate.disk_bytes(preset, BUDGET) < 1.2 * (checkpoints + journal)


def test_without_hard_links_each_generation_may_be_there_twice(preset, tmp_path, monkeypatch):
    assert has_hard_links(tmp_path / "new")
    monkeypatch.setattr(os, "link", lambda *_, **__: (_ for _ in ()).throw(PermissionError))
    assert not has_hard_links(tmp_path)
    assert [path.name for path in tmp_path.rglob("*")] == ["new"]
    more = estimate.disk_bytes(preset, BUDGET, has_links=False) - estimate.disk_bytes(preset, BUDGET)
    assert more == 5 * estimate.checkpoint_bytes(preset)


def test_disk_covers_the_milestones_that_the_budget_reaches(preset):
    kept = with_changes(preset, keep_at_tokens=[1_000, BUDGET, BUDGET + 1])
    assert estimate.disk_bytes(kept, BUDGET) - estimate.disk_bytes(preset, BUDGET) == 2 * estimate.export_bytes(preset)


def test_a_run_comes_to_fewer_words_than_tokens(preset):
    kept = with_changes(preset, keep_at_tokens="babylm").train
    assert estimate.num_milestones(kept, 100_000_000) == 17  # to 80 million words
    assert estimate.num_milestones(kept, 1_000_000) == 0


def test_choices_follow_the_hardware_and_say_why(monkeypatch):
    monkeypatch.delenv("TORCH_COMPILE_DISABLE", raising=False)
    monkeypatch.setattr(machine, "_cpu_info", lambda: [("flags", "sse avx512_bf16")])
    assert machine.precision_choice("cpu") == (torch.bfloat16, "this CPU has avx512_bf16")
    monkeypatch.setattr(machine, "_cpu_info", lambda: [("flags", "sse avx2")])
    dtype, reason = machine.precision_choice("cpu")
    assert dtype == torch.float32
    assert "avx512_bf16" in reason
    monkeypatch.setenv("PATH", "")
    assert compile_choice("cpu") == (False, "no compiler found (looked for g++ and clang++)")


def test_a_model_config_is_enough_for_parameters():
    model = ModelConfig(hidden_size=256, num_layers=3, num_heads=4, seq_length=256)
    assert 6_000_000 < estimate.num_parameters(model, 8192) < 7_000_000


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process cannot be kept to some cores")
@pytest.mark.parametrize(
    ("quota", "environment", "expected"),
    [
        ("max 100000", {}, 2),
        ("150000 100000", {}, 2),
        ("50000 100000", {}, 1),
        ("max 100000", {"LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}, 1),  # as torchrun sets them
        ("max 100000", {"LOCAL_WORLD_SIZE": "4", "OMP_NUM_THREADS": "1"}, 1),
        ("max 100000", {"OMP_NUM_THREADS": "1"}, 1),
    ],
)
@pytest.mark.slow
def test_threads_are_the_cores_that_a_process_may_use(quota, environment, expected, tmp_path):
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("a single core: nothing to choose")
    (tmp_path / "cpu.max").write_text(quota)
    code = f"""
        import os, pathlib
        from lm.runtime import machine
        machine._control_groups = lambda controller: [(pathlib.Path({str(tmp_path)!r}), True)]
        os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[:2]))
        print(machine.thread_choice()[0])
    """
    kept = {name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "LOCAL_WORLD_SIZE")}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    printed = subprocess.check_output(command, cwd=ROOT, env=kept | environment, text=True)
    assert int(printed) == expected


@pytest.mark.skipif(sys.platform != "linux", reason="control groups are Linux's")
def test_copies_of_files_are_free_memory(tmp_path, monkeypatch):
    facts = {"max": "1000000", "current": "900000", "stat": "anon 300000\ninactive_file 400000\nactive_file 200000\n"}
    for name, fact in facts.items():
        (tmp_path / f"memory.{name}").write_text(fact)
    monkeypatch.setattr(machine, "_control_groups", lambda controller: [(tmp_path, True)])
    assert machine.available_memory() == 700_000
    (tmp_path / "memory.stat").unlink()
    assert machine.available_memory() == 100_000
