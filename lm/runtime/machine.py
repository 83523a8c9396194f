"""The capabilities of this machine: memory, cores, matmul speed, bfloat16. Each choice comes
with its reason.

Linux and macOS. torch is imported only where a GPU or a matrix product is needed; nothing here
depends on a preset.
"""

import ctypes
import dataclasses
import errno
import json
import logging
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, TypeAdapter

from configs.errors import DiskError
from data.files import write_atomically
from lm.runtime.compiler import compile_choice, toolchain
from lm.runtime.devices import device_choice, device_identity, gpu_precision

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    import torch


# Messages of torch's CPU allocator, of oneDNN, of the loader of libraries, of GPUs (CUDA, HIP, MPS) and of cuBLAS.
OUT_OF_MEMORY = (
    *("can't allocate memory", "could not create a ", "failed to map segment"),
    *("out of memory", "CUBLAS_STATUS_ALLOC_FAILED"),
)
LARGEST_FILE = 1_000_000  # bytes of machine.json
Rate = Annotated[float, Field(gt=0, lt=1e30)]


@dataclasses.dataclass(frozen=True)
class Machine:
    """Measurements of this machine. For each kind of run tried, `speeds` has its tokens per second
    and `paces` the ratio of that to the estimate of lm/runtime/estimate.py."""

    identity: str
    device: str  # "cpu", "cuda" or "mps"
    device_name: str
    low_precision: bool
    compiled: bool
    matmul_flops: Rate  # per second, of one device, in the precision that training uses
    speeds: dict[str, Rate] = dataclasses.field(default_factory=dict)
    paces: dict[str, Rate] = dataclasses.field(default_factory=dict)


def machine_identity() -> str:
    """Return the key under which measurements apply, without torch: those of another machine, of
    other GPUs, with another number of threads or from before a compiler was installed do not."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    gpu = any(Path("/dev").glob("nvidia[0-9]*"))
    compiler = "a compiler" if toolchain("cuda" if gpu else "cpu")[0] else "no compiler"
    threads = os.environ.get("OMP_NUM_THREADS") if int(os.environ.get("LOCAL_WORLD_SIZE", 1)) == 1 else None
    computing = f"{cores} cores" + (f", OMP_NUM_THREADS={threads}" if threads else "")
    return f"{platform.node()}, {_cpu_name()}, {computing}, {device_identity()}, {compiler}"


def _cpu_name() -> str:
    return next((value for key, value in _cpu_info() if key == "model name"), platform.machine())


def _cpu_info() -> list[tuple[str, str]]:
    """Return the (key, value) lines of /proc/cpuinfo; [] where there is none."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return [(key.strip(), value.strip()) for key, _, value in (line.partition(":") for line in lines)]


