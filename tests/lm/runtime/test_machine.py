"""What is done to the machine's memory is done."""

import platform
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

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
def test_freed_memory_is_kept_until_it_is_given_back():
    code = textwrap.dedent(KEPT.format(root=str(ROOT)))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    before, kept, given_back = map(int, done.stdout.split())
    assert kept - before > 180
    assert given_back - before < 20
