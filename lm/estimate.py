"""What a preset will cost on this machine, before it is started: parameters, FLOPs, memory, disk, time; and the choices that
depend on the hardware, each with its reason.

Arithmetic, except for `measure_machine`, which multiplies matrices for half a second and is the only thing here that
imports torch. What was measured (the machine's rate, a preset's tokens/s) is kept in `checkpoints/machine.json`.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import time
from pathlib import Path
from typing import Any

from configs.schema import AuxiliaryConfig, ModelConfig, Preset, UserError

MACHINE_FILE = "machine.json"
EFFICIENCY = {"cpu": 0.55, "cuda": 0.35}  # share of the matmul rate that a whole training step reaches
HEADS_COST = 0.06  # of the trunk's FLOPs, all four heads on (aux_heads look at a fraction of the positions)
PROCESS_BYTES = 900e6  # torch, its compiler and the producer, before the model
CHECKPOINT_GENERATIONS = 4  # three, and the temporary file of the next
JOURNAL_BYTES_PER_TOKEN = 5  # at most: a token id and its source


def num_parameters(model: ModelConfig, vocab_size: int) -> int:
    """Of the trunk, exactly."""
    width = model.hidden_size
    layer = 4 * width**2 + 3 * width * model.mlp_size + 2 * width + 2 * model.head_dim
    tables = vocab_size * width * (1 if model.tie_embeddings else 2)
    return tables + model.num_layers * layer + width


def matmul_parameters(model: ModelConfig, vocab_size: int) -> int:
    """Weights every token is multiplied with: all but the embedding, which is looked up, and the gains."""
    layer = 4 * model.hidden_size**2 + 3 * model.hidden_size * model.mlp_size
    return model.num_layers * layer + vocab_size * model.hidden_size


def flops_per_token(model: ModelConfig, vocab_size: int, aux: AuxiliaryConfig | None = None) -> float:
    """Forward and backward: 6 per weight (Kaplan et al., arXiv 2001.08361), attention counted causally, heads roughly."""
    trunk = 6 * matmul_parameters(model, vocab_size) + 6 * model.num_layers * model.seq_length * model.hidden_size
    return trunk * (1 + (HEADS_COST if aux and aux.any_head else 0))


def checkpoint_bytes(model: ModelConfig, vocab_size: int) -> int:
    """fp32 weights; one momentum a hidden-matrix weight, two moments for the rest."""
    total = num_parameters(model, vocab_size)
    hidden = matmul_parameters(model, vocab_size) - vocab_size * model.hidden_size
    return 4 * (2 * hidden + 3 * (total - hidden))


def disk_bytes(preset: Preset, token_budget: int) -> int:
    """Checkpoints and the journal of a whole run."""
    model = preset.model
    checkpoints = CHECKPOINT_GENERATIONS * checkpoint_bytes(model, model.vocab_size)
    return checkpoints + JOURNAL_BYTES_PER_TOKEN * token_budget


def memory_bytes(preset: Preset, bytes_per_activation: int = 2) -> int:
    """Peak of one training process: weights, gradients, moments, and what a micro-batch keeps for its backward pass."""
    model, rows = preset.model, preset.train.per_gpu_batch_size
    positions = rows * model.seq_length
    per_layer = (10 * model.hidden_size + 4 * model.mlp_size) * bytes_per_activation + 12 * model.hidden_size
    per_layer += model.num_heads * model.seq_length * bytes_per_activation  # attention weights, half of them kept
    activations = positions * (model.num_layers * per_layer + 16 * model.hidden_size)
    weights = checkpoint_bytes(model, model.vocab_size) + 8 * num_parameters(model, model.vocab_size)
    return int(PROCESS_BYTES + weights + activations)


def largest_batch(preset: Preset, available: float) -> int:
    """The largest per_gpu_batch_size, a power of two, that fits into `available` bytes; 0 if none does."""
    rows = 4096
    while rows:
        train = preset.train.model_copy(update={"per_gpu_batch_size": rows})
        if memory_bytes(preset.model_copy(update={"train": train})) <= available:
            return rows
        rows //= 2
    return 0


def available_memory() -> int:
    """Bytes this process may still take: the least of what the system, its control group and its own limit leave."""
    import resource

    limits = []
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        fields = dict(line.split(":") for line in meminfo.read_text().splitlines() if ":" in line)
        limits.append(int(fields["MemAvailable"].split()[0]) * 1024)
    else:
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    group = Path("/sys/fs/cgroup/memory.max")
    if group.exists() and (text := group.read_text().strip()) != "max":
        limits.append(int(text))
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        limits.append(soft)
    return min(limits)


# ---- choices that depend on the hardware --------------------------------------------------------------------------------


def precision_choice(device_type: str) -> tuple[str, str]:
    """("bfloat16" or "float32", why)."""
    if device_type == "cuda":
        import torch

        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bfloat16", "this GPU multiplies it in hardware"
        return "float32", "this GPU has no bfloat16"
    flags = _cpu_flags()
    for flag in ("amx_bf16", "avx512_bf16"):
        if flag in flags:
            return "bfloat16", f"this CPU has {flag}"
    return "float32", "this CPU has neither avx512_bf16 nor amx_bf16, and without them bfloat16 is slower"


def compile_choice(device_type: str) -> tuple[bool, str]:
    """(whether to use torch.compile, why)."""
    if device_type == "cuda":
        import importlib.util

        found = importlib.util.find_spec("triton") is not None
        return found, "triton is installed" if found else "triton is not installed: pip install triton"
    compiler = next((name for name in ("g++", "clang++") if shutil.which(name)), None)
    return (
        compiler is not None,
        f"{compiler} found" if compiler else "no C++ compiler: install g++ for about twice the speed",
    )


def _cpu_flags() -> set[str]:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return set()
    line = next((line for line in cpuinfo.read_text().splitlines() if line.startswith("flags")), "")
    return set(line.split())


# ---- the machine, measured ----------------------------------------------------------------------------------------------


def measure_machine() -> dict[str, Any]:
    """{"device", "kind", "matmul_flops", "presets": {}}: the rate of a large matrix product, median of a few, in about half a
    second besides importing torch.
    """
    import torch

    cuda = torch.cuda.is_available()
    kind = "cuda" if cuda else "cpu"
    dtype = getattr(torch, precision_choice(kind)[0])
    size = 8192 if cuda else 1024
    a, b = (torch.randn(size, size, dtype=dtype, device=kind) for _ in range(2))
    seconds = []
    for _ in range(12):
        began = time.perf_counter()
        a @ b
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    name = torch.cuda.get_device_name() if cuda else f"{os.cpu_count()}-core {platform.machine()} CPU"
    return {"device": name, "kind": kind, "matmul_flops": 2 * size**3 / sorted(seconds)[6], "presets": {}}


def load_machine(folder: Path) -> dict[str, Any] | None:
    try:
        machine = json.loads((Path(folder) / MACHINE_FILE).read_text(encoding="utf-8"))
        return machine if {"device", "kind", "matmul_flops", "presets"} <= machine.keys() else None
    except (OSError, ValueError, AttributeError):
        return None  # never measured, or not ours: measured again


def save_machine(folder: Path, machine: dict[str, Any]) -> None:
    from lm.metrics import replace_text

    Path(folder).mkdir(parents=True, exist_ok=True)
    replace_text(Path(folder) / MACHINE_FILE, json.dumps(machine, indent=1) + "\n")


def shape_key(preset: Preset) -> str:
    """What a preset's speed depends on, as the key of a measured rate."""
    parts = preset.model.model_dump(), preset.train.per_gpu_batch_size, preset.auxiliary.any_head
    return json.dumps(parts, sort_keys=True)


