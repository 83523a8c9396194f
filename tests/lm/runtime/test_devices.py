"""Which device and precision a machine gets, and the reason that the start card gives; none of these machines is here."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from lm.learner import Learner
from lm.runtime import compiler, devices, machine
from lm.runtime.devices import Hardware, hardware
from lm.runtime.distributed import World
from tests.lm.small_step import ALL_HEADS, make_step
from tests.lm.test_train_step import rows, whole
from tests.program import tiny_preset

H100 = Hardware(("H100",), (9, 0), ("sm_75", "sm_80", "sm_90"), True, "CUDA 13.0", nvidia=True)
T4 = Hardware(("Tesla T4",), (7, 5), ("sm_75", "sm_80"), False, "CUDA 13.0", nvidia=True)
V100 = Hardware(("V100",), (7, 0), ("sm_70", "sm_75"), False, "CUDA 12.6", nvidia=True)
P100 = Hardware(("P100",), (6, 0), ("sm_50", "sm_60"), False, "CUDA 12.6", nvidia=True)
MI300 = Hardware(("MI300X",), (9, 4), ("gfx90a", "gfx942"), True, "ROCm 7.0", amd=True, architecture="gfx942")
MAC = Hardware(apple=True, metal=True, metal_bfloat16=True)


@pytest.fixture
def here(monkeypatch):
    """Makes this machine one with that hardware."""

    def become(found: Hardware) -> None:
        for module in (compiler, devices):
            monkeypatch.setattr(module, "hardware", lambda: found)

    return become


@pytest.mark.parametrize(
    ("found", "expected", "says"),
    [
        (H100, "cuda", "torch is built for CUDA 13.0"),
        (Hardware(("H100",) * 4, (9, 0), ("sm_90",), True), "cuda", "to use all: torchrun --nproc_per_node=4 main.py"),
        (Hardware(("RTX 3090",), (8, 6), ("sm_80",)), "cuda", "torch is built for"),
        (Hardware(("RTX 6090",), (13, 0), ("sm_90", "compute_120")), "cuda", "torch is built for"),
        (
            Hardware(("V100",), (7, 0), ("sm_75", "sm_120a")),
            "cpu",
            "no kernels for V100 (sm_70; it has sm_75, sm_120a)",
        ),
        (Hardware(("V100",), (7, 0), ("sm_75", "sm_120", "compute_120")), "cpu", "no kernels for V100"),
        (MI300, "cuda", "torch is built for ROCm 7.0"),
        (MAC, "mps", "torch can use this Mac's GPU"),
        (Hardware(apple=True), "cpu", "cannot use the Mac's GPU: it needs a newer macOS"),
        (Hardware(nvidia=True), "cpu", "built without CUDA; install the build for it: https://pytorch.org"),
        (Hardware(nvidia=True, built_for="ROCm 7.0"), "cpu", "built without CUDA"),
        (Hardware(nvidia=True, built_for="CUDA 13.0", failure="driver is too old"), "cpu", "driver is too old"),
        (Hardware(nvidia=True, built_for="CUDA 13.0"), "cpu", "its driver is not installed"),
        (
            Hardware(nvidia=True, built_for="CUDA 13.0", hidden_by="CUDA_VISIBLE_DEVICES"),
            "cpu",
            "CUDA_VISIBLE_DEVICES hides",
        ),
        (
            Hardware(nvidia=True, built_for="CUDA 13.0", misnamed_by="CUDA_VISIBLE_DEVICES=7"),
            "cpu",
            "CUDA_VISIBLE_DEVICES=7 names none of the GPUs",
        ),
        (replace(H100, failure="CUDA error: unknown error"), "cpu", "H100 fails: CUDA error: unknown error"),
        (replace(MI300, architecture="gfx1036"), "cpu", "no kernels for MI300X (gfx1036; it has gfx90a, gfx942)"),
        (Hardware(amd=True, built_for="CUDA 13.0"), "cpu", "an AMD GPU, but this torch is built without ROCm"),
        (Hardware(amd=True, built_for="ROCm 7.0"), "cpu", "groups render and video"),
        (Hardware(hidden_by="CUDA_VISIBLE_DEVICES"), "cpu", "there is no GPU"),
    ],
)
def test_the_device_has_its_reason(here, found, expected, says):
    here(found)
    device, reason = devices.device_choice()
    assert device == expected
    assert says in reason


def test_processes_of_a_job(here):
    here(Hardware(("H100",) * 4, (9, 0), ("sm_90",), True, "CUDA 13.0"))
    assert devices.device_choice(4) == ("cuda", "torch is built for CUDA 13.0")
    here(MAC)
    assert devices.device_choice(2) == ("cpu", "the processes of torchrun cannot use a Mac's GPU")


@pytest.mark.parametrize(
    ("found", "device", "dtype", "says"),
    [
        (H100, "cuda", torch.bfloat16, "H100 multiplies bfloat16 in hardware"),
        (MI300, "cuda", torch.bfloat16, "in hardware"),
        (T4, "cuda", torch.float16, "Tesla T4 has no bfloat16 units; the loss is scaled"),
        (V100, "cuda", torch.float16, "the loss is scaled"),
        (P100, "cuda", torch.float32, "no units for smaller numbers"),
        (MAC, "mps", torch.bfloat16, "this macOS has it"),
        (Hardware(metal=True), "mps", torch.float32, "needs macOS 14"),
    ],
)
def test_the_precision_has_its_reason(here, found, device, dtype, says):
    here(found)
    chosen, reason = machine.precision_choice(device)
    assert chosen == dtype
    assert says in reason


def test_what_is_not_compiled(here, monkeypatch):
    monkeypatch.setattr(compiler, "toolchain", lambda device: (True, "all is there"))
    for found, device, expected in ((T4, "cuda", True), (P100, "cuda", False), (MAC, "mps", False)):
        here(found)
        assert compiler.compile_choice(device)[0] is expected


def test_this_machine_is_read_without_a_warning(recwarn):
    hardware.cache_clear()
    found = hardware()
    assert bool(found.gpus) == torch.cuda.is_available()
    assert found.metal == torch.backends.mps.is_available()
    assert [str(warning.message) for warning in recwarn] == []


@pytest.fixture
def read_anew():
    """What this machine has is read again in the test, and after it."""
    hardware.cache_clear()
    yield
    hardware.cache_clear()


@pytest.mark.parametrize("value", ["7", "none", "NoDevFiles"])
def test_a_variable_that_names_no_gpu_of_this_machine_is_named(value, read_anew, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    monkeypatch.setattr(devices, "_has_nvidia_driver", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert (hardware().nvidia, hardware().misnamed_by) == (True, f"CUDA_VISIBLE_DEVICES={value}")


@pytest.mark.parametrize(
    ("message", "chosen"),
    [("CUDA error: unspecified launch failure\nCompile with", "cpu"), ("CUDA out of memory. Tried to", "cuda")],
)
def test_a_gpu_that_is_found_and_fails_is_not_used(message, chosen, read_anew, monkeypatch):
    """Unless another program uses its memory."""

    def ones(*shape, **options):
        raise RuntimeError(message)

    facts = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "get_device_name": lambda index: "H100",
        "get_device_properties": lambda index: SimpleNamespace(),
        "get_device_capability": lambda: (9, 0),
        "get_arch_list": lambda: ["sm_90"],
        "is_bf16_supported": lambda including_emulation: True,
    }
    for name, fact in facts.items():
        monkeypatch.setattr(torch.cuda, name, fact)
    monkeypatch.setattr(torch, "ones", ones)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert devices.device_choice().value == chosen
    assert hardware().failure == ("" if chosen == "cuda" else "CUDA error: unspecified launch failure")


def test_a_gpu_of_windows_is_one_inside_wsl(read_anew, monkeypatch, tmp_path):
    (tmp_path / "libcuda.so.1").touch()
    monkeypatch.setattr(devices, "WSL_GPU", tmp_path)
    monkeypatch.setattr(devices, "WSL_LIBRARIES", tmp_path)
    assert hardware().nvidia


@pytest.mark.parametrize("name", ["TORCH_COMPILE_DISABLE", "TORCHDYNAMO_DISABLE"])
def test_what_torch_is_told_not_to_compile_is_not_said_to_be_compiled(name, monkeypatch):
    monkeypatch.delenv("TORCH_COMPILE_DISABLE", raising=False)
    monkeypatch.setenv(name, "1")
    assert compiler.toolchain("cpu") == (False, f"{name} is set")


def test_torchs_reason_is_kept(monkeypatch):
    def is_available() -> bool:
        import warnings

        warnings.warn(
            "CUDA initialization: The NVIDIA driver on your system is too old (found version 11040). Please update "
            "it. (Triggered internally at /c10/cuda/CUDAFunctions.cpp:109.)",
            stacklevel=1,
        )
        return False

    hardware.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_available", is_available)
    try:
        found = hardware()
    finally:
        hardware.cache_clear()
    assert found.failure == "The NVIDIA driver on your system is too old (found version 11040). Please update it."


def test_the_card_says_the_device_first(here, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_COMPILE_DISABLE", "1")
    here(Hardware(nvidia=True))
    world = World.start()
    preset = tiny_preset(tmp_path)
    learner = Learner(preset, world, vocab_size=300, end_of_text=0, tokens_per_step=256)
    name, reason = learner.decisions[0]
    assert name.endswith("CPU")
    assert "built without CUDA" in reason


class WithoutFloat64(torch.utils._python_dispatch.TorchDispatchMode):
    """Refuses what Metal does: tensors of float64."""

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        if isinstance(result, torch.Tensor) and result.dtype == torch.float64:
            raise TypeError(f"{function}: float64")
        return result


def test_a_step_needs_no_float64_where_there_is_none():
    step = make_step(ALL_HEADS)
    step.sum_dtype, step.bounds = torch.float32, step.bounds.float()  # as on "mps"
    with WithoutFloat64():
        launched = step.launch(rows(), whole())
    assert not step.result_of(launched).skipped
