"""What is done to the machine's memory is done; a compiler that fails costs speed and not the run."""

import errno
import platform
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from lm.runtime.compiler import is_one_word, toolchain
from lm.runtime.machine import is_out_of_memory
from tests.constants import ROOT
from tests.program import Program, torchrun

KEPT = """
    import sys
    sys.path.insert(0, {root!r})
    import torch
    from pathlib import Path
    from data.memory import give_back_memory
    from lm.runtime.machine import keep_freed_memory
    def megabytes():
        return int(Path("/proc/self/statm").read_text().split()[1]) // 256
    keep_freed_memory()
    print(megabytes())
    buffers = [torch.ones(2**18) for _ in range(200)]
    del buffers
    print(megabytes())
    give_back_memory()
    print(megabytes())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left as they are")
@pytest.mark.slow
def test_freed_memory_is_kept_until_it_is_given_back():
    code = textwrap.dedent(KEPT.format(root=str(ROOT)))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=600)
    before, kept, given_back = map(int, done.stdout.split())
    assert kept - before > 180
    assert given_back - before < 20


@pytest.mark.parametrize("name", ["plain", "Umlaut-ü", "日本語", "(a)&#%[b]"])
def test_paths_that_torch_passes_on_to_the_compiler(name):
    assert is_one_word(f"/home/{name}/checkpoints")


@pytest.mark.parametrize("name", ["My Models", "it's", 'a "b"', "back\\slash"])
def test_paths_that_it_breaks(name):
    assert not is_one_word(f"/home/{name}/checkpoints")


# Arguments of a command line, whose last is a file; an option alone asks for the version.
FAILS = """#!/bin/sh
[ $# = 1 ] && exec echo 'g++ 13.0'
echo 'error: no stdio.h here' >&2
exit 1
"""
# Works on the function that is tried first, a sine, and fails on the model.
FAILS_ON_MODELS = """#!/bin/sh
for source in "$@"; do
    case "$source" in *.main.cpp) grep -q 'sin(' "$source" || { echo 'error: out of registers' >&2; exit 1; };; esac
done
exec g++ "$@"
"""


def failing(folder: Path, script: str) -> Path:
    compiler = folder / "failing-g++"
    compiler.write_text(script)
    compiler.chmod(0o755)
    return compiler


@pytest.mark.slow
def test_a_compiler_that_fails_is_done_without(text, tmp_path):
    """In a folder whose name torch would break, so that the compiler's cache must not be there."""
    compiler = failing(tmp_path, FAILS)
    program = Program(tmp_path / "My Models" / "it's", text, token_budget=4_000)
    del program.environment["TORCH_COMPILE_DISABLE"]
    program.environment |= {"CXX": str(compiler), "TMPDIR": str(tmp_path)}
    program.add()
    result = program.run("0\n")
    assert result.code == 0, result.out + result.err
    assert "no torch.compile: the compiler is there and fails: error: no stdio.h here" in " ".join(result.out.split())
    assert not (program.checkpoints / "compiled").exists()
    assert '"compiled": false' in (program.checkpoints / "machine.json").read_text()


@pytest.mark.slow
@pytest.mark.skipif(not toolchain("cpu")[0], reason="no compiler")
@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_compiler_that_fails_on_the_model_alone_is_done_without(num_processes, text, tmp_path):
    program = Program(tmp_path / "program", text, token_budget=4_000)
    del program.environment["TORCH_COMPILE_DISABLE"]
    program.environment |= {"CXX": str(failing(tmp_path, FAILS_ON_MODELS)), "TORCHINDUCTOR_VEC_ISA_OK": "0"}
    program.add()
    result = program.run("0\n", **({"launcher": torchrun(num_processes)} if num_processes > 1 else {}))
    assert result.code == 0, result.out + result.err
    words = " ".join(result.out.split())
    assert "trying one step (compiling it first" in words  # the trial was passed
    assert "no torch.compile: the compiler is there and fails" in words
    assert "out of registers" in words
    assert '"compiled": false' in (program.checkpoints / "machine.json").read_text()
    assert program.state()["tokens_seen"] == 4_000


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("MPS backend out of memory (MPS allocated: 9 GB, other allocations: 1 GB, max allowed: 10 GB)"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("HIP error: out of memory"),
        RuntimeError("could not create a primitive"),
    ],
)
def test_every_library_says_in_its_own_words_that_memory_is_short(error):
    assert is_out_of_memory(error)
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