def seconds_to_budget(preset: Preset, machine: dict[str, Any], token_budget: int) -> float:
    """Measured on this machine if this shape ever ran here, otherwise FLOPs over an assumed share of the matmul rate."""
    rate = machine["presets"].get(shape_key(preset))
    if rate is None:
        flops = flops_per_token(preset.model, preset.model.vocab_size, preset.auxiliary)
        rate = machine["matmul_flops"] * EFFICIENCY[machine["kind"]] / flops
    return token_budget / rate


def remember_speed(folder: Path, preset: Preset, tokens_per_second: float) -> None:
    """Makes the next menu's time for presets of this shape the measured one."""
    machine = load_machine(folder) or measure_machine()
    machine["presets"][shape_key(preset)] = tokens_per_second
    save_machine(folder, machine)


def check_memory(preset: Preset, device_type: str) -> None:
    """Raises UserError, with the batch size that would fit, if a CPU run cannot have the memory it needs. (A GPU says so itself
    in the trial step; on a CPU the system would kill the process instead.)
    """
    if device_type != "cpu":
        return
    needed, available = memory_bytes(preset), available_memory()
    if needed <= available:
        return
    train, fitting = preset.train, largest_batch(preset, available)
    advice = "choose a smaller model."
    if fitting:
        steps = -(-train.per_gpu_batch_size * train.accumulation_steps // fitting)
        advice = f"set train.per_gpu_batch_size to {fitting} and train.accumulation_steps to {steps}: the same tokens a step."
    raise UserError(
        f"Preset {preset.name!r} needs about {needed / 1e9:.1f} GB of memory with train.per_gpu_batch_size "
        f"{train.per_gpu_batch_size}, and {available / 1e9:.1f} GB are available here: {advice}"
    )


def peak_memory(device_type: str) -> int:
    """Bytes this process has held at most so far: on the GPU if it trains there."""
    if device_type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024
