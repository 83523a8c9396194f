"""What a preset costs before anything of it is built, and what this machine offers.

Pure arithmetic over a preset; torch is imported only by `measure_machine` and `precision_choice`, so the menu can show
these numbers first. Estimates of time and memory are guesses until a trial step or a run has measured them:
`save_machine` keeps measured speeds, and the next menu uses those. Every automatic choice comes with its reason.

D hidden size, F mlp size, V vocabulary, T seq_length. One multiply-add is 2 FLOPs; backward costs twice forward.
"""

import dataclasses
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import TYPE_CHECKING

from configs.schema import AuxiliaryConfig, ModelConfig, Preset
from lm.checkpoint import required_bytes

if TYPE_CHECKING:
    import torch

# The heads' shapes that matter for cost (aux_heads/): one position in four, three tokens ahead.
UNROLL_STEPS, POSITION_SHARE, POLICY_SHARE = 3, 1 / 4, 1 / 16
VALUE_SIZE, VALUE_BINS, SPAN_SIZE = 128, 64, 128
POLICY_POSITIONS = 2048

# Fitted to the peak resident memory of compiled bf16 steps on a CPU (256x2 and 384x5, 8k and 16k tokens a micro-batch).
LAYER_BYTES, SCORE_BYTES = 35, 9  # kept for backward: a channel of one layer and token; one attention score
FP32_FACTOR, EAGER_FACTOR = 1.7, 2.0  # of those bytes, without bf16 and without torch.compile
PROCESS_BYTES = {"cpu": 700_000_000, "cuda": 1_000_000_000}  # Python, torch, compiler or CUDA context, loss chunks
PRODUCER_BYTES = 400_000_000

CPU_EFFICIENCY, EAGER_CPU_EFFICIENCY = 0.65, 0.5  # of the matmul peak: 17.5k tokens/s of 28 MFLOP at 725 GFLOP/s
GPU_EFFICIENCY, GPU_FULL_WIDTH = 0.35, 768  # narrower models leave more of a GPU idle


def num_matrix_parameters(model: ModelConfig) -> int:
    """Parameters of the blocks' matrices: all that Muon updates."""
    return model.num_layers * (4 * model.hidden_size**2 + 3 * model.hidden_size * model.mlp_size)


def num_parameters(model: ModelConfig, vocab_size: int) -> int:
    """Every parameter of the trunk, the embedding included; heads are not counted."""
    tables = (1 if model.tie_embeddings else 2) * vocab_size * model.hidden_size
    norms = model.num_layers * (2 * model.hidden_size + 2 * model.head_dim) + model.hidden_size
    return num_matrix_parameters(model) + tables + norms


def num_head_parameters(model: ModelConfig, auxiliary: AuxiliaryConfig) -> int:
    """Parameters of the heads that are on."""
    width, total = model.hidden_size, 0
    if auxiliary.enable_dynamics or auxiliary.enable_policy:
        total += 4 * width**2 + 3 * width
    if auxiliary.enable_value:
        total += VALUE_SIZE * (width + 1) + VALUE_BINS * (VALUE_SIZE + 1)
    if auxiliary.enable_span_contrastive:
        total += 2 * SPAN_SIZE * width
    return total


def flops_per_token(
    model: ModelConfig, vocab_size: int, auxiliary: AuxiliaryConfig, tokens_per_step: int | None = None
) -> float:
    """Forward and backward of trunk, output layer and heads, and the optimizer's share if `tokens_per_step` is given.

    6 for each matmul parameter, and causal attention, where a token sees T/2 others on average (PaLM, arXiv 2204.02311,
    appendix B). Muon: five Newton-Schulz steps a matrix and step, each 4 r^2 c + 2 r^3 (lm/optim.py).
    """
    width, inner = model.hidden_size, model.mlp_size
    flops = 6.0 * (num_matrix_parameters(model) + vocab_size * width)
    flops += 6.0 * model.num_layers * width * model.seq_length
    if auxiliary.enable_dynamics or auxiliary.enable_policy:
        flops += 6 * 4 * width**2 * UNROLL_STEPS * POSITION_SHARE
    if auxiliary.enable_policy:  # the output layer is read, not trained: no weight gradient
        flops += 4 * width * vocab_size * UNROLL_STEPS * POLICY_SHARE
    if auxiliary.enable_value:
        flops += 6 * VALUE_SIZE * (width + VALUE_BINS) * (1 + UNROLL_STEPS) * POSITION_SHARE
    if tokens_per_step:
        short, long = min(width, inner), max(width, inner)
        orthogonalized = 4 * 6 * width**3 + 3 * (4 * short**2 * long + 2 * short**3)
        flops += 5 * model.num_layers * orthogonalized / tokens_per_step
    return flops


