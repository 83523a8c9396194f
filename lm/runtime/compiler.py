"""What torch.compile needs of this machine, whether it works, and its cache in `checkpoints/`.

torch is imported only where something is compiled, since the menu asks for the compiler.
"""

import functools
import importlib.util
import os
import shlex
import shutil
import sysconfig
import tempfile
import time
from pathlib import Path

from lm.runtime.devices import hardware

CACHE = "compiled"  # in checkpoints/
DELETING_SECONDS = 5.0


def compile_choice(device: str) -> tuple[bool, str]:
    """Return whether all that torch.compile needs is on this machine, and the reason. Whether it
    works is tried by `compile_problem`."""
    if device == "mps":
        return False, "it was never tried on a Mac's GPU"
    found, why = toolchain(device)
    if found and device == "cuda" and hardware().capability < (7, 0):
        return False, f"{hardware().gpus[0]} is too old for triton"
    return found, why


def toolchain(device: str) -> tuple[bool, str]:
    """Return whether all that torch.compile needs beside the device is here, and the reason."""
    for name in ("TORCH_COMPILE_DISABLE", "TORCHDYNAMO_DISABLE"):
        if os.environ.get(name) == "1":
            return False, f"{name} is set"
    compilers = [os.environ.get("CXX", "g++"), "clang++"] if device == "cpu" else [os.environ.get("CC", "gcc"), "clang"]
    compiler = next((path for path in map(shutil.which, compilers) if path), None)
    if compiler is None:
        return False, f"no compiler found (looked for {' and '.join(compilers)})"
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").exists():
        return False, "Python's header files are not installed (python3-dev), which compiled code needs"
    if device == "cuda" and importlib.util.find_spec("triton") is None:
        return False, "triton is not installed"
    return True, f"{compiler} is there" + (", and triton" if device == "cuda" else "")


@functools.cache
def compile_problem(device: str) -> str:
    """Compile a tiny function on "cuda" or "cpu" and run it. Return why that fails, or "".

    A compiler can be there and fail for many reasons: an incomplete installation, a wrong version,
    a folder that it cannot write or name. From the second start on the function comes from the
    compiler's cache, which is made anew if it is the cache that fails.
    """
    problem = _compile_tiny_function(device)
    return _compile_tiny_function(device) if problem and renew_cache() else problem


def renew_cache() -> bool:
    """Delete the compiler's cache in `checkpoints/`, of which a power cut may have left empty
    files, and let torch forget it. Return whether there was one.

    Of torchrun's processes on a machine the first deletes it, and the others give it the time to.
    """
    cache, is_first = Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR", "")), os.environ.get("LOCAL_RANK", "0") == "0"
    if cache.name != CACHE or (is_first and not (cache.is_dir() and any(cache.iterdir()))):
        return False
    import torch
    from torch._inductor.codecache import PyCodeCache

    if is_first:
        shutil.rmtree(cache, ignore_errors=True)
    else:
        time.sleep(DELETING_SECONDS)
    torch.compiler.reset()
    PyCodeCache.cache_clear()
    return True


def _compile_tiny_function(device: str) -> str:
    import torch

    try:
        torch.compile(lambda x: (2 * x.sin()).sum())(torch.ones(2**16, device=device))
    except Exception as error:  # of any kind: of g++, of triton, of the file system
        folders = [
            os.environ.get("TORCHINDUCTOR_CACHE_DIR", ""),
            str(Path(torch.__file__).parent),
            tempfile.gettempdir(),
        ]
        if split := next((folder for folder in folders if folder and not is_one_word(folder)), None):
            return f"the compiler fails on the space or quote in the path of {split}"
        return words_of_compiler(error)
    return ""


def words_of_compiler(error: Exception) -> str:
    """Return in a line why the compiler fails, by the error that torch raised."""
    # Inductor's message holds the whole command line before the compiler's own words.
    words = str(error).rpartition("Output:\n")[2].splitlines() or [type(error).__name__]
    line = next((line for line in words if "error" in line.lower()), words[0])
    return f"the compiler is there and fails: {line.strip()}"


def is_one_word(path: Path | str) -> bool:
    """Return whether `path` is still one argument in the command line that torch splits for the
    compiler: without spaces, quotes and backslashes."""
    try:
        return shlex.split(str(path)) == [str(path)]
    except ValueError:  # a quote that is never closed
        return False
