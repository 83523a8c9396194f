"""The device that a process trains on and its precision, each with its reason.

`hardware()` reads what torch can use and what the system shows; everything else here is a function
of that, so that tests can name any machine. "cuda" is torch's name for AMD's GPUs too. Seen on
hardware: CPUs, and NVIDIA GPUs with bfloat16. torch is imported only inside functions.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import sys
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from configs.text import clip
from data.sources.hub_client import first_line

VARIABLES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
INSTALL = "install the build for it: https://pytorch.org/get-started/locally"
NVIDIA_DRIVER = Path("/sys/module/nvidia/version")
WSL_GPU, WSL_LIBRARIES = Path("/dev/dxg"), Path("/usr/lib/wsl/lib")  # any maker's; libcuda.so of NVIDIA's alone
PCI_NVIDIA, PCI_DISPLAY = "0x10de", "0x03"  # vendor; class of devices


@dataclass(frozen=True)
class Hardware:
    """What torch can use, and what the system shows whether torch can use it or not."""

    gpus: tuple[str, ...] = ()  # names of those that torch can use through CUDA or ROCm
    capability: tuple[int, int] = (0, 0)  # of the first, as NVIDIA counts
    architectures: tuple[str, ...] = ()  # that torch has kernels for: "sm_75", "gfx90a"
    bfloat16: bool = False  # whether the first GPU multiplies it in hardware
    built_for: str = ""  # "CUDA 13.0", "ROCm 7.0"; "" for a build without GPUs
    failure: str = ""  # torch's own words for why it can use no GPU, or why the first one fails
    hidden_by: str = ""  # a variable that hides all GPUs
    misnamed_by: str = ""  # NAME=value of a variable that names GPUs, none of which is here
    nvidia: bool = False  # such a GPU is in this machine
    amd: bool = False
    apple: bool = False  # a Mac with Apple's own chip
    metal: bool = False  # torch can use its GPU
    metal_bfloat16: bool = False
    architecture: str = ""  # of the first GPU, as ROCm names it: "gfx90a"


class Choice(NamedTuple):
    value: str
    reason: str


@functools.cache
def hardware() -> Hardware:
    """Return this machine's; the first call initialises CUDA."""
    import torch

    with warnings.catch_warnings(record=True) as caught:  # torch warns once, in the first call
        warnings.simplefilter("always")
        usable = torch.cuda.is_available()
    said = [str(warning.message) for warning in caught if "CUDA initialization" in str(warning.message)]
    hip = getattr(torch.version, "hip", None)
    built_for = f"ROCm {hip}" if hip else f"CUDA {torch.version.cuda}" if torch.version.cuda else ""
    metal = torch.backends.mps.is_available()
    found = Hardware(
        built_for=built_for,
        failure=said[0].partition("CUDA initialization: ")[2].partition(" (Triggered")[0].strip() if said else "",
        hidden_by=next((name for name in VARIABLES if os.environ.get(name) in ("", "-1")), ""),
        nvidia=_has_nvidia_driver() or any(Path("/dev").glob("nvidia[0-9]*")) or _has_nvidia_card(),
        amd=Path("/dev/kfd").exists(),
        apple=sys.platform == "darwin" and platform.machine() == "arm64",
        metal=metal,
        metal_bfloat16=metal and torch.backends.mps.is_macos_or_newer(14, 0),
    )
    if usable:
        return _with_gpus(found)
    # Without a driver, or the right to use the device, no value of theirs would help.
    if not (found.hidden_by or said) and (_has_nvidia_driver() or os.access("/dev/kfd", os.R_OK | os.W_OK)):
        named = next((f"{name}={os.environ[name]}" for name in VARIABLES if name in os.environ), "")
        found = replace(found, misnamed_by=clip(named, 80))
    return found


def _with_gpus(found: Hardware) -> Hardware:
    """Return `found` with what torch says of the GPUs that it can use, the first of which is tried."""
    import torch

    try:
        first = torch.cuda.get_device_properties(0)
        found = replace(
            found,
            gpus=tuple(map(torch.cuda.get_device_name, range(torch.cuda.device_count()))),
            capability=torch.cuda.get_device_capability(),
            architecture=getattr(first, "gcnArchName", "").partition(":")[0],
            architectures=tuple(torch.cuda.get_arch_list()),
            bfloat16=torch.cuda.is_bf16_supported(including_emulation=False),
        )
        # Each process of a job has a GPU of its own: what fails there ends the job.
        if "LOCAL_RANK" not in os.environ and not _without_kernels(found):
            (torch.ones(16, device="cuda") + 1).sum().item()
    except Exception as error:  # of any kind: of the driver, of the card, of the build
        if not (found.gpus and "out of memory" in str(error).lower()):  # which another program may use
            # Or torch's optimizers would ask that GPU about each step of a run on the CPU.
            torch.cuda.is_available = lambda: False
            return replace(found, failure=clip(first_line(error), 200))
    return found


