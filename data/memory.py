"""Memory that a process has freed, back to the system."""

import ctypes
import gc
from contextlib import suppress


def give_back_memory() -> None:
    """For once, after work that leaves garbage behind: what is taken later would lie around it. Where the C library can
    (glibc)."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
