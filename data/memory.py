"""Memory that a process has freed, back to the system."""

import ctypes
import gc
from contextlib import suppress


def give_back_memory() -> None:
    """To be called once after work that leaves garbage, or later buffers lie scattered around it. Does nothing where the C
    library cannot (glibc can)."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