def _has_nvidia_driver() -> bool:
    """Return whether such a GPU and its driver are here."""
    if WSL_GPU.exists() and any(WSL_LIBRARIES.glob("libcuda.so*")):
        return True
    return NVIDIA_DRIVER.exists() and any(Path("/dev").glob("nvidia[0-9]*"))


def _has_nvidia_card() -> bool:
    """Return whether the system lists one, with a driver or without."""
    for vendor in Path("/sys/bus/pci/devices").glob("*/vendor"):
        try:
            kind = (vendor.parent / "class").read_text()
            if vendor.read_text().strip() == PCI_NVIDIA and kind.startswith(PCI_DISPLAY):
                return True
        except OSError:  # gone, or hidden in this container
            continue
    return False


def device_choice(num_processes: int = 1) -> Choice:
    """Return "cuda", "mps" or "cpu" for each of the processes of a job, and the reason."""
    found = hardware()
    if found.gpus and (problem := _without_kernels(found)):
        return Choice("cpu", problem)
    if found.gpus and found.failure:
        return Choice("cpu", f"{found.gpus[0]} fails: {found.failure}")
    if found.gpus:
        number = len(found.gpus)
        if num_processes == 1 and number > 1:
            return Choice("cuda", f"the first of {number} GPUs; to use all: torchrun --nproc_per_node={number} main.py")
        return Choice("cuda", f"torch is built for {found.built_for}")
    if found.metal and num_processes == 1 and "TORCHELASTIC_RUN_ID" not in os.environ:
        return Choice("mps", "torch can use this Mac's GPU")
    return Choice("cpu", _without_gpu(found))


def _without_kernels(found: Hardware) -> str:
    """Return why torch cannot compute on the first GPU although it finds it, or ""."""
    major, minor = found.capability
    versions, intermediate = _versions(found, "sm_"), _versions(found, "compute_")
    if found.architecture and not versions:  # of AMD, where a kernel runs on its own architecture alone
        own, names = found.architecture, [name.partition(":")[0] for name in found.architectures]
        runs = not names or own in names or any(name.endswith("-generic") for name in names)
    else:  # a kernel runs on later versions of its generation, intermediate code on all later ones
        own = f"sm_{major}{minor}"
        runs = any(version[0] == major and version[1] <= minor for version in versions)
        runs = runs or not versions or any(version <= (major, minor) for version in intermediate)
    if runs:
        return ""
    built = ", ".join(found.architectures)
    return f"this torch has no kernels for {found.gpus[0]} ({own}; it has {built}): {INSTALL}"


def _versions(found: Hardware, prefix: str) -> list[tuple[int, int]]:
    """Return the versions of NVIDIA's GPUs for which torch has code that begins with `prefix`."""
    names = [name.removeprefix(prefix).rstrip("af") for name in found.architectures if name.startswith(prefix)]
    return [(int(digits[:-1]), int(digits[-1])) for digits in names if digits.isdecimal()]


def _without_gpu(found: Hardware) -> str:
    """Return why torch uses no GPU."""
    if found.hidden_by and (found.nvidia or found.amd):
        return f"{found.hidden_by} hides the GPUs"
    if found.metal:
        return "the processes of torchrun cannot use a Mac's GPU"
    if found.nvidia:
        if not found.built_for.startswith("CUDA"):
            return f"there is an NVIDIA GPU, but this torch is built without CUDA; {INSTALL}"
        if found.misnamed_by:
            return f"{found.misnamed_by} names none of the GPUs"
        return f"there is an NVIDIA GPU, but torch cannot use it: {found.failure or 'its driver is not installed'}"
    if found.amd:
        if not found.built_for.startswith("ROCm"):
            return f"there is an AMD GPU, but this torch is built without ROCm; {INSTALL}"
        if found.misnamed_by:
            return f"{found.misnamed_by} names none of the GPUs"
        why = found.failure or "this user may have to join the groups render and video"
        return f"there is an AMD GPU, but torch cannot use it: {why}"
    if found.apple:
        return "this torch cannot use the Mac's GPU: it needs a newer macOS, or another build"
    return "there is no GPU that torch could use"


def gpu_precision(device: str) -> Choice:
    """Return the name of the dtype of matrix products on a GPU, and the reason."""
    found = hardware()
    if device == "mps":
        if found.metal_bfloat16:
            return Choice("bfloat16", "this macOS has it")
        return Choice("float32", "bfloat16 needs macOS 14")
    name = found.gpus[0]
    if found.bfloat16:
        return Choice("bfloat16", f"{name} multiplies bfloat16 in hardware")
    if found.capability >= (7, 0):
        return Choice("float16", f"{name} has no bfloat16 units; the loss is scaled, so that small gradients remain")
    return Choice("float32", f"{name} has no units for smaller numbers")


def device_identity() -> str:
    """Return what decides which device torch can use, without importing it."""
    gpus = len(list(Path("/dev").glob("nvidia[0-9]*")))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "all")
    version = NVIDIA_DRIVER.read_text().strip() if NVIDIA_DRIVER.exists() else "none"
    return f"{gpus} GPUs ({visible} visible, driver {version}), torch {importlib.metadata.version('torch')}"
