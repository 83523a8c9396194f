"""Releases memory that the process has freed to the operating system."""

import ctypes
import gc
from contextlib import suppress


def give_back_memory() -> None:
    """Release freed memory, where the C library can (glibc can).

    Call it once after work that leaves garbage: otherwise later buffers are scattered around it.
    """
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