def checkpoint_bytes(preset: Preset) -> int:
    """Weights in fp32, one momentum for Muon's matrices, two moments for the rest."""
    matrices = num_matrix_parameters(preset.model)
    others = num_parameters(preset.model, preset.model.vocab_size) - matrices
    return 8 * matrices + 12 * (others + num_head_parameters(preset.model, preset.auxiliary))


def disk_bytes(preset: Preset, token_budget: int) -> int:
    """A whole run: checkpoints, the journal of every row, and the export."""
    model = preset.model
    token_width = 2 if model.vocab_size <= 2**16 else 4
    num_rows = -(-token_budget // model.seq_length)
    journal = num_rows * (model.seq_length + 1) * (token_width + 1)
    return required_bytes(checkpoint_bytes(preset)) + journal + 4 * num_parameters(model, model.vocab_size)


def memory_bytes(preset: Preset, device: str = "cpu", *, low_precision: bool = True, compiled: bool = True) -> int:
    """Peak memory of training with the preset's micro-batch: of the GPU for "cuda", of all our processes for "cpu".

    Within about a third of what was measured; a trial step knows better.
    """
    model, aux = preset.model, preset.auxiliary
    num_tokens = preset.train.per_gpu_batch_size * model.seq_length
    gradients = 4 * (num_parameters(model, model.vocab_size) + num_head_parameters(model, aux))
    per_token = model.num_layers * model.hidden_size * LAYER_BYTES
    if device == "cpu":  # the fused kernel of a GPU keeps no scores; our row blocks keep 5/8 of them
        per_token += model.num_layers * model.num_heads * model.seq_length * SCORE_BYTES * 5 // 8
    factor = (1 if low_precision else FP32_FACTOR) * (1 if compiled else EAGER_FACTOR)
    policy = 4 * 4 * min(POLICY_POSITIONS, num_tokens) * model.vocab_size if aux.enable_policy else 0
    fixed = PROCESS_BYTES[device] + (PRODUCER_BYTES if device == "cpu" else 0)
    return int(fixed + checkpoint_bytes(preset) + gradients + factor * per_token * num_tokens + policy)


def largest_batch(preset: Preset, available: int, device: str = "cpu", **choices: bool) -> int:
    """The largest number of rows a micro-batch that fits into `available` bytes and makes the same step in whole
    micro-batches: a divisor of per_gpu_batch_size * accumulation_steps, 0 if not even one row fits.
    """
    rows = preset.train.per_gpu_batch_size * preset.train.accumulation_steps
    for candidate in (size for size in range(rows, 0, -1) if rows % size == 0):
        train = preset.train.model_copy(update={"per_gpu_batch_size": candidate})
        if memory_bytes(preset.model_copy(update={"train": train}), device, **choices) <= available:
            return candidate
    return 0


def available_memory() -> int | None:
    """Bytes this process may still take: free memory, its control group's and its own limit. None where unknown."""
    if sys.platform == "darwin":  # what is free is not told; all of it is an upper bound
        return int(subprocess.run(["sysctl", "-n", "hw.memsize"], capture_output=True, check=True).stdout)
    if sys.platform != "linux":
        return None
    import resource

    lines = Path("/proc/meminfo").read_text().splitlines()
    limits = [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")]
    limits += [limit - used for limit, used in _control_group_limits()]
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        limits.append(limit - resource.getpagesize() * int(Path("/proc/self/statm").read_text().split()[0]))
    return max(0, min(limits))


def _control_group_limits() -> list[tuple[int, int]]:
    """(limit, used) in bytes of this process's control group and those above it, version 2 or 1."""
    found = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        root = Path("/sys/fs/cgroup", controllers)
        limit, used = (
            ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
        )
        here = root / group.lstrip("/")
        for folder in (here, *here.parents):
            if not folder.is_relative_to(root):
                break
            try:
                found.append((int((folder / limit).read_text()), int((folder / used).read_text())))
            except (OSError, ValueError):  # not visible in this container, or "max"
                continue
    return found


@dataclasses.dataclass(frozen=True)
class Machine:
    """What was measured here. `speeds`: tokens a second of each kind of run that was tried, see `speed_key`."""

    identity: str
    device: str  # "cpu" or "cuda"
    device_name: str
    low_precision: bool
    compiled: bool
    matmul_flops: float  # a second, one device, in the precision that training uses
    speeds: dict[str, float] = dataclasses.field(default_factory=dict)


def machine_identity() -> str:
    """Names the hardware in use without torch: measurements of another machine, or of other GPUs, do not apply."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    gpus = len(list(Path("/dev").glob("nvidia[0-9]*")))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "all")
    return f"{platform.node()}, {_cpu_name()}, {cores} cores, {gpus} GPUs ({visible} visible)"


def _cpu_name() -> str:
    return next((value for key, value in _cpu_info() if key == "model name"), platform.machine())


def _cpu_info() -> list[tuple[str, str]]:
    """(key, value) lines of /proc/cpuinfo; empty where there is none."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return [(key.strip(), value.strip()) for key, _, value in (line.partition(":") for line in lines)]


def measure_machine() -> Machine:
    """Times matrix products for less than half a second, in the precision that training will use."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype, _ = precision_choice(device)
    size = 4096 if device == "cuda" else 768
    matrix = torch.randn(size, size, device=device).to(dtype)
    best, start = float("inf"), time.perf_counter()
    while time.perf_counter() - start < 0.3:
        before = time.perf_counter()
        matrix @ matrix
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - before)
    return Machine(
        identity=machine_identity(),
        device=device,
        device_name=torch.cuda.get_device_name() if device == "cuda" else _cpu_name(),
        low_precision=dtype == torch.bfloat16,
        compiled=compile_choice(device)[0],
        matmul_flops=2 * size**3 / best,
    )


def load_machine(folder: Path) -> Machine | None:
    """What `save_machine` kept in `folder`, if it was this machine."""
    try:
        machine = Machine(**json.loads((Path(folder) / "machine.json").read_text()))
    except (OSError, ValueError, TypeError):  # none yet, or written by another version: measured again
        return None
    return machine if machine.identity == machine_identity() else None


def save_machine(folder: Path, machine: Machine) -> None:
    """Writes `machine.json`; `record_speed` makes a Machine with one more measured speed."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".machine.{os.getpid()}.tmp"
    temporary.write_text(json.dumps(dataclasses.asdict(machine), indent=1))
    os.replace(temporary, folder / "machine.json")


def record_speed(machine: Machine, preset: Preset, tokens_per_second: float, world_size: int = 1) -> Machine:
    speeds = machine.speeds | {speed_key(preset, world_size): tokens_per_second}
    return dataclasses.replace(machine, speeds=speeds)


def speed_key(preset: Preset, world_size: int = 1) -> str:
    """All that the speed of a run depends on, but the machine."""
    model = ",".join(f"{name}={value}" for name, value in preset.model.model_dump().items())
    aux = preset.auxiliary.model_dump()
    heads = "+".join(name for name, value in aux.items() if name.startswith("enable_") and value is True)
    rows = f"{preset.train.per_gpu_batch_size}x{preset.train.accumulation_steps}x{world_size}"
    return f"{model}; rows {rows}; heads {heads or 'none'}"


def seconds_to_budget(preset: Preset, machine: Machine, token_budget: int, world_size: int = 1) -> float:
    """Seconds of training; from the measured speed of such a run, or else from FLOPs and the machine's matmul speed."""
    if speed := machine.speeds.get(speed_key(preset, world_size)):
        return token_budget / speed
    model, train = preset.model, preset.train
    tokens_per_step = train.per_gpu_batch_size * train.accumulation_steps * model.seq_length * world_size
    if machine.device == "cuda":
        efficiency = GPU_EFFICIENCY * min(1, model.hidden_size / GPU_FULL_WIDTH)
    else:
        efficiency = CPU_EFFICIENCY if machine.compiled else EAGER_CPU_EFFICIENCY
    flops = flops_per_token(model, model.vocab_size, preset.auxiliary, tokens_per_step)
    # Several processes on one CPU share its cores; several GPUs add up.
    devices = world_size if machine.device == "cuda" else 1
    return token_budget * flops / (machine.matmul_flops * efficiency * devices)


def precision_choice(device: str) -> "tuple[torch.dtype, str]":
    """The type of matrix products on "cuda" or "cpu", and why."""
    import torch

    if device == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, f"{torch.cuda.get_device_name()} multiplies bfloat16 in hardware"
        return torch.float32, f"{torch.cuda.get_device_name()} has no bfloat16 units"
    flags = next((value.split() for key, value in _cpu_info() if key == "flags"), [])
    for flag in ("amx_bf16", "avx512_bf16"):
        if flag in flags:
            return torch.bfloat16, f"this CPU has {flag}"
    return torch.float32, "this CPU has neither avx512_bf16 nor amx_bf16, without which bfloat16 is slower than float32"


def compile_choice(device: str) -> tuple[bool, str]:
    """Whether torch.compile can be used on "cuda" or "cpu", and why."""
    compilers = [os.environ.get("CXX", "g++"), "clang++"] if device == "cpu" else [os.environ.get("CC", "gcc"), "clang"]
    compiler = next((path for path in map(shutil.which, compilers) if path), None)
    if compiler is None:
        return False, f"no compiler found (looked for {' and '.join(compilers)})"
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").exists():
        return False, "Python's header files are not installed (python3-dev), which compiled code needs"
    if device == "cuda" and importlib.util.find_spec("triton") is None:
        return False, "triton is not installed"
    return True, f"{compiler} is there" + (", and triton" if device == "cuda" else "")