def measure_machine(device: str = "") -> Machine:
    """Time matrix products for less than half a second, in the precision of training, on `device` or else the
    one that trains."""
    import torch

    device = device or device_choice(int(os.environ.get("WORLD_SIZE", 1))).value
    dtype, _ = precision_choice(device)
    threads = torch.get_num_threads()
    # The threads of all processes that share this CPU.
    torch.set_num_threads(thread_choice()[0] * int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    size = 768 if device == "cpu" else 4096
    matrix = torch.randn(size, size, device=device).to(dtype)
    best, start = float("inf"), time.perf_counter()
    while time.perf_counter() - start < 0.3:
        before = time.perf_counter()
        matrix @ matrix
        if device != "cpu":
            getattr(torch, device).synchronize()
        best = min(best, time.perf_counter() - before)
    torch.set_num_threads(threads)
    return Machine(
        identity=machine_identity(),
        device=device,
        device_name=_cpu_name() if device == "cpu" else device_name(torch.device(device)),
        low_precision=dtype != torch.float32,
        compiled=compile_choice(device)[0],
        matmul_flops=2 * size**3 / best,
    )


def load_machine(folder: Path) -> Machine | None:
    """Load what `save_machine` wrote in `folder`; None if it is missing or of another machine."""
    path = folder / "machine.json"
    try:
        if not path.is_file() or path.stat().st_size > LARGEST_FILE:
            return None
        machine = TypeAdapter(Machine).validate_json(path.read_bytes())
    except (OSError, ValueError):  # unreadable, or of another form: measured again
        return None
    return machine if machine.identity == machine_identity() else None


def save_machine(folder: Path, machine: Machine) -> None:
    """Write `machine.json`. If the disk refuses, this is logged: the next start measures again."""
    path = folder / "machine.json"
    try:
        write_atomically(path, json.dumps(dataclasses.asdict(machine), indent=1).encode())
    except DiskError as error:
        log.warning("machine.json cannot be written (%s): this machine is measured again next time.", error.__cause__)


def keep_freed_memory() -> None:
    """Let training on the CPU reuse its buffers from step to step.

    glibc returns large ones to the kernel, which clears them page by page when they are allocated
    again: a sixth to a quarter of a step's time. They are taken from the heap instead, which stays
    as large as a step needs, somewhat larger than the sum of the buffers. Other C libraries are
    not changed.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        m_mmap_max, m_trim_threshold = -4, -1  # malloc.h
        mallopt(m_mmap_max, 0)
        mallopt(m_trim_threshold, 2**31 - 1)


def available_memory() -> int:
    """Return the bytes of free memory that this process may take, within its own limits and those
    of its control group."""
    if sys.platform == "darwin":  # free memory is not reported; all of it is an upper bound
        return int(subprocess.run(["sysctl", "-n", "hw.memsize"], capture_output=True, check=True).stdout)
    import resource

    lines = Path("/proc/meminfo").read_text().splitlines()
    sizes = {line.split(":")[0]: 1024 * int(line.split()[1]) for line in lines if line.endswith(" kB")}
    # WSL 1 and some sandboxes imitate this file, without the line that is meant.
    limits = [sizes.get("MemAvailable", sizes.get("MemFree", 0) + sizes.get("Cached", 0))]
    limits += [limit - used for limit, used in _control_group_limits()]
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        limits.append(limit - resource.getpagesize() * int(Path("/proc/self/statm").read_text().split()[0]))
    return max(0, min(limits))


def device_name(device: "torch.device") -> str:
    """Return the name of the device that a process works on."""
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return "Apple GPU"
    return f"{os.cpu_count()}-core {platform.machine()} CPU"


def is_out_of_memory(error: Exception) -> bool:
    """Return whether `error` means that memory, or what a limit leaves of it, is not enough."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # the latter is torch's, of GPUs
        return True
    return getattr(error, "errno", None) == errno.ENOMEM or any(words in str(error) for words in OUT_OF_MEMORY)


def peak_memory(device: str) -> int:
    """Return the most bytes that this process has held so far; of the GPU for "cuda"."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    if device == "mps":
        import torch

        return torch.mps.driver_allocated_memory()  # never less than before: torch keeps it
    import resource

    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Not ru_maxrss, where there is another: on Linux a program inherits that of the process that started it.
    status = Path("/proc/self/status").read_text().splitlines()
    peak = next((1024 * int(line.split()[1]) for line in status if line.startswith("VmHWM")), None)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 if peak is None else peak


def _control_groups(controller: str) -> Iterator[tuple[Path, bool]]:
    """Yield (folder, whether version 2) of this process's control group and those above it."""
    path = Path("/proc/self/cgroup")
    for line in path.read_text().splitlines() if path.exists() else []:
        _, controllers, group = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = Path("/sys/fs/cgroup", controllers)
        here = root / group.lstrip("/")
        yield from ((folder, not controllers) for folder in (here, *here.parents) if folder.is_relative_to(root))


def _control_group_limits() -> list[tuple[int, int]]:
    """Return (limit, used) in bytes of memory, for each control group with a limit. Not used are copies
    of files, which the kernel drops when memory is needed."""
    found = []
    for folder, second in _control_groups("memory"):
        limit, used = ("memory.max", "memory.current") if second else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        with suppress(OSError, ValueError):  # not visible in this container, or "max"
            held = int((folder / used).read_text()) - _copies_of_files(folder, second)
            found.append((int((folder / limit).read_text()), held))
    return found


def _copies_of_files(group: Path, second: bool) -> int:
    with suppress(OSError, ValueError):
        counted = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        names = [f"{'' if second else 'total_'}{kind}_file" for kind in ("active", "inactive")]
        return sum(int(counted.get(name, 0)) for name in names)
    return 0


def physical_cores() -> int:
    """Return the number of cores this process may use: hyperthreads of one core count once, and
    the CPU quota of a container applies."""
    if sys.platform != "linux":
        return os.cpu_count() or 1
    siblings = "/sys/devices/system/cpu/cpu{}/topology/core_cpus_list"
    usable = os.sched_getaffinity(0)
    cores = len({path.read_text() if (path := Path(siblings.format(cpu))).exists() else cpu for cpu in usable})
    for folder, second in _control_groups("cpu"):
        with suppress(OSError, ValueError):
            names = ["cpu.max"] if second else ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
            quota, period = map(int, " ".join((folder / name).read_text() for name in names).split())
            if quota > 0:
                cores = min(cores, math.ceil(quota / period))
    return cores


def thread_choice() -> tuple[int, str]:
    """Return the number of threads for this process's matrix products, and the reason. Processes
    of one job on this machine share its cores."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if "OMP_NUM_THREADS" in os.environ and processes == 1:  # else torchrun has set it to 1
        import torch

        return torch.get_num_threads(), "OMP_NUM_THREADS is set"
    cores = physical_cores()
    threads = max(1, cores // processes)
    return threads, f"{cores} cores" + (f" for {processes} processes" if processes > 1 else "")


def precision_choice(device: str) -> "tuple[torch.dtype, str]":
    """Return the dtype of matrix products on a device, and the reason."""
    import torch

    if device != "cpu":
        name, reason = gpu_precision(device)
        return getattr(torch, name), reason
    flags = next((value.split() for key, value in _cpu_info() if key == "flags"), [])
    for flag in ("amx_bf16", "avx512_bf16"):
        if flag in flags:
            return torch.bfloat16, f"this CPU has {flag}"
    return torch.float32, "this CPU has neither avx512_bf16 nor amx_bf16, without which bfloat16 is slower than float32"
