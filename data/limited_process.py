"""Runs a module of this program on untrusted input, in a process of its own with limits.

What the module does first is to call `set_limits`; this one imports nothing that takes time.
"""

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

PATIENCE = 120  # seconds of real time: the cores may be busy
# Sent by others than this program: a scheduler, or the kernel if memory is short. Such an end says nothing of the input.
OF_OTHERS = {-signal.SIGTERM, -signal.SIGKILL, -signal.SIGHUP, -signal.SIGINT}
ATTEMPTS = 3


class TakesTooLong(Exception):
    """The process reached its limit of time."""


class Crashed(Exception):
    """The process crashed, perhaps at its limit of memory."""


def run_limited(
    module: str, *arguments: str, given: bytes = b"", environment: Mapping[str, str] | None = None
) -> bytes:
    """Return what `python -m module` prints, given that on stdin. Raises TakesTooLong and Crashed."""
    for _ in range(ATTEMPTS):
        try:
            done = subprocess.run(
                [sys.executable, "-m", module, *arguments],
                cwd=Path(__file__).parents[1],
                env={**os.environ, **(environment or {})},
                input=given,
                capture_output=True,
                timeout=PATIENCE,
                start_new_session=True,  # a Ctrl-C is for this process, which then ends that one
            )
        except subprocess.TimeoutExpired:
            raise TakesTooLong from None
        if done.returncode not in OF_OTHERS:
            break
    if done.returncode == -signal.SIGXCPU:
        raise TakesTooLong
    if done.returncode:
        raise Crashed
    return done.stdout


def set_limits(cpu_seconds: int, memory_bytes: int) -> None:
    """Limit this process: the kernel ends it (SIGXCPU) after that much CPU time, and gives it no more memory."""
    for what, most in (
        (resource.RLIMIT_CPU, cpu_seconds),
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_CORE, 0),
    ):
        with suppress(ValueError, OSError):  # macOS
            resource.setrlimit(what, (most, most + (what == resource.RLIMIT_CPU)))
